"""What a trained network expects of its images, for whoever runs it elsewhere; `export` writes it into its files.

In: the settings of a run, and what its checkpoint says about its data. Out: plain values; no data set is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prunetrain.config import TrainConfig
from prunetrain.training.data.folder import centre_crop_decoding

_CHANNELS = {1: "grey", 3: "RGB"}


def expected_input(
    input_shape: Sequence[int], config: TrainConfig, class_names: Sequence[str], statistics: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """What is known about a network's input and output.

    Args:
        input_shape: the network's input, (C, H, W).
        config: the settings it was trained with.
        class_names: in the order of its outputs.
        statistics: `mean` and `std` of each channel, with pixels in [0, 1].

    Returns:
        `input_shape`; `channels`, "RGB" or "grey", if there are three or one; `mean` and `std`; for folders `resize`, the length to which
        the shorter side is scaled (pixels, bilinear), and `crop`, the side of the centre crop; `class_names`.
    """
    known: dict[str, Any] = {"input_shape": list(input_shape)}
    if channels := _CHANNELS.get(len(statistics["mean"])):
        known["channels"] = channels
    known |= {name: list(statistics[name]) for name in ("mean", "std")}
    if config.dataset == "folder":
        centred = centre_crop_decoding(config.image_size)
        known |= {"resize": centred.resized_side, "crop": centred.side}
    return known | {"class_names": list(class_names)}
