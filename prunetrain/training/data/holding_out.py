"""`--val-split`: a share of the training images to validate on, for sets that have no validation images, or whose own are to stay unseen.

In: names and labels of images. Out: which of them are held out. Of each class the same share is, chosen by a hash of the names: the same
images whatever the seed and the machine, and nearly the same when images come or go.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import count, groupby
from pathlib import Path
from typing import Any

import torch

from prunetrain.errors import ConfigError, DataError
from prunetrain.training.data.base import Split


def held_out(names: Iterable[str], labels: Sequence[int], share: float) -> list[int]:
    """Which images are held out.

    Args:
        names: of the images, each another one.
        labels: their classes.
        share: of each class, in (0, 1); at least one image is held out, and one at least is not, but where there is only one.

    Returns:
        Their numbers, ascending.

    Raises:
        DataError: if no class has two images, so that nothing can be held out.
    """
    digests = (sha256(name.encode(errors="surrogateescape")).digest() for name in names)
    held: list[int] = []
    for _, members in groupby(sorted(zip(labels, digests, count())), key=lambda image: image[0]):
        numbers = [number for _, _, number in members]
        held += numbers[: min(len(numbers) - 1, max(1, int(share * len(numbers) + 0.5)))]
    if not held:
        raise DataError("no class has two training images, so that --val-split can hold none out: add images, or leave it out")
    return sorted(held)


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """The images to train on, and those held out of them; see `held_out`. Names are the numbers of the images."""
    held = torch.zeros(len(split.labels), dtype=torch.bool)
    held[held_out(map(str, range(len(held))), split.labels.tolist(), share)] = True
    kept, out = (Split(split.images[chosen], split.labels[chosen]) for chosen in (~held, held))
    return kept, out


def check_unseen(path: Path, share: float, given: Mapping[str, Any]) -> None:
    """Refuse to validate a network on images that it was trained on: a larger share holds out what a smaller one does, and some of these.

    Args:
        path: its checkpoint.
        share: what was held out of its training.
        given: settings that are to differ; what data of another place it was trained on, nobody can say.

    Raises:
        ConfigError: for a larger share.
    """
    if given.get("val_split", 0.0) > share and not given.keys() & {"dataset", "data_dir"}:
        raise ConfigError(
            f"{path} was trained with --val-split {share:g}, and of a larger one it has seen images: leave it out, or give a smaller one"
        )
