"""Peak memory of torch computations: on a GPU by its allocator, on a CPU by the storages of all tensors that operations return.

What an operation uses internally (a convolution's rearranged operands) is counted on a GPU only.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory(prepare: Callable[[], Callable[[], object]], device: torch.device) -> int:
    """The most bytes in use at once while an action is prepared and then done twice.

    For a training step these are weights, gradients, optimizer state (made in the first step) and activations. On a GPU only the second
    time counts, which has all of these: in the first, cuDNN may try kernels, which need memory only then.

    Args:
        prepare: returns the action, such as a training step with its network.
        device: where it runs.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        action = prepare()
        action()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    live = LiveBytes()
    with live:
        action = prepare()
        action()
        action()
    return live.peak


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, counts the bytes of all live memory that operations returned; tensors that share memory count once.

    `peak` is the highest count so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count its results; torch calls this for every operation, including the backward pass."""
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
