"""The names that a file by torch.save may use, for storages, tensors and a few plain classes, and what calling each would make.

In: the arguments as they are in the pickle, of any type. Out: plain values, with a `StoredTensor` for each tensor; a ValueError for
arguments that torch.save never writes, a `RefusedFileError` where the user should know more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from prunetrain.foreign.refusal import RefusedFileError

_MAX_DIMENSIONS: Final = 64  # torch's own limit

ITEM_BYTES: Final = {
    **dict.fromkeys(("BoolStorage", "ByteStorage", "CharStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
}
DTYPES: Final = frozenset("bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64".split())


@dataclass(frozen=True)
class GlobalName:
    """A class or function that a pickle names, such as `torch FloatStorage`."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers in a part of the archive: how many, and the bytes of each."""

    length: int
    item_bytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, known to lie inside its storage; a parameter is one too."""

    storage: Storage
    shape: tuple[int, ...]


class Ordered(dict[Any, Any]):
    """Stands for a collections.OrderedDict, the only value that may have an attribute."""


def whole_number(number: object) -> int:
    """Return a whole number from 0; raise ValueError for anything else."""
    if type(number) is not int or number < 0:
        raise ValueError
    return number


def _tensor(*arguments: object) -> StoredTensor:
    """`_rebuild_tensor_v2`: a storage, an offset into it, shape, stride, `requires_grad`, and hooks, of which there must be none."""
    storage, offset, shape, stride, requires_grad, hooks = arguments
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple) or hooks != {}:
        raise ValueError
    sizes, steps = tuple(map(whole_number, shape)), tuple(map(whole_number, stride))
    if len(sizes) != len(steps) or len(sizes) > _MAX_DIMENSIONS or not isinstance(requires_grad, bool):
        raise ValueError
    start, count = whole_number(offset), prod(sizes)
    reach = 0  # of the dimensions with smaller strides, in elements
    for step, size in sorted((step, size) for step, size in zip(steps, sizes, strict=True) if size > 1 and count):
        if step <= reach:
            raise RefusedFileError(f"it has a tensor of {count:,} numbers whose elements share places in memory: save a contiguous copy")
        reach += (size - 1) * step
    if start + reach + (count > 0) > storage.length:
        raise RefusedFileError("it has a tensor that reaches beyond its storage")
    return StoredTensor(storage, sizes)


def _parameter(data: object, requires_grad: object, hooks: object) -> StoredTensor:
    if not isinstance(data, StoredTensor) or not isinstance(requires_grad, bool) or hooks != {}:
        raise ValueError
    return data


def _ordered(*arguments: object) -> Ordered:
    if arguments:
        raise ValueError
    return Ordered()


def _counter(counts: object) -> dict[Any, Any]:
    """A collections.Counter, in which torch's schedulers keep milestones."""
    if type(counts) is not dict or not all(type(count) is int for count in counts.values()):
        raise ValueError
    return dict(counts)


def _size(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, tuple):
        raise ValueError
    return tuple(map(whole_number, sizes))


def _device(kind: object, number: object = 0) -> str:
    if not isinstance(kind, str) or whole_number(number) > 1024:
        raise ValueError
    return f"{kind}:{number}"


FUNCTIONS: Final[Mapping[tuple[str, str], Callable[..., object]]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): _ordered,
    ("collections", "Counter"): _counter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}
