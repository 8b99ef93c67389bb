"""The peak performance of this machine: multiply-accumulates and bytes per second, measured by a large matrix product and a large copy.

These are the two lines of a roofline (Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.precision import compute_type

_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices
_COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes
_TRIES = 5


@dataclass(frozen=True)
class Peaks:
    """Multiply-accumulates per second in the precision of the run, and bytes read or written per second."""

    macs_per_second: float
    bytes_per_second: float

    def least_seconds(self, macs: float, moved: float) -> float:
        """The least time for this many multiply-accumulates and bytes, if computing and copying overlap fully."""
        return max(macs / self.macs_per_second, moved / self.bytes_per_second)


def measure_peaks(conditions: Conditions) -> Peaks:
    """Measure both peaks, each as the best of a few tries."""
    kind = conditions.device.type
    side = _SIDES[kind]
    left, right = (torch.rand(side, side, device=conditions.device, dtype=compute_type(conditions.amp)) for _ in range(2))
    with matmul_at_conv_precision(conditions.device):
        product = _fastest(lambda: left @ right, conditions)
    source = torch.empty(_COPIED[kind] // 4, device=conditions.device).zero_()
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), conditions)
    return Peaks(side**3 / product, 2 * _COPIED[kind] / copy)


@contextmanager
def matmul_at_conv_precision(device: torch.device) -> Iterator[None]:
    """Inside, float32 matrix products use the precision of convolutions: TF32 on a GPU that has it, unless torch was set otherwise."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _fastest(action: Callable[[], object], conditions: Conditions) -> float:
    """Seconds of the fastest of some tries, after one for warm-up."""
    return min([conditions.seconds(action) for _ in range(_TRIES + 1)][1:])
