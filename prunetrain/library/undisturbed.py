"""Run the pruner's own computations as torch does by default, whatever mode the caller is in."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave inference mode, whose tensors cannot be trained, and a default device other than the CPU, where channels are counted."""
    by_default = torch.get_default_device().type == "cpu"
    with torch.inference_mode(False), nullcontext() if by_default else torch.device("cpu"):
        yield
