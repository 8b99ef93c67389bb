"""The confusion matrix: which classes are taken for which.

In: guesses and labels, batch by batch, on the device. Out: how often each pair of them occurs, from which the counts per class follow.
Nothing waits for the device while batches arrive: whatever the number of classes, eight bytes per image stay there until they are counted
at the end. Only `Confusion.matrix` takes memory that grows with the square of the number of classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetrain.training.distribution import Ranks


class GuessCollector:
    """Collects first guesses with their labels; a `loop.GuessCallback`."""

    def __init__(self, classes: int) -> None:
        """Start empty, for a network with this many outputs."""
        self._classes = classes
        self._pairs: list[Tensor] = []

    def __call__(self, guesses: Tensor, labels: Tensor) -> None:
        """Keep a batch's guesses and labels, each (N,)."""
        self._pairs.append(labels * self._classes + guesses)

    def count(self, ranks: Ranks) -> "Confusion":
        """Count the guesses of all processes together."""
        pairs = torch.cat(self._pairs).cpu() if self._pairs else torch.empty(0, dtype=torch.int64)
        return Confusion.of(torch.cat(ranks.gather(pairs)), self._classes)


@dataclass(frozen=True)
class Confusion:
    """How often an image of one class was taken for one of another.

    Attributes:
        classes: number of classes.
        pairs: true class * classes + guessed class for every pair that occurs, int64 (M,), sorted.
        counts: number of images of each pair, int64 (M,).
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
        """Number of images of each class."""
        return self._sums(self.pairs // self.classes, self.counts)

    @property
    def correct(self) -> list[int]:
        """Number of images of each class that were classified correctly."""
        right = self.pairs // self.classes == self.pairs % self.classes
        return self._sums(self.pairs[right] % self.classes, self.counts[right])

    def _sums(self, classes: Tensor, counts: Tensor) -> list[int]:
        return torch.zeros(self.classes, dtype=torch.int64).index_add_(0, classes, counts).tolist()

    def matrix(self) -> list[list[int]]:
        """Counts (classes, classes): one row per true class, one column per guessed class."""
        table = torch.zeros(self.classes * self.classes, dtype=torch.int64)
        table[self.pairs] = self.counts
        return table.view(self.classes, self.classes).tolist()


def accuracies(correct: Sequence[int], images: Sequence[int]) -> list[float | None]:
    """Share of each class's images that are classified correctly, its recall; None for a class without images."""
    return [right / count if count else None for right, count in zip(correct, images, strict=True)]
