"""Connected components of integers, vectorised."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Integers = npt.NDArray[np.int64]


def components(count: int, pairs: Sequence[_Integers]) -> _Integers:
    """Find the connected components of the integers 0 to `count` - 1.

    Args:
        count: how many integers there are.
        pairs: arrays (n, 2) of connected integers.

    Returns:
        (count,): for each integer the smallest of its component.
    """
    labels = np.arange(count)
    if not pairs:
        return labels
    left, right = np.unique(np.concatenate(pairs), axis=0).T
    while True:
        a, b = labels[left], labels[right]
        apart = a != b
        if not apart.any():
            return labels
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(labels, np.maximum(a, b), np.minimum(a, b))  # attach a root to a smaller one
        while True:
            above = labels[labels]
            if (above == labels).all():
                break
            labels = above
