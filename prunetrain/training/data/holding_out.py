"""`--val-split`: a share of the training images to validate on, for sets that have no validation images, or whose own are to stay unseen.

In: names and labels of images. Out: which of them are held out. Of each class the same share is, chosen by a hash of the names: the same
images whatever the seed and the machine, and nearly the same when images come or go.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import count, groupby

import torch

from prunetrain.errors import DataError
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
