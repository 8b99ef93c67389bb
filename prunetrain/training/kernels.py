"""The kernels of convolutions on a GPU: cuDNN takes those that its rules name, or tries some of each shape and takes the fastest.

Trying pays where shapes stay for many steps, as in training between two cuts; not in validation, whose last batch is of another size. What
is found fastest may differ from run to run, and so may the last bits of what is computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fastest_kernels(device: torch.device) -> Iterator[None]:
    """Inside, convolutions of a shape that is new are tried out, on a GPU."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
