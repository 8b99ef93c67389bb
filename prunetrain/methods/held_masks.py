"""Hold masks while a network trains: for retraining after pruning, and for sparse training from scratch.

In: parameters and their masks. Out: parameters that are zero where the masks say so after every step, whatever momentum and weight decay
add. The others train as if the masked ones did not exist, which affect neither gradients nor optimizer state.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunetrain.methods.masks import Masks
from prunetrain.methods.training_method import KEEP, MethodState, TrainingMethod


class HeldMasks(TrainingMethod):
    """A `TrainingMethod` that masks the weights immediately, and again after every step.

    Args:
        weights: parameters by their names in the state dict; changed in place.
        masks: the weights that stay.

    Raises:
        ConfigError: if the masks belong to another network.
    """

    def __init__(self, weights: Mapping[str, Tensor], masks: Masks) -> None:
        self._weights = weights
        self._hold(masks)

    @property
    def masks(self) -> Masks:
        return self._masks

    def _hold(self, masks: Masks) -> None:
        masks.check_fits(self._weights)
        self._masks = Masks({name: mask.to(self._weights[name].device) for name, mask in masks.keep.items()})
        self._masks.apply_(self._weights)
        self._held = [self._weights[name] for name in self._masks.keep]
        # Like the weights, so that a GPU multiplies all of them in a few kernels.
        self._factors = [torch.empty_like(self._weights[name]).copy_(mask) for name, mask in self._masks.keep.items()]

    @torch.no_grad()
    def after_backward_(self, loss: Tensor) -> None:
        """Zero the gradients of masked weights, so that they add nothing to momentum or to the gradient norm."""
        pairs = [(weight.grad, factor) for weight, factor in zip(self._held, self._factors, strict=True) if weight.grad is not None]
        if pairs:
            torch._foreach_mul_([gradient for gradient, _ in pairs], [factor for _, factor in pairs])

    @torch.no_grad()
    def after_step_(self, optimizer: Optimizer, skipped: Tensor | None = None) -> None:
        """Zero the masked weights that older optimizer state may have moved."""
        if self._held:
            torch._foreach_mul_(self._held, self._factors)

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """`sparsity`, the share of zeros among the weights with a mask; nothing if there are no masks, as after a cut."""
        if not self._masks.keep:
            return {}
        return {"sparsity": sum(int((weight == 0).sum()) for weight in self._held) / self._masks.total}

    def state_dict(self) -> MethodState:
        """The masks."""
        return {"tensors": {KEEP: dict(self._masks.keep)}, "numbers": {}}

    def load_state_dict(self, state: MethodState) -> None:
        """Hold the masks of a state."""
        self._hold(Masks(state["tensors"][KEEP]))
