"""Functions that define their own gradient (`torch.autograd.Function`).

Many do so only to save memory or time, such as the Swish of several EfficientNets: their gradient is the one that autograd derives from
their forward pass. These are traced as that. All others, such as straight-through estimators, are not what a network file can express.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd import Function

_TOLERANCE = 1e-3  # relative to the largest number
_MAGNITUDES = (0.1, 1.0, 30.0)  # of inputs and of gradients: a function that clips either behaves differently for large ones


class _Context:
    """What a forward pass gets as `ctx`; nothing that it keeps is needed."""

    def __init__(self, inputs: int) -> None:
        self.needs_input_grad = (True,) * inputs

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep nothing."""

    save_for_forward = mark_dirty = mark_non_differentiable = save_for_backward

    def set_materialize_grads(self, value: bool) -> None:
        """Change nothing."""


def run_forward(function: type[Function], args: Sequence[Any]) -> Any:
    """Run the forward pass of a function as ordinary code."""
    if function.setup_context is not Function.setup_context:
        return function.forward(*args)
    return function.forward(_Context(len(args)), *args)


def has_gradient_of_forward(function: type[Function], apply: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether a function has the gradient that autograd derives from its forward pass, compared on random tensors of several magnitudes.

    Args:
        function: the function.
        apply: calls it as torch does.
        args: its arguments; of tensors only shapes and types are used.
    """
    with torch._C.DisableTorchFunction(), unset_fake_temporarily(), torch.random.fork_rng([]):
        try:
            return all(_agrees(function, apply, args, magnitude) for magnitude in _MAGNITUDES)
        except Exception:  # whatever its code raises, as where it needs a GPU
            return False


def _agrees(function: type[Function], apply: Callable[..., Any], args: Sequence[Any], magnitude: float) -> bool:
    torch.manual_seed(0)
    inputs = [magnitude * torch.randn(arg.shape, dtype=arg.dtype) if isinstance(arg, Tensor) else arg for arg in args]
    wanted = _results_and_gradients(apply, inputs, magnitude)
    found = _results_and_gradients(lambda *args: run_forward(function, args), inputs, magnitude)
    return len(wanted) == len(found) and all(map(_close, wanted, found))


def _results_and_gradients(call: Callable[..., Any], inputs: Sequence[Any], magnitude: float) -> list[Tensor]:
    """A function's tensors for some inputs, followed by the gradients of these for random gradients of the former."""
    leaves = [value.clone().requires_grad_() if isinstance(value, Tensor) else value for value in inputs]
    torch.manual_seed(1)
    returned = call(*(leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves))  # which it may change in place
    results = [tensor for tensor in (returned if isinstance(returned, tuple) else (returned,)) if isinstance(tensor, Tensor)]
    torch.manual_seed(2)
    along = [magnitude * torch.randn_like(result) for result in results]
    trained = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    gradients = torch.autograd.grad(results, trained, along, allow_unused=True)
    return [*results, *(torch.zeros_like(leaf) if one is None else one for leaf, one in zip(trained, gradients, strict=True))]


def _close(one: Tensor, other: Tensor) -> bool:
    largest = float(one.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if one.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True)
