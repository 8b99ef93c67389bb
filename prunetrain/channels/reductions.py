"""Reductions over the channels: LayerNorm, GroupNorm with a single group, a mean, maximum or softmax over the channels, a conv over them.

In: a graph and its channel spaces. Out: what each reduction reads, and which tensors a cut pads for it (`rewriting.py`).

A reduction reads all channels of its input at once, so leaving one out would change the others. A removed channel therefore still counts in
it, as the zero that it was: the reduction gets an input of the old length, which is what is left, padded with zeros.

An input that was itself computed from a reduction, such as the `x - mean` of a variance, is not zero where `x` is. There `x` is padded,
and the steps between `x` and the reduction run again at the old length. So a channel can go only if it is zero where the padding is.

A matrix product that sums up the channels of both operands needs no padding: what is left out of one is left out of the other. The first
must be zero there, which makes the product zero.

A conv or linear map with a computed weight (`computed_weights.py`) counts as a reduction over its inputs, but gets a smaller weight instead
of padding. What it leaves out must be zero where it reads it.

Where several channels are exactly zero and that is the maximum, torch.max gives one of them the gradient, perhaps another than before.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from prunetrain.channels.grids import Shapes
from prunetrain.channels.spaces import ChannelSpaces
from prunetrain.graph.functions import FAMILY_OF, WEIGHTED, Family
from prunetrain.graph.layergraph import Layer, LayerGraph, Operand, Step, Value


def reads_all_channels(layer: Layer) -> bool:
    """Whether a normalisation reduces over its channels: its weights keep their length when channels go."""
    return layer.kind in ("LayerNorm", "RMSNorm") or (layer.kind == "GroupNorm" and layer["num_groups"] == 1)


class Reductions:
    """The reductions of a graph, and which of the tensors behind their inputs are padded."""

    def __init__(self, graph: LayerGraph, spaces: ChannelSpaces, shapes: Shapes) -> None:
        self._graph = graph
        self._spaces = spaces
        self._shapes = shapes
        self._recomputed: set[Operand] = set()
        for value, step in graph.results():
            if self._recomputes(step):
                self._recomputed.add(value)

    def of(self, value: Value) -> tuple[Operand, int] | None:
        """The input that the step of a value reduces over its channels, and their dimension, counted from the end (-1 is the last)."""
        dim = self._spaces.reductions.get(value.index)
        if dim is None:
            return None
        source = self._graph.steps[value.index - 1].operands()[0]
        return (source, dim - len(self._shapes.of(source))) if self.has_channels(source) else None

    def must_be_zero(self) -> npt.NDArray[np.bool_]:
        """For every channel, whether it can go only if it is zero: it is reduced over, or passes through a matrix product."""
        read = [found[0] for index in self._spaces.reductions if (found := self.of(Value(index))) is not None]
        read += [operand for step in self._graph.steps if step.target == "@" for operand in step.operands() if self.has_channels(operand)]
        found_in = np.zeros(self._spaces.num_channels, dtype=bool)
        for operand in read:
            found_in[self._spaces.channels_of(operand)] = True
        return found_in

    def has_channels(self, operand: Operand) -> bool:
        """Whether a result or declared tensor holds more than one channel."""
        return self._spaces.values[operand.index].size > 1 if isinstance(operand, Value) else operand.name in self._spaces.dims

    def is_recomputed(self, operand: Operand) -> bool:
        """Whether a result is computed again from padded operands where a reduction reads it; otherwise it is padded itself."""
        return operand in self._recomputed

    def left_out(self, value: Value) -> Iterator[Operand]:
        """The tensors whose channels must be zero where they are left out of the reduction that makes a value."""
        step = self._graph.steps[value.index - 1]
        source = step.operands()[0]
        if step.target in (*WEIGHTED, "@"):
            yield source
            return
        pending, seen = [source], {source}
        while pending:
            found = pending.pop()
            if not isinstance(found, Value) or found not in self._recomputed:
                yield found
                continue
            behind = {other for other in self._graph.steps[found.index - 1].operands() if self.has_channels(other)} - seen
            pending += behind
            seen |= behind

    def _recomputes(self, step: Step) -> bool:
        """Whether a step's result may differ from zero where the channels of its operands were zero before a reduction."""
        if step.layer is not None or FAMILY_OF[step.target] not in (Family.ELEMENTWISE, Family.BINARY):
            return False
        channels = [operand for operand in step.operands() if self.has_channels(operand)]
        recomputed = [operand in self._recomputed for operand in channels]
        if step.target == "*":  # zero where any operand is
            return bool(channels) and all(recomputed)
        shared = any(isinstance(operand, Value) and not self.has_channels(operand) for operand in step.operands())
        return any(recomputed) or (bool(channels) and shared)
