"""The weights that a group lasso penalises, and what it needs of them: the sums of squares of their groups, and scaling them by group."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PenalisedLayer:
    """A weight (out, in, ...), and where the buffer of sums holds those of its filters and input slices; None where it has no groups."""

    name: str
    weight: Tensor
    filters: slice | None
    inputs: slice | None

    @property
    def has_groups(self) -> bool:
        """Whether anything of the weight is penalised."""
        return self.filters is not None or self.inputs is not None

    def combine_axes(self, numbers: Tensor, *, product: bool) -> Tensor | None:
        """Add or multiply the numbers of the filters and input slices to (out, in, 1, ...), which broadcasts over the weight.

        Args:
            numbers: one for each position of the buffer of sums.
            product: whether to multiply.

        Returns:
            None for a layer without groups.
        """
        window = (1,) * (self.weight.dim() - 2)
        rows = None if self.filters is None else numbers[self.filters].view(-1, 1, *window)
        columns = None if self.inputs is None else numbers[self.inputs].view(1, -1, *window)
        if rows is None or columns is None:
            return columns if rows is None else rows
        return rows * columns if product else rows + columns


def sum_squares(layers: Sequence[PenalisedLayer], sums: Tensor) -> None:
    """Write the sums of squares of all filters and input slices into the buffer of sums; its type is the one to add in."""
    for layer in layers:
        if not layer.has_groups:
            continue
        squares = layer.weight.detach().to(sums.dtype).square()
        if squares.dim() > 2:
            squares = squares.flatten(2).sum(2)  # (out, in); far faster than reducing two outer dimensions at once
        if layer.filters is not None:
            torch.sum(squares, 1, out=sums[layer.filters])
        if layer.inputs is not None:
            torch.sum(squares, 0, out=sums[layer.inputs])


@torch.no_grad()
def add_to_gradients_(layers: Sequence[PenalisedLayer], numbers: Tensor) -> None:
    """Add every weight times the numbers of its filter and its input slice, added up, to its gradient, if it has one."""
    for layer in layers:
        factor = layer.combine_axes(numbers, product=False)
        if factor is not None and layer.weight.grad is not None:
            layer.weight.grad.addcmul_(layer.weight, factor.to(layer.weight.grad.dtype))


@torch.no_grad()
def scale_(layers: Sequence[PenalisedLayer], numbers: Tensor) -> None:
    """Multiply all filters and input slices by the numbers at their positions of the buffer of sums."""
    for layer in layers:
        factor = layer.combine_axes(numbers, product=True)
        if factor is not None:
            layer.weight.mul_(factor)
