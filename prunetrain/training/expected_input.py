"""What a trained network expects of its images, for whoever runs it elsewhere: as `export` writes it into its files.

In: the settings of a run, and the class names in its checkpoint. Out: plain values; no data set is read.
"""

from collections.abc import Sequence
from typing import Any

from prunetrain.config import TrainConfig
from prunetrain.training.data import STATISTICS
from prunetrain.training.data.folder import centred_at


def expected_input(input_shape: Sequence[int], config: TrainConfig, class_names: Sequence[str]) -> dict[str, Any]:
    """What is known of a network's input and output.

    Args:
        input_shape: of the network: C, H, W.
        config: the settings it was trained with.
        class_names: in the order of its outputs.

    Returns:
        `input_shape`; `channels`, "RGB" or "grey"; `mean` and `std` of each channel, with pixels in [0, 1]; for folders `resize`, what the
        shorter side becomes (pixels, bilinear), and `crop`, the side of the centre that is cut; `class_names`. Left out is what is not
        known.
    """
    known: dict[str, Any] = {"input_shape": list(input_shape)}
    if statistics := STATISTICS.get(config.dataset):
        known["channels"] = "RGB" if len(statistics.mean) == 3 else "grey"
        known |= {"mean": list(statistics.mean), "std": list(statistics.std)}
    if config.dataset == "folder":
        centred = centred_at(config.image_size)
        known |= {"resize": centred.resized_side, "crop": centred.side}
    return known | {"class_names": list(class_names)}
