"""How much of a network can be cut at all: its MACs in channels that are not frozen, and the convs that must keep outputs.

In: a graph and its channel spaces. Out: a `Coverage`. A share of 100% says that no MAC is out of reach, not that all could go at once.
"""

from dataclasses import dataclass

import numpy as np

from prunetrain.channels.selection import Bools
from prunetrain.channels.spaces import ChannelSpaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph


@dataclass(frozen=True)
class StuckOutputs:
    """A conv of whose `channels` outputs `frozen` must stay, and why."""

    layer: str
    frozen: int
    channels: int
    why: str


@dataclass(frozen=True)
class Coverage:
    """MACs of one image: all, and those that go when every channel goes that may. `stuck` lists convs in forward order, each once."""

    macs: int
    cuttable_macs: float
    stuck: tuple[StuckOutputs, ...]

    @property
    def share(self) -> float:
        """Of the MACs that can be cut, 0 to 1; 0 for a network without any."""
        return self.cuttable_macs / self.macs if self.macs else 0.0


def cuttable_macs(graph: LayerGraph, spaces: ChannelSpaces) -> Coverage:
    """What of a network's MACs lies in channels that can be cut.

    Of a layer this is 1 - i * o of its MACs, where i and o are the frozen shares of its inputs and outputs; an axis without channels counts
    as frozen, and so do convolutions and products with computed weights.

    Args:
        graph: the network.
        spaces: its channel spaces.
    """
    frozen = spaces.frozen_channels()
    cost = costs(graph)
    cuttable = sum(row.macs * (1 - _frozen(spaces, row.layer.name, frozen)) for row in cost.layers if row.macs)
    convs = dict.fromkeys(row.layer.name for row in cost.layers if row.layer.is_convolution)
    stuck = (_stuck(spaces, name, frozen) for name in convs)
    return Coverage(cost.macs, cuttable, tuple(found for found in stuck if found is not None))


def _frozen(spaces: ChannelSpaces, layer: str, frozen: Bools) -> float:
    """The share of a layer's weights between frozen inputs and frozen outputs."""
    ids = [spaces.ids[layer, axis] for axis in ("in", "out") if (layer, axis) in spaces.ids]
    return float(np.prod([frozen[found].mean() for found in ids]))


def _stuck(spaces: ChannelSpaces, layer: str, frozen: Bools) -> StuckOutputs | None:
    ids = spaces.ids[layer, "out"]
    held = ids[frozen[ids]]
    return StuckOutputs(layer, len(held), len(ids), spaces.spaces[spaces.space_of[held[0]]].frozen) if len(held) else None
