"""The kernels of convolutions on a GPU: cuDNN picks one by its rules, or tries several for each shape and takes the fastest.

Trying pays if shapes stay the same for many steps, as in training between two cuts, but not in validation, whose last batch has another
size. Which kernel is fastest may differ from run to run, and so may the last bits of the results.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fastest_kernels(device: torch.device) -> Iterator[None]:
    """On a GPU, let cuDNN try several kernels for each new shape of a convolution."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
