"""Connected components of many integers at once."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Integers = npt.NDArray[np.int64]


def components(count: int, pairs: Sequence[_Integers]) -> _Integers:
    """The smallest member of each integer's component.

    Args:
        count: the integers are 0 to `count` - 1.
        pairs: arrays (n, 2) of integers that belong together.

    Returns:
        (count,): for each integer the smallest that it is connected to.
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
        np.minimum.at(labels, np.maximum(a, b), np.minimum(a, b))  # a root gets a smaller one above it
        while True:
            above = labels[labels]
            if (above == labels).all():
                break
            labels = above
