"""`--val-split`: holding out training images to validate on, for sets without validation images, or whose own should stay unseen.

In: names and labels of images. Out: the images held out. The share is the same for every class, and images are chosen by a hash of their
names: the same ones for every seed and machine, and nearly the same when images are added or removed.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import count, groupby
from pathlib import Path
from typing import Any

import torch

from prunetrain.errors import ConfigError, DataError
from prunetrain.training.data.base import Split


def held_out_indices(names: Iterable[str], labels: Sequence[int], share: float) -> list[int]:
    """Choose the images to hold out.

    Args:
        names: of the images, all distinct.
        labels: their classes.
        share: of each class, in (0, 1). Of two images or more, at least one is held out and one is kept; a single image is kept.

    Returns:
        The indices of the images held out, ascending.

    Raises:
        DataError: if no class has two images, so that nothing can be held out.
    """
    digests = (sha256(name.encode(errors="surrogateescape")).digest() for name in names)
    held: list[int] = []
    for _, members in groupby(sorted(zip(labels, digests, count())), key=lambda image: image[0]):
        numbers = [number for _, _, number in members]
        held += numbers[: min(len(numbers) - 1, max(1, int(share * len(numbers) + 0.5)))]
    if not held:
        raise DataError("no class has two training images, so --val-split cannot hold any out: add images, or leave it out")
    return sorted(held)


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """Divide images into those to train on and those held out; see `held_out_indices`. Their names are their indices."""
    held = torch.zeros(len(split.labels), dtype=torch.bool)
    held[held_out_indices(map(str, range(len(held))), split.labels.tolist(), share)] = True
    kept, out = (Split(split.images[chosen], split.labels[chosen]) for chosen in (~held, held))
    return kept, out


def check_unseen(path: Path, share: float, given: Mapping[str, Any]) -> None:
    """Refuse to validate a network on images that it was trained on: a larger share holds out further images beside those of a smaller one.

    Args:
        path: its checkpoint.
        share: the share held out in its training.
        given: the settings that will differ. Data from elsewhere are accepted: it is unknown which of them the network was trained on.

    Raises:
        ConfigError: for a larger share.
    """
    if given.get("val_split", 0.0) > share and not given.keys() & {"dataset", "data_dir"}:
        smaller = ", or give a smaller one" if share else ""
        raise ConfigError(f"{path} was trained with --val-split {share:g} and has seen images of a larger one: leave it out{smaller}")
