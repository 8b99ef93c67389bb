"""`--compile`: torch.compile in one of its modes. In: a network. Out: what a training step or validation calls instead of it.

`reduce-overhead` and `max-autotune` record the kernels of a forward and a backward pass as CUDA graphs and replay them, which removes the
launch of every single kernel; a CPU has no such graphs. Batches keep their shape, so nothing is compiled for changing shapes. After a cut
there is another network, which is compiled anew.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OFF = "off"


def compiled(network: nn.Module, mode: str) -> Callable[[Tensor], Any]:
    """Return the network compiled by torch, or the network itself if the mode is "off"."""
    return network if mode == OFF else torch.compile(network, dynamic=False, mode=mode)


def forget_compiled(mode: str) -> None:
    """Free what torch keeps for compiled networks, CUDA graphs and their memory included; what is still in use is compiled again."""
    if mode != OFF:
        torch.compiler.reset()
