"""How much of a network can be cut at all: its MACs in channels that may go, the fewest that can be left, and what has to stay.

In: a graph and its channel spaces. Out: a `Coverage`. A share of 100% means that every MAC can be cut, not that all can at once: how small
the network can get is `least_macs`.
"""

from dataclasses import dataclass

import numpy as np

from prunetrain.channels.rewriting import rewrite
from prunetrain.channels.selection import Bools, Candidates, make_plan
from prunetrain.channels.spaces import ChannelSpace, ChannelSpaces, Role
from prunetrain.graph.costs import costs, step_macs
from prunetrain.graph.layergraph import LayerGraph, Step, Value


@dataclass(frozen=True)
class StuckOutputs:
    """A conv with `channels` outputs of which `frozen` must stay, and why."""

    layer: str
    frozen: int
    channels: int
    why: str


@dataclass(frozen=True)
class StuckSpace:
    """A space that cannot be cut: its name, its channels, and why. Channels that can only go together are counted individually."""

    name: str
    channels: int
    why: str


@dataclass(frozen=True)
class Coverage:
    """MACs of one image: all, those in channels that may go, and those left after cutting as many channels as possible at once.

    `stuck` lists the convs with frozen outputs in forward order, each once; `spaces` the spaces that cannot be cut.
    """

    macs: int
    cuttable_macs: float
    least_macs: int
    stuck: tuple[StuckOutputs, ...]
    spaces: tuple[StuckSpace, ...]

    @property
    def share(self) -> float:
        """The share of the MACs that can be cut, 0 to 1; 0 for a network without any."""
        return self.cuttable_macs / self.macs if self.macs else 0.0

    @property
    def least_share(self) -> float:
        """The smallest share of the MACs that can be left, 0 to 1; 1 for a network without any."""
        return self.least_macs / self.macs if self.macs else 1.0


def measure_coverage(graph: LayerGraph, spaces: ChannelSpaces) -> Coverage:
    """Return how many of a network's MACs are in channels that can be cut.

    For a layer this is 1 - i * o of its MACs, where i and o are the shares of its inputs and outputs that stay: those of frozen spaces, and
    of spaces that are one channel, which never goes. An axis without channels stays. The same holds for functions with weights.

    Args:
        graph: the network.
        spaces: its channel spaces.
    """
    grouping = {layer.name for layer in graph.layers if layer.kind == "GroupNorm"}
    reasons = [space.frozen or _why_indivisible(spaces, space, grouping) for space in spaces.spaces]
    stays = np.array([bool(why) for why in reasons], dtype=bool)[spaces.space_of]
    cost = costs(graph)
    cuttable = sum(
        macs * (1 - _staying_weight_share(spaces, value, step, stays))
        for macs, (value, step) in zip(step_macs(graph), graph.results(), strict=True)
        if macs and value.index - 1 not in graph.in_training_only
    )
    convs = dict.fromkeys(row.name for row in cost.layers if row.kind in ("Conv1d", "Conv2d", "ConvTranspose2d"))
    stuck = (_find_stuck_outputs(spaces, name, stays, reasons) for name in convs)
    stuck_spaces = (
        StuckSpace(space.name, len(space.channels) if space.frozen else _tied_channel_count(spaces, space), why)
        for space, why in zip(spaces.spaces, reasons, strict=True)
        if why and any(space.members.values())
    )
    return Coverage(
        cost.macs, cuttable, least_macs(graph, spaces), tuple(found for found in stuck if found is not None), tuple(stuck_spaces)
    )


def least_macs(graph: LayerGraph, spaces: ChannelSpaces) -> int:
    """MACs of one image after cutting as many channels as possible at once: one stays in each space, and in each result.

    Weights are not considered: those that are not trained, and biases in front of a LayerNorm, may keep more. So may a function in front of
    a LayerNorm or another reduction over the channels that maps zero to something else, such as sigmoid.
    """
    everything = Candidates.from_removable(spaces, np.ones(spaces.num_channels, dtype=bool), np.zeros(spaces.num_channels))
    return costs(rewrite(graph, make_plan(everything)).graph).macs


def _why_indivisible(spaces: ChannelSpaces, space: ChannelSpace, grouping: set[str]) -> str:
    """Why a space is one single channel, given the GroupNorms of the network; "" if it has several."""
    if len(space.channels) > 1:
        return ""
    if _tied_channel_count(spaces, space) == 1:
        return "one channel of each space stays"
    return f"{'groups of GroupNorm' if grouping.intersection(space.members[Role.CARRIER]) else 'the layers'} tie them all together"


def _tied_channel_count(spaces: ChannelSpaces, space: ChannelSpace) -> int:
    """The largest number of a layer's channels that the single channel of a space stands for."""
    made = [ids for axis, ids in spaces.ids.items() if spaces.roles[axis] is not Role.CONSUMER]
    return max([1, *(int((ids == space.channels[0]).sum()) for ids in made)])


def _staying_weight_share(spaces: ChannelSpaces, value: Value, step: Step, stays: Bools) -> float:
    """The share of a layer's or function's weights that connect inputs that stay with outputs that stay."""
    if step.layer is None:
        ids = [spaces.channels_of(step["input"]), spaces.channels_of(value)]
    else:
        ids = [spaces.ids[step.layer, axis] for axis in ("in", "out") if (step.layer, axis) in spaces.ids]
    return float(np.prod([stays[found].mean() for found in ids if len(found)]))


def _find_stuck_outputs(spaces: ChannelSpaces, layer: str, stays: Bools, reasons: list[str]) -> StuckOutputs | None:
    ids = spaces.ids[layer, "out"]
    held = ids[stays[ids]]
    return StuckOutputs(layer, len(held), len(ids), reasons[spaces.space_of[held[0]]]) if len(held) else None
