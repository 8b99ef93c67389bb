"""What methods may be told beside the rate, and what they answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from torch import Tensor

from prunetrain.channels.selection import KeepPlan
from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError, unknown_name
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.method_settings import check_share
from prunetrain.methods.masks import Masks

Decision: TypeAlias = Masks | KeepPlan
"""Which weights stay, or which channels."""

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    name: TrainConfig.__dataclass_fields__[name].metadata["choices"] for name in ("scope", "structure", "streams")
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Each method reads what concerns it.

    Args:
        layer_rates: by layer name, rates that differ from the general one; 0 leaves a layer alone.
        scope: masks at a rate in every layer by itself, or over all layers together ("global").
        structure: masks of single weights, whole filters W[o] or whole input slices W[:, i] ("channels").
        streams: spaces of several producers, such as residual streams, stay ("apart"), or are pruned as one ("together").
        norm_share: for fpgm, the share of the removed filters that go by norm; the published mixture is 0.25.
        granularity: kept channels of a space are a multiple of this.
        seed: of the random methods.
        earlier: masks of an earlier round, whose weights stay removed and count as such.

    Raises:
        ConfigError: for a value that an option cannot have.
    """

    layer_rates: Mapping[str, float] = field(default_factory=dict)
    scope: str = "layer"
    structure: str = "weights"
    streams: str = "apart"
    norm_share: float = 0.0
    granularity: int = 1
    seed: int = 0
    earlier: Masks | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(unknown_name(name, getattr(self, name), allowed))
        for layer, rate in self.layer_rates.items():
            check_share(f"the rate of {layer}", rate)
        if not 0 <= self.norm_share <= 1:
            raise ConfigError(f"norm-share must be from 0 to 1, not {self.norm_share}")
        if self.granularity < 1:
            raise ConfigError(f"granularity must be 1 or more, not {self.granularity}")

    def check_fits(self, graph: LayerGraph) -> None:
        """Check that the layers are there.

        Raises:
            ConfigError: for a layer that the network does not have.
        """
        layers = {layer.name for layer in graph.layers}
        for name in self.layer_rates:
            if name not in layers:
                raise ConfigError(unknown_name("layer", name, layers))


class Method(Protocol):
    """A method: a pure function of a network and an amount."""

    def __call__(self, graph: LayerGraph, state: Mapping[str, Tensor], amount: float, options: Options, /) -> Decision:
        """What goes and what stays."""
        ...
