"""Results of calls that are slow in torch although their shape is obvious. Only the shape counts: no tensor here has memory.

In: a call. Out: an empty tensor like the call's result, or None if torch must make it.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from prunetrain.graph.windows import Shape

_KEEP_SHAPE: Final = frozenset("batch_norm layer_norm group_norm instance_norm rms_norm prelu".split())
_JOIN: Final = frozenset(("cat", "concat", "concatenate"))


def result_without_torch(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the result of a call by its short name, or None if torch must make it."""
    if name in _KEEP_SHAPE:
        return torch.empty_like(args[0])
    return _concatenated(*args, **kwargs) if name in _JOIN and args and kwargs.keys() <= {"dim"} and len(args) + len(kwargs) <= 2 else None


def _concatenated(tensors: Any, dim: Any = 0) -> Tensor | None:
    """Return the result of torch.cat, or None. Torch looks at every tensor each time, which adds up in dense blocks."""
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
    """Return `tensor.new_empty(shape)` in a third of the time, as it avoids torch's dispatcher."""
    if not isinstance(tensor, FakeTensor):
        return tensor.new_empty(shape)
    with unset_fake_temporarily():
        return FakeTensor(tensor.fake_mode, torch.empty(shape, dtype=tensor.dtype, device="meta"), tensor.device)
