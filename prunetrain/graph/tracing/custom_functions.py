"""Functions that define their own gradient (`torch.autograd.Function`).

Many do so only to save memory or time, such as the Swish of several EfficientNets: their gradient is the one that autograd derives from
their forward pass. These are traced as that. All others, such as straight-through estimators, are not what a network file can express.

In: a function and the arguments of a call. Out: whether it has the gradient of its forward pass, and the results of that pass as
ordinary code.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from prunetrain.graph.tracing.journal import tensors_in

_TOLERANCE = 1e-3  # relative to the largest number
_MAGNITUDES = (0.1, 1.0, 30.0)  # of inputs and of gradients: a function that clips either behaves differently for large ones
_POSITIVE = 1.0  # the magnitude of inputs without a sign, as logarithms need them


class _Context:
    """What a forward pass gets as `ctx`; nothing that it keeps is needed."""

    def __init__(self, args: Sequence[Any]) -> None:
        self.needs_input_grad = tuple(map(_needs_gradient, args))

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep nothing."""

    save_for_forward = mark_dirty = mark_non_differentiable = save_for_backward

    def set_materialize_grads(self, value: bool) -> None:
        """Change nothing."""


def run_forward(function: type[Function], args: Sequence[Any]) -> Any:
    """Run the forward pass of a function as ordinary code."""
    if function.setup_context is not Function.setup_context:
        return function.forward(*args)
    return function.forward(_Context(args), *args)


class _ArgumentsOnly(TorchFunctionMode):
    """Refuses the model's own tensors and results: a function gets gradients for its arguments alone, so it must use no others."""

    def __init__(self, is_own: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._is_own = is_own

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        with torch._C.DisableTorchFunction():
            if any(isinstance(tensor, FakeTensor) or self._is_own(tensor) for tensor in tensors_in((args, kwargs))):
                raise ValueError("it uses a tensor of the network that is not one of its arguments")
            return func(*args, **(kwargs or {}))


def has_gradient_of_forward(
    function: type[Function], apply: Callable[..., Any], args: Sequence[Any], is_own: Callable[[Tensor], bool]
) -> bool:
    """Whether a function has the gradient that autograd derives from its forward pass, compared on random tensors of several magnitudes.

    Args:
        function: the function.
        apply: calls it as torch does.
        args: its arguments; of tensors of floats only shapes and types are used.
        is_own: whether a tensor is one of the model's.

    Raises:
        Exception: whatever its code raises, as where it needs a GPU.
        ValueError: if it uses the model's tensors without getting them as arguments.
    """
    with unset_fake_temporarily(), torch.random.fork_rng([]), _ArgumentsOnly(is_own):
        return all(_agrees(function, apply, args, magnitude) for magnitude in _MAGNITUDES)


def _agrees(function: type[Function], apply: Callable[..., Any], args: Sequence[Any], magnitude: float) -> bool:
    torch.manual_seed(0)
    inputs = [_random_input(arg, magnitude) if isinstance(arg, Tensor) else arg for arg in args]
    wanted = _results_and_gradients(apply, inputs, magnitude)
    found = _results_and_gradients(lambda *args: run_forward(function, args), inputs, magnitude)
    return len(wanted) == len(found) and all(map(_close, wanted, found))


def _random_input(arg: Tensor, magnitude: float) -> Tensor:
    """A random tensor in place of an argument; indices and masks, of which not all values are valid, stay."""
    with torch._C.DisableTorchFunction():
        if not arg.is_floating_point():
            return arg.clone()
        numbers = magnitude * torch.randn(arg.shape, dtype=arg.dtype)
        return (numbers.abs() if magnitude == _POSITIVE else numbers).requires_grad_(_needs_gradient(arg))


def _needs_gradient(arg: Any) -> bool:
    """Whether an argument is trained: parameters, and what depends on the images; no constants."""
    with torch._C.DisableTorchFunction():
        return isinstance(arg, Tensor) and arg.is_floating_point() and (isinstance(arg, FakeTensor) or arg.requires_grad)


def _results_and_gradients(call: Callable[..., Any], inputs: Sequence[Any], magnitude: float) -> list[Tensor]:
    """A function's tensors for some inputs, followed by the gradients of these for random gradients of the former."""
    torch.manual_seed(1)
    results = tensors_in(call(*(value.clone() if isinstance(value, Tensor) else value for value in inputs)))  # which it may change in place
    torch.manual_seed(2)
    trained = [result for result in results if result.requires_grad]
    along = [magnitude * torch.randn_like(result) for result in trained]
    leaves = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    if not trained or not leaves:
        return results
    gradients = torch.autograd.grad(trained, leaves, along, allow_unused=True)
    return [*results, *(torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, gradients, strict=True))]


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.requires_grad != other.requires_grad:
        return False
    tolerance = max(_TOLERANCE, 8 * torch.finfo(one.dtype).eps) if one.is_floating_point() else 0.0
    one, other = one.detach().double(), other.detach().double()
    largest = float(one.nan_to_num(0.0, 0.0, 0.0).abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=tolerance * largest, equal_nan=True)
