"""Masks: which weights of a network stay. Shapes are unchanged, what goes is zero.

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
    """`keep[name]`: bool, shaped like the weight of that name in the state dict; true where it stays. Tensors without a mask stay whole."""

    keep: Mapping[str, Tensor]

    @property
    def total(self) -> int:
        """How many weights have a mask."""
        return sum(mask.numel() for mask in self.keep.values())

    @property
    def removed(self) -> int:
        """How many of these go."""
        return sum(int((~mask).sum()) for mask in self.keep.values())

    @property
    def sparsity(self) -> float:
        """The share of the weights with a mask that goes, in [0, 1]."""
        return self.removed / self.total if self.total else 0.0

    def check_fits(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that these are masks of some weights.

        Raises:
            ConfigError: if they are not.
        """
        for name, mask in self.keep.items():
            if name not in tensors or tensors[name].shape != mask.shape:
                raise ConfigError(f"the masks are of another network: {name} has no such mask here; use masks made from this network")

    def applied(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with zeros where weights go; the given one is unchanged."""
        return {name: self._masked(name, tensor) if name in self.keep else tensor for name, tensor in state.items()}

    @torch.no_grad()
    def apply_(self, tensors: Mapping[str, Tensor]) -> None:
        """Zeros where weights go, in place: weights, gradients, or anything else shaped like them; names that are absent are left out."""
        for name, mask in self.keep.items():
            if name in tensors:
                tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)

    def _masked(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.masked_fill(~self.keep[name].to(tensor.device), 0)

    def cut(self, sources: Mapping[str, Source]) -> "Masks":
        """The masks of a smaller network, whose tensors came from `sources`."""
        return Masks({name: source.gather(self.keep[source.name]) for name, source in sources.items() if source.name in self.keep})
