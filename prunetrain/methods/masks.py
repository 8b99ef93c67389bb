"""Masks: which weights of a network stay. Shapes do not change; masked weights are zero.

In: bools by the name of the weight. Out: the same network with zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetrain.channels.sources import Source
from prunetrain.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Masks:
    """`keep[name]`: bool, with the shape of that weight in the state dict; true where it stays. Tensors without a mask stay whole."""

    keep: Mapping[str, Tensor]

    @property
    def total(self) -> int:
        """The number of weights that have a mask."""
        return sum(mask.numel() for mask in self.keep.values())

    @property
    def removed(self) -> int:
        """The number of weights that are masked out."""
        return sum(int((~mask).sum()) for mask in self.keep.values())

    @property
    def sparsity(self) -> float:
        """The share of the weights with a mask that are masked out, in [0, 1]."""
        return self.removed / self.total if self.total else 0.0

    def check_fits(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that the masks fit some weights.

        Raises:
            ConfigError: if they do not.
        """
        for name, mask in self.keep.items():
            if name not in tensors or tensors[name].shape != mask.shape:
                raise ConfigError(f"the masks belong to another network: {name} has no such weight here; use masks made from this network")

    def applied(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a masked state dict; the given one is unchanged."""
        return {name: self._masked(name, tensor) if name in self.keep else tensor for name, tensor in state.items()}

    @torch.no_grad()
    def apply_(self, tensors: Mapping[str, Tensor]) -> None:
        """Mask weights, gradients, or anything else of the same shapes in place; masks whose names are absent are ignored."""
        for name, mask in self.keep.items():
            if name in tensors:
                tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)

    def _masked(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.masked_fill(~self.keep[name].to(tensor.device), 0)

    def cut(self, sources: Mapping[str, Source]) -> "Masks":
        """Return the masks of a smaller network, whose tensors come from `sources`."""
        return Masks({name: source.gather(self.keep[source.name]) for name, source in sources.items() if source.name in self.keep})
