"""Group lasso over the channels of a network, in closed form: no autograd graph, every weight read once for all its norms.

    R = sum over layers of ( sum_o ||W[o]||_2 + sum_i ||W[:, i]||_2 )            PruneTrain, arXiv 1901.09290, equation 2

`slices` uses these groups as they are, one per filter and per input slice. `coupled` uses one group per channel: all its producer filters
and consumer slices together, so that the channels of a residual stream die in all layers at once. Either way every weight is in at most
two groups, one by its output and one by its input channel, so that

    dR/dW[o, i] = W[o, i] * (1 / ||group of o|| + 1 / ||group of i||)

Channels that can never be cut (the network's input and output) have no groups, nor have those that computed weights make or read. Depthwise
convs are not regularised.
"""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

from prunetrain.channels.selection import Bools
from prunetrain.channels.slices import sliced_layers
from prunetrain.channels.spaces import ChannelSpaces
from prunetrain.graph.functions import WEIGHTED
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.regularizers.fused_layers import FusedLayers, can_fuse
from prunetrain.regularizers.penalised_layers import PenalisedLayer, add_to_gradients_, scale_, sum_squares


class GroupLasso:
    """The penalty of a network's weights.

    Args:
        graph: the network.
        spaces: its channel spaces.
        weights: its parameters by name; updated in place by `add_gradient_` and `shrink_`. Layers whose weight is missing have no groups
            and add nothing to other layers' groups.
        groups: "slices" or "coupled".
    """

    def __init__(self, graph: LayerGraph, spaces: ChannelSpaces, weights: Mapping[str, Tensor], *, groups: str) -> None:
        stuck, beside = spaces.frozen_channels(), _beside_computed_weights(graph, spaces)
        frozen = stuck | beside
        self._share = int((~frozen).sum()) / max(1, int((~stuck).sum()))  # of the channels that can be cut, those that may have groups
        self._layers: list[PenalisedLayer] = []
        ids: list[Tensor] = []
        size = 0

        def reserve(name: str, axis: str) -> slice | None:
            nonlocal size
            channel_ids = spaces.ids.get((name, axis))
            if channel_ids is None or frozen[channel_ids].all():
                return None
            ids.append(torch.from_numpy(channel_ids))
            start, size = size, size + len(channel_ids)
            return slice(start, size)

        for layer in sliced_layers(graph):
            weight = weights.get(f"{layer.name}.weight")
            if weight is not None:
                self._layers.append(PenalisedLayer(layer.name, weight, reserve(layer.name, "out"), reserve(layer.name, "in")))
        device = next((tensor.device for tensor in weights.values()), None)
        dtype = reduce(torch.promote_types, (layer.weight.dtype for layer in self._layers), torch.float32)
        self._sums = torch.zeros(size + 1, device=device, dtype=dtype)  # the last stays zero
        stays = torch.zeros(size + 1, dtype=torch.bool)
        stays[:-1] = torch.from_numpy(frozen)[torch.cat(ids)] if ids else False
        self._frozen = stays.to(device) if stays.any() else None  # channels that a layer reads or makes beside others
        self._groups: Tensor | None = None
        if groups == "coupled" and ids:
            numbers, members = _group_members(torch.cat(ids))
            self._groups, self._members = numbers.to(device), [positions.to(device) for positions in members]
        self._fused: FusedLayers | None = None

    def use_kernels(self) -> None:
        """From now on, compute by kernels for all layers at once, if the weights are on a GPU where these work (`fused_layers.py`).

        They add in another order than torch's, so processes that train one network must all use them, or none.
        """
        if self._fused is None and self._sums.dtype == torch.float32 and can_fuse(self._layers):
            self._fused = FusedLayers(self._layers)

    @property
    def has_groups(self) -> bool:
        """Whether anything is penalised."""
        return len(self._sums) > 1

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """R, a scalar."""
        return self._norms(expand=False, frozen=0.0).sum()

    def strength_for(self, ratio: float, loss: Tensor | float) -> float:
        """Return the lambda at which the penalty is the given share of the total loss: lambda = r * loss / ((1 - r) * R).

        Channels beside computed weights count in R, with the mean of the others: else these would take the penalty of a whole network.
        Lambda is 0 where R is.

        Args:
            ratio: lambda R / (loss + lambda R), in [0, 1) (PruneTrain, equation 3).
            loss: the loss without the penalty.
        """
        penalty = float(self.penalty()) / self._share if self.has_groups else 0.0
        return ratio * float(loss) / ((1 - ratio) * penalty) if penalty else 0.0

    @torch.no_grad()
    def add_gradient_(self, strength: float, *, scale: Tensor | None = None) -> None:
        """Add the gradient of strength * R to every weight's `.grad`. Groups that are zero have gradient zero.

        Args:
            strength: lambda.
            scale: a single number on the weights' device that multiplies the gradients; reading it does not synchronise.
        """
        norms = self._norms()
        inverse = torch.where(norms > 0, strength / norms, 0.0)
        if scale is not None:
            inverse *= scale
        if self._fused is None:
            add_to_gradients_(self._layers, inverse)
        else:
            self._fused.add_to_gradients_(inverse)

    @torch.no_grad()
    def shrink_(self, amount: float | Mapping[str, float], *, unless: Tensor | None = None) -> None:
        """Make the proximal step: multiply every group by max(0, 1 - amount / its norm). This makes exact zeros.

        Args:
            amount: one number for all layers, or one by layer name; layers that are missing stay as they are.
            unless: a single bool on the weights' device; if it is true, all weights stay as they are. Reading it does not synchronise.
        """
        amounts = amount if isinstance(amount, Mapping) else {layer.name: amount for layer in self._layers}
        wanted = {value for value in amounts.values() if value > 0}
        if not wanted:
            return
        norms = self._norms()
        for value in wanted:
            factors = (1 - value / norms).clamp_(min=0)
            if unless is not None:
                factors = torch.where(unless, 1.0, factors)
            layers = [layer for layer in self._layers if amounts.get(layer.name) == value]
            if self._fused is not None and len(layers) == len(self._layers):
                self._fused.scale_(factors)
            else:
                scale_(layers, factors)

    def _norms(self, *, expand: bool = True, frozen: float = math.inf) -> Tensor:
        """The norm of every group; with `expand`, at every position of the buffer of sums. `frozen` stands for those of frozen channels."""
        if self._fused is not None and not self._fused.is_current:  # weights were moved, or laid out anew
            self._fused = None
            self.use_kernels()
        if self._fused is None:
            sum_squares(self._layers, self._sums)
        else:
            self._fused.sum_squares(self._sums)
        if self._frozen is not None:
            self._sums.masked_fill_(self._frozen, frozen)
        if self._groups is None:
            return self._sums.sqrt()
        norms = torch.cat([self._sums[positions].sum(1) for positions in self._members]).sqrt()
        return norms[self._groups] if expand else norms


def _beside_computed_weights(graph: LayerGraph, spaces: ChannelSpaces) -> Bools:
    """The channels that computed weights make or read.

    Their norm would say little, as what is computed from them may be normalised. So they are not penalised, and neither are weights of
    layers for the same channels, which would take the whole penalty.
    """
    beside = np.zeros(spaces.num_channels, dtype=bool)
    for value, step in graph.results():
        if step.target in WEIGHTED:
            for operand in (value, step["input"]):
                beside[spaces.channels_of(operand)] = True
    return beside


def _group_members(ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Find the members of each group in the buffer of sums, so that all devices and processes add them in the same order.

    Adding them by `index_add_` has no fixed order on a GPU, and processes that train one network would drift apart.

    Args:
        ids: the id of each position's group, int64 (positions,).

    Returns:
        The number of each position's group, (positions,); and for groups of up to 1, 2, 4, 8 ... members a table of their positions, one
        row per group, in the order of the numbers. Rows are padded with the position after the last.
    """
    _, groups, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    widths = 2 ** counts.double().log2().ceil().long()
    by_width = torch.argsort(widths, stable=True)
    numbers = torch.empty_like(by_width).scatter_(0, by_width, torch.arange(len(by_width)))[groups]
    order = torch.cat([torch.argsort(numbers, stable=True), torch.tensor([len(ids)])])
    counts = counts[by_width]
    starts = counts.cumsum(0) - counts
    tables = []
    for width in torch.unique(widths).tolist():
        own = widths[by_width] == width
        columns = torch.arange(width)
        places = torch.where(columns < counts[own][:, None], starts[own][:, None] + columns, len(ids))
        tables.append(order[places])
    return numbers, tables


def proximal_step_size(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """How far one proximal step moves a norm at a lambda of 1: lr, or lr / (1 - momentum) with heavy-ball momentum.

    This is the total effect of one gradient over all later steps. Adam, Muon and similar optimizers average their gradients, so that the
    total is lr.

    Args:
        optimizer: decides what `momentum` means.
        group: one of its parameter groups.
    """
    momentum = 0.0 if isinstance(optimizer, Muon) else float(group.get("momentum", 0.0))
    dampening = float(group.get("dampening", 0.0))
    return float(group["lr"]) * (1 - dampening) / (1 - momentum)
