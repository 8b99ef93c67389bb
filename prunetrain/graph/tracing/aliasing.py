"""Which recorded result a tensor object stands for, and whether its memory was changed in place since then."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from prunetrain.graph.tracing.records import Place, Ref

WriteBack = Callable[[Ref, object, Ref, Place], Ref]


@dataclass
class _Binding:
    tensor: Tensor  # kept alive, so that no other object gets its id
    ref: Ref
    storage: int
    seen: int  # how many changes of the storage the result includes
    whole: Tensor | None = None  # what the tensor is a slice of
    index: object = None


@dataclass(frozen=True)
class _Change:
    cells: tuple[int, tuple[int, ...], tuple[int, ...]]
    place: Place


def _cells(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())


def _overlap(first: tuple[int, tuple[int, ...], tuple[int, ...]], second: tuple[int, tuple[int, ...], tuple[int, ...]]) -> bool:
    """Whether two strided tensors share a cell of their memory."""
    ends = [offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 for offset, shape, strides in (first, second)]
    cells = np.zeros(max(ends), dtype=bool)

    def view(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
        return as_strided(cells[offset:], shape, strides)

    view(*first)[...] = True
    return bool(view(*second).any())


class AliasTracker:
    """Tensor objects and the results they stand for."""

    def __init__(self) -> None:
        self._bound: dict[int, _Binding] = {}
        self._changes: dict[int, list[_Change]] = {}
        self._alive: list[object] = []

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor object stands for a result."""
        return id(tensor) in self._bound

    def ref(self, tensor: Tensor) -> Ref:
        """Return the result that a tensor object stands for, whatever happened to its memory."""
        return self._bound[id(tensor)].ref

    def bind(self, tensor: Tensor, ref: Ref) -> None:
        """Let a tensor object stand for a result."""
        storage = _storage(tensor, self._alive)
        self._bound[id(tensor)] = _Binding(tensor, ref, storage, len(self._changes.get(storage, ())))

    def bind_part(self, part: Tensor, whole: Tensor, index: object) -> None:
        """Note that one tensor is a slice of another, if it is in the same memory."""
        bound = self._bound[id(part)]
        if self.knows(whole) and self._bound[id(whole)].storage == bound.storage:
            bound.whole, bound.index = whole, index

    def is_part(self, part: object, whole: Tensor, index: object) -> bool:
        """Whether a tensor object is the slice of another at an index, so that writing it there changes nothing (as `x[i] += y` does)."""
        bound = self._bound.get(id(part))
        return bound is not None and bound.whole is whole and bound.index == index

    def read(self, tensor: Tensor, here: Place) -> Ref:
        """Return the result that a tensor object stands for.

        Raises:
            TraceError: if its memory was changed through another object since then.
        """
        bound = self._bound[id(tensor)]
        for change in self._changes.get(bound.storage, ())[bound.seen :]:
            if _overlap(change.cells, _cells(tensor)):
                at = f" ({change.place.line})" if change.place.line else ""
                raise here.error(
                    f"reads a tensor whose memory was changed in place through another tensor{at}: write it without in-place calls"
                )
        return bound.ref

    def change(self, tensor: Tensor, ref: Ref, here: Place, write_back: WriteBack) -> None:
        """Note that a tensor object was changed in place: it stands for another result, and so does what it is a slice of."""
        chain = [self._bound[id(tensor)]]
        while chain[-1].whole is not None:
            chain.append(self._bound[id(chain[-1].whole)])
        before = [self.read(bound.tensor, here) for bound in chain[1:]]
        changes = self._changes.setdefault(chain[0].storage, [])
        changes.append(_Change(_cells(tensor), here))
        chain[0].ref = ref
        for part, whole, old in zip(chain, chain[1:], before, strict=False):
            whole.ref = write_back(old, part.index, part.ref, here)
        for bound in chain:
            bound.seen = len(changes)


def _storage(tensor: Tensor, alive: list[object]) -> int:
    with torch._C.DisableTorchFunction():
        found = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    alive.append(found)
    return int(found.cdata)
