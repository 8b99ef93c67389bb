"""The memory that a training step takes: measured on a GPU, estimated on a CPU. In: a network, images a step. Out: bytes.

The estimate runs the step on tensors without memory and adds up the sizes of all tensors that are alive at once: weights, optimizer
state, activations kept for the backward pass, gradients, and what an operation returns for a moment. It takes no memory and no arithmetic
whatever the batch, and needs no table of operations. What an operation uses inside itself (a convolution's rearranged operands), the
lasso's temporaries and DistributedDataParallel's buckets are not in it.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.training.state import TrainState
from prunetrain.training.trial import TrialStep

OUT_OF_MEMORY = float("inf")
_STEPS = 2  # optimizers make their state in the first
_RESERVE = 0.05  # of a GPU's memory stays free: libraries and fragments want some


def is_measured(state: TrainState) -> bool:
    """Whether `step_memory` measures; otherwise it estimates."""
    return state.device.type == "cuda"


def step_memory(state: TrainState, graph: LayerGraph, images: int) -> float:
    """Bytes at the peak of a training step, everything that the step needs included.

    Args:
        state: the run, for its settings and device.
        graph: the network that the step trains.
        images: a step, on one device.

    Returns:
        Bytes; `OUT_OF_MEMORY` if the device has too few of them.
    """
    return _measured(state, graph, images) if is_measured(state) else _estimated(state, graph, images)


def available_memory(state: TrainState) -> float:
    """Bytes that `step_memory` may come to on this device beside what is there now; without a limit on a CPU."""
    if not is_measured(state):
        return float("inf")
    free, total = torch.cuda.mem_get_info(state.device)
    unused = torch.cuda.memory_reserved(state.device) - torch.cuda.memory_allocated(state.device)
    return free + unused - _RESERVE * total


def restart_peak(state: TrainState) -> None:
    """Let the allocator's record of its most memory begin anew, on a GPU; a process on a CPU has but one."""
    if is_measured(state):
        torch.cuda.reset_peak_memory_stats(state.device)


def _measured(state: TrainState, graph: LayerGraph, images: int) -> float:
    """The allocator's peak over real steps, over what was there before."""
    before = torch.cuda.memory_allocated(state.device)
    torch.cuda.reset_peak_memory_stats(state.device)
    try:
        _run_steps(state, graph, images)
        return torch.cuda.max_memory_allocated(state.device) - before
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    finally:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(state.device)


def _estimated(state: TrainState, graph: LayerGraph, images: int) -> float:
    live = LiveBytes()
    with FakeTensorMode(), live:
        _run_steps(state, graph, images)
    return live.peak


def _run_steps(state: TrainState, graph: LayerGraph, images: int) -> None:
    step = TrialStep(state, graph)
    for _ in range(_STEPS):
        step.run(images)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, counts the bytes of all memory that operations return, until it is freed; tensors that share memory count once.

    `peak` is the most at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of every operation, those of the backward pass among them."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)  # torch keeps the object for as long as the memory lives
        if key in self._alive:
            return
        self._alive.add(key)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._alive.remove(key)
        self._now -= size
