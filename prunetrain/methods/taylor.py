"""The first-order Taylor importance of channels, gathered from the gradients that training computes anyway.

In: a network in training. Out: for each channel, how much the loss would change without it, to first order. Removing a channel moves a
gate, a factor on it, from one to zero. The gate's gradient is the sum of w * dL/dw over the weights that scale the channel, and its square,
averaged over training steps, is the importance: Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance estimation for neural network
pruning", 2019 (arXiv 1906.10771).

Gates are put behind normalisations, as there, so that only scales and shifts are read, a few thousand numbers. For channels that no
normalisation reads they are put behind the layers with a bias that make them. Where a channel fills several positions of a layer, such as
features after flattening, there is a gate at each.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunetrain.channels.slices import sliced_layers
from prunetrain.channels.spaces import Axis, find_spaces
from prunetrain.graph.layergraph import Layer, LayerGraph
from prunetrain.methods.training_method import IMPORTANCE, MethodState, TrainingMethod

_NORMS: Final = ("BatchNorm1d", "BatchNorm2d", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm2d")


class TaylorImportance(TrainingMethod):
    """A `TrainingMethod` that changes nothing and adds up squares of gate gradients, layer by layer, until `reset_`.

    Its state has the shape of each layer's bias, or of its scale if it has no bias, so a cut can gather it.

    Args:
        graph: the network.
        weights: its parameters by name; those that are missing, or have no gradient, add nothing.
    """

    def __init__(self, graph: LayerGraph, weights: Mapping[str, Tensor]) -> None:
        spaces = find_spaces(graph)
        self._num_channels = spaces.num_channels
        self._places: dict[str, slice] = {}  # where the sums hold a layer, by the tensor whose shape they have
        self._ids: list[npt.NDArray[np.int64]] = []
        self._factors: list[Tensor] = []  # (channels,) each: scales, shifts, biases
        self._filters: list[tuple[slice, Tensor]] = []  # (out, in, ...) each
        positions: list[Tensor] = []

        def add(layer: Layer, axis: Axis, names: Sequence[str]) -> slice | None:
            """Make room for a layer's gates, and read its tensors of one number per channel."""
            found = {name: weights[name] for name in names if name in weights}
            if axis not in spaces.ids or not found or has_gate[spaces.ids[axis]].all():
                return None
            start, size = sum(map(len, self._ids)), len(spaces.ids[axis])
            self._ids.append(spaces.ids[axis])
            for tensor in found.values():
                self._factors.append(tensor)
                positions.append(torch.arange(start, start + size))
            place = self._places[next(iter(found))] = slice(start, start + size)
            return place

        has_gate = spaces.frozen_channels()  # these need none
        norms = [layer for layer in graph.layers if layer.kind in _NORMS]
        for layer in norms:
            add(layer, (layer.name, "features"), (f"{layer.name}.bias", f"{layer.name}.weight"))
        for layer in norms:  # also those without scales: what they read may be scaled at will, so its gates' gradients are noise
            has_gate[spaces.ids.get((layer.name, "features"), [])] = True
        for layer in sliced_layers(graph):
            place = add(layer, (layer.name, "out"), (f"{layer.name}.bias",))
            if place is not None and f"{layer.name}.weight" in weights:
                self._filters.append((place, weights[f"{layer.name}.weight"]))
        without = np.setdiff1d(np.arange(spaces.num_channels), np.concatenate([*self._ids, []]))
        self._comparable = ~np.isin(spaces.space_of, spaces.space_of[without])  # where the others have a gate as well
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in self._factors), torch.float32)
        device = self._factors[0].device if self._factors else None
        self._positions = torch.cat(positions).to(device) if positions else torch.empty(0, dtype=torch.int64)
        self._sums = torch.zeros(sum(map(len, self._ids)), dtype=dtype, device=device)

    def after_backward_(self, loss: Tensor) -> None:
        """Add the squares of this step's gate gradients."""
        self.gather_()

    @torch.no_grad()
    def gather_(self, *, scale: Tensor | None = None) -> None:
        """Add the squares of the gate gradients; those that overflow count as zero.

        Args:
            scale: what the gradients are multiplied by (a GradScaler's factor), a scalar on their device; None stands for one.
        """
        if not self._places:
            return
        if self._sums.device != self._factors[0].device:  # the network has moved
            self._sums, self._positions = self._sums.to(self._factors[0].device), self._positions.to(self._factors[0].device)
        kind = self._sums.dtype
        products = torch.cat(self._factors).to(kind) * torch.cat([_gradient(tensor) for tensor in self._factors]).to(kind)
        gates = torch.zeros_like(self._sums).index_add_(0, self._positions, products)
        for place, weight in self._filters:
            gates[place] += (weight.to(kind) * _gradient(weight).to(kind)).sum(tuple(range(1, weight.dim())))
        if scale is not None:
            gates /= scale
        self._sums += gates.square_().nan_to_num_(nan=0.0, posinf=0.0)

    def reset_(self) -> None:
        """Begin again."""
        self._sums.zero_()

    def of_channels(self) -> npt.NDArray[np.float64]:
        """The importance of every channel (`ChannelSpaces.ids`), up to a common factor: the root of its layers' mean squares, added up.

        It is zero in spaces that have a channel without a gate, with which the others could not be compared.
        """
        squares, sums = np.zeros(self._num_channels), self._sums.double().cpu().numpy()
        for place, ids in zip(self._places.values(), self._ids, strict=True):
            squares += np.bincount(ids, sums[place], minlength=self._num_channels)
        return np.sqrt(squares * self._comparable)

    def state_dict(self) -> MethodState:
        """The sums, by the tensor whose shape they have."""
        return {"tensors": {IMPORTANCE: {name: self._sums[place].clone() for name, place in self._places.items()}}, "numbers": {}}

    def load_state_dict(self, state: MethodState) -> None:
        """Continue from sums; what they lack begins at zero.

        Raises:
            ValueError: if they are not sums of squares for these layers.
        """
        saved = state["tensors"].get(IMPORTANCE, {})
        for name, place in self._places.items():
            if name in saved:
                if saved[name].shape != self._sums[place].shape:
                    raise ValueError(f"the importance of {name} does not fit it")
                self._sums[place] = saved[name].to(self._sums)
        if not ((self._sums >= 0) & self._sums.isfinite()).all():
            raise ValueError("the importance of a channel is not a finite number of at least 0")


def _gradient(tensor: Tensor) -> Tensor:
    """A parameter's gradient; zeros if it has none."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
