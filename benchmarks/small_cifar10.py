"""Makes the small CIFAR-10 that `early.py` and `cifar10.py` train on: the first images of every class, at half or full size.

    python benchmarks/small_cifar10.py cifar10.npz cifar10-small.npz --train 1000 --test 500 --pixels 16

In: an .npz of x_train (50000, 32, 32, 3) uint8, y_train, x_test, y_test. Out: the same with `--train` and `--test` images per class,
unchanged (`--pixels 32`) or of 16x16 pixels, each the rounded mean of 2x2.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def main() -> None:
    """Read, choose, shrink, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--pixels", type=int, choices=(16, 32), default=16)
    arguments = parser.parse_args()
    arrays: dict[str, Any] = {}
    with np.load(arguments.source) as whole:
        for split, count in (("train", arguments.train), ("test", arguments.test)):
            labels = whole[f"y_{split}"]
            chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))
            images = whole[f"x_{split}"][chosen]
            arrays |= {f"x_{split}": halved(images) if arguments.pixels == 16 else images, f"y_{split}": labels[chosen]}
    np.savez(arguments.target, **arrays)


def halved(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (N, H, W, C) at half of H and W."""
    count, height, width, channels = images.shape
    squares = images.astype(np.uint16).reshape(count, height // 2, 2, width // 2, 2, channels)
    means: NDArray[np.uint8] = ((squares.sum((2, 4)) + 2) // 4).astype(np.uint8)
    return means


if __name__ == "__main__":
    main()
