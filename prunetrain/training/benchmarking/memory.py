"""Peak memory of what torch computes: on a GPU by its allocator, on a CPU by the storages of all tensors that operations make.

The scratch space inside of an operation counts on a GPU only.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory(prepare: Callable[[], Callable[[], object]], device: torch.device) -> int:
    """The most bytes that are in use at once while something is prepared, and then done twice.

    For a training step these are weights, gradients, optimizer state and activations.

    Args:
        prepare: makes what is to be done, such as a training step with its network.
        device: where.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _twice(prepare)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    storages = _Storages()
    with storages:
        _twice(prepare)
    return storages.most


def _twice(prepare: Callable[[], Callable[[], object]]) -> None:
    action = prepare()
    action()
    action()


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, as long as these are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self._now += size
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size
