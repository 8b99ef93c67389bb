"""Results of calls that torch would take long to say, though their shape is plain. Only the shape counts: no tensor here has memory.

In: a call. Out: an empty tensor such as the call would make, or None where torch has to be asked.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from prunetrain.graph.windows import Shape

_KEEP_SHAPE: Final = frozenset("batch_norm layer_norm group_norm instance_norm rms_norm prelu".split())
_JOIN: Final = frozenset(("cat", "concat", "concatenate"))


def made_without_torch(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a call of torch makes, by its short name."""
    if name in _KEEP_SHAPE:
        return torch.empty_like(args[0])
    return _joined(*args, **kwargs) if name in _JOIN and args and kwargs.keys() <= {"dim"} and len(args) + len(kwargs) <= 2 else None


def _joined(tensors: Any, dim: Any = 0) -> Tensor | None:
    """Of torch.cat, which looks at every tensor in turn: those of a dense block many times over."""
    if (
        not isinstance(tensors, tuple | list)
        or not tensors
        or not all(isinstance(tensor, Tensor) for tensor in tensors)
        or type(dim) is not int
    ):
        return None
    first = tensors[0]
    shape = list(first.shape)
    if not -len(shape) <= dim < len(shape):
        return None

    def beside(tensor: Tensor) -> list[int]:
        return [size for number, size in enumerate(tensor.shape) if number != dim % len(shape)]

    plain = all(
        tensor.dtype == first.dtype and tensor.is_contiguous() and not tensor.requires_grad and tensor.device == first.device
        for tensor in tensors
    )
    if not plain or any(tensor.dim() != len(shape) or beside(tensor) != beside(first) for tensor in tensors):
        return None
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return empty_like_of_shape(first, tuple(shape))


def empty_like_of_shape(tensor: Tensor, shape: Shape) -> Tensor:
    """`tensor.new_empty(shape)`, which takes three times as long on its way through torch's dispatcher."""
    if not isinstance(tensor, FakeTensor):
        return tensor.new_empty(shape)
    with unset_fake_temporarily():
        return FakeTensor(tensor.fake_mode, torch.empty(shape, dtype=tensor.dtype, device="meta"), tensor.device)
