"""Which classes are taken for which.

In: guesses and labels, batch by batch, on the device. Out: how often each pair of them occurs, from which the counts of a class follow.
Nothing waits for the device while batches come: eight bytes an image stay there, and are counted at the end, whatever the number of
classes; `Confusion.matrix` alone takes its square.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetrain.training.distribution import Ranks


class Guesses:
    """First guesses beside the labels; a `loop.Guessed`."""

    def __init__(self, classes: int) -> None:
        """Of a network with so many outputs."""
        self._classes = classes
        self._pairs: list[Tensor] = []

    def __call__(self, guesses: Tensor, labels: Tensor) -> None:
        """Keep those of a batch, each (N,)."""
        self._pairs.append(labels * self._classes + guesses)

    def counted(self, ranks: Ranks) -> "Confusion":
        """Those of all processes together."""
        pairs = torch.cat(self._pairs).cpu() if self._pairs else torch.empty(0, dtype=torch.int64)
        return Confusion.of(torch.cat(ranks.gather(pairs)), self._classes)


@dataclass(frozen=True)
class Confusion:
    """How often an image of one class was taken for one of another.

    Attributes:
        classes: how many there are.
        pairs: true class * classes + guessed class, int64 (M,), of those that occur, sorted.
        counts: images of each pair, int64 (M,).
    """

    classes: int
    pairs: Tensor
    counts: Tensor

    @classmethod
    def of(cls, pairs: Tensor, classes: int) -> "Confusion":
        """Count the pairs of images (N,)."""
        return cls(classes, *torch.unique(pairs, return_counts=True))

    @property
    def images(self) -> list[int]:
        """Images of each class."""
        return self._sums(self.pairs // self.classes, self.counts)

    @property
    def correct(self) -> list[int]:
        """Images of each class that were taken for what they are."""
        right = self.pairs // self.classes == self.pairs % self.classes
        return self._sums(self.pairs[right] % self.classes, self.counts[right])

    def _sums(self, classes: Tensor, counts: Tensor) -> list[int]:
        return torch.zeros(self.classes, dtype=torch.int64).index_add_(0, classes, counts).tolist()

    def matrix(self) -> list[list[int]]:
        """Counts (classes, classes): a row a true class, a column a guessed one."""
        table = torch.zeros(self.classes * self.classes, dtype=torch.int64)
        table[self.pairs] = self.counts
        return table.view(self.classes, self.classes).tolist()


def accuracies(correct: Sequence[int], images: Sequence[int]) -> list[float | None]:
    """Share of each class's images that are right, its recall; None of a class without images."""
    return [right / count if count else None for right, count in zip(correct, images, strict=True)]
