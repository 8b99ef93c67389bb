"""Which multiple to round each channel space to, from the times of single layers.

In: what can be cut, and a function that says how long a layer takes. Out: a granularity for every space. The modelled time of a network
is the sum over its layers, where the time of each depends on the sizes of the spaces that it reads and makes. In two sweeps, one space
after another takes the multiple that makes its layers fastest given its neighbours' present choices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunetrain.channels.rewriting import AXES, resized
from prunetrain.channels.selection import KEEP_ALL, Bools
from prunetrain.channels.slicing import Proposal
from prunetrain.channels.spaces import ChannelSpaces, Ids
from prunetrain.graph.layergraph import Layer, Value
from prunetrain.graph.shapes import infer_shapes
from prunetrain.graph.windows import Shape

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_START = 16  # suits most hardware; every space starts at this
_SWEEPS = 2
_TOLERANCE = 1.02  # layers this close count as equally fast

TimeOf = Callable[[Layer | None, Shape], float]


@dataclass(frozen=True)
class _TimedStep:
    """A step whose time depends on channels: its layer (None for a function), the ids of its axes, and its input's shape and ids."""

    layer: Layer | None
    axes: dict[str, Ids]
    shape: Shape
    grid: Ids

    def seconds(self, keep: Bools, time_of: TimeOf) -> float:
        """The step's time with the channels that are kept."""
        shape = list(self.shape)
        for dim, size in enumerate(self.grid.shape):
            if size > 1:
                shape[dim] = int(keep[self.grid].sum())
        layer = self.layer and resized(self.layer, {axis: int(keep[ids].sum()) for axis, ids in self.axes.items()})
        return time_of(layer, tuple(shape))

    def spaces(self, spaces: ChannelSpaces) -> set[int]:
        """The numbers of the spaces that it depends on."""
        parts = [self.grid.ravel(), *self.axes.values()]
        return set(np.unique(spaces.space_of[np.concatenate(parts)]).tolist())


def choose_by_layer(proposal: Proposal, time_of: TimeOf, *, should_stop: Callable[[], bool] = lambda: False) -> dict[str, int]:
    """Choose the granularity of every space that can lose channels, by its name.

    Args:
        proposal: what can be cut.
        time_of: seconds of a layer on an input of a shape; None stands for an activation function.
        should_stop: called before every space; once it returns True, the choices made so far are returned.
    """
    spaces = proposal.candidates.spaces
    kept = {multiple: proposal.plan(multiple).keep for multiple in (*MULTIPLES, KEEP_ALL)}
    options = {number: _options(space.channels, kept) for number, space in enumerate(spaces.spaces)}
    free = [number for number, found in options.items() if len(found) > 1]
    calls: dict[int, list[_TimedStep]] = {number: [] for number in options}
    for call in _timed_steps(proposal):
        for number in call.spaces(spaces):
            calls[number].append(call)
    choice = {number: max(option for option in options[number] if option <= _START) for number in free}
    keep = kept[1].copy()

    def set_to(number: int, multiple: int) -> None:
        channels = spaces.spaces[number].channels
        keep[channels] = kept[multiple][channels]

    for number in free:
        set_to(number, choice[number])
    for _ in range(_SWEEPS):
        before = dict(choice)
        for number in free:
            if should_stop():
                return {spaces.spaces[number].name: multiple for number, multiple in choice.items()}
            seconds = {}
            for multiple in options[number]:
                set_to(number, multiple)
                seconds[multiple] = sum(call.seconds(keep, time_of) for call in calls[number])
            choice[number] = _smallest_fast_multiple(seconds)
            set_to(number, choice[number])
        if choice == before:
            break
    return {spaces.spaces[number].name: multiple for number, multiple in choice.items()}


def _options(channels: Ids, kept: dict[int, Bools]) -> list[int]:
    """The multiples that lead to different channel counts of a space, from the fewest channels to the most."""
    found: dict[int, int] = {}
    for multiple, keep in kept.items():
        found.setdefault(int(keep[channels].sum()), multiple)
    return [found[count] for count in sorted(found)]


def _smallest_fast_multiple(seconds: dict[int, float]) -> int:
    """The first, and so the one with the fewest channels, of the options that are about as fast as the fastest."""
    fastest = min(seconds.values())
    return next(multiple for multiple, time in seconds.items() if time <= fastest * _TOLERANCE)


def _timed_steps(proposal: Proposal) -> Sequence[_TimedStep]:
    """The steps of the network, each with what its time depends on."""
    graph, spaces = proposal.graph, proposal.candidates.spaces
    layers = {layer.name: layer for layer in graph.layers}
    shapes = infer_shapes(graph)
    calls = []
    for _, step in graph.results():
        operand = step.operands()[0]
        if isinstance(operand, Value):
            axes = {axis: spaces.ids[step.layer, axis] for axis in AXES if step.layer and (step.layer, axis) in spaces.ids}
            layer = layers[step.layer] if step.layer else None
            calls.append(_TimedStep(layer, axes, shapes[operand.index], spaces.values[operand.index]))
    return calls
