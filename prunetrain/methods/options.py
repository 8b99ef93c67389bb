"""The options of the methods besides the rate, and the types of their decisions."""

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
    """Options of all methods; each method reads those that concern it.

    Args:
        layer_rates: by layer name, rates that differ from the general one; 0 leaves a layer alone.
        scope: whether the rate applies to every layer separately ("layer") or to all layers together ("global").
        structure: masks of single weights ("weights"), whole filters W[o] ("filters") or whole input slices W[:, i] ("channels").
        streams: spaces with several producers, such as residual streams, stay whole ("apart") or are pruned as one ("together").
        norm_share: for fpgm, the share of the removed filters that go by norm; the published mixture is 0.25.
        granularity: every space keeps a multiple of this many channels.
        seed: seed of the random methods.
        earlier: masks of an earlier round, whose weights stay removed and count as removed.

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
        """Check that the network has the layers of `layer_rates`.

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
        """Decide what goes and what stays."""
        ...
