"""Channel gating: each block of a residual stream reads and writes only the channels that it uses (PruneTrain, arXiv 1901.09290, 4.2).

In: a network whose stream has channels that are dead for some blocks and alive for others, so that no cut can remove them. Out: the same
function, with smaller layers at the ends of the blocks. A layer that has dead slices reads only the other channels of the stream, by
`torch.index_select`; a branch with dead filters is added only to the other channels, by `torch.index_add`. What a dead filter still adds,
a constant from its BatchNorm, stays as a declared parameter.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prunetrain.channels.constants import Constants, find_constants
from prunetrain.channels.editing import rebuild_graph
from prunetrain.channels.grids import Shapes
from prunetrain.channels.slices import LayerSlices, measure_slices
from prunetrain.channels.sources import NEW, Source
from prunetrain.channels.spaces import ChannelSpaces, Ids, Role, find_spaces
from prunetrain.graph.free_names import free_name
from prunetrain.graph.layergraph import Attribute, Declared, Layer, LayerGraph, Operand, Step, Value

_SAME_TYPE = "torch.Tensor.type_as"


@dataclass(frozen=True)
class Gated:
    """A network with gates; `sources` says where its tensors come from."""

    graph: LayerGraph
    state: dict[str, Tensor]
    sources: dict[str, Source]


@dataclass(frozen=True)
class _Write:
    """An addition to a stream of `width` channels whose `operand` keeps the positions `kept`; at `idle` it adds `constants`.

    The branch that it adds ends in the convolution `conv`, or in the BatchNorm `norm` after it; both are names.
    """

    operand: str
    conv: str
    norm: str | None
    kept: Tensor
    idle: Tensor
    constants: Tensor
    width: int


def gate_streams(graph: LayerGraph, state: Mapping[str, Tensor], *, threshold: float, granularity: int) -> Gated:
    """Gate the layers and branches that read and write residual streams.

    Args:
        graph: the network.
        state: its state dict, on any device.
        threshold: slices with every absolute weight under this are dead.
        granularity: the number of channels that a layer reads or writes stays a multiple of this.
    """
    return _Gates(graph, state, threshold, granularity).run()


class _Gates:
    def __init__(self, graph: LayerGraph, state: Mapping[str, Tensor], threshold: float, granularity: int) -> None:
        self._graph = graph
        self._state = {name: tensor.detach() for name, tensor in state.items()}
        self._threshold = threshold
        self._granularity = granularity
        self._shapes = Shapes(graph)
        self._spaces: ChannelSpaces = find_spaces(graph)
        self._slices: Mapping[str, LayerSlices] = measure_slices(graph, state, threshold)
        self._constants: Constants = find_constants(graph, self._spaces, self._state, self._slices, threshold)
        self._layers = {layer.name: layer for layer in graph.layers}
        self._calls = Counter(step.layer for step in graph.steps)
        self._uses = graph.uses()
        self._mentions = Counter(name for step in graph.steps for name in step.attributes())
        self._declared = {tensor.name: tensor for tensor in graph.declared}
        self._sources = {name: Source(name) for name in state}
        self._made: dict[str, Tensor] = {}
        self._steps: list[Step] = []
        self._new: dict[Value, Value] = {Value(0): Value(0)}
        self._reading = {value: kept for value, step in graph.results() if (kept := self._kept_inputs(step)) is not None}
        self._writing = {value: write for value, step in graph.results() if (write := self._find_write(value, step)) is not None}

    def run(self) -> Gated:
        for value, step in self._graph.results():
            moved = step.map_values(lambda read: self._new[read])
            if value in self._reading:
                moved = self._narrow_read(step, self._reading[value])
            if value in self._writing:
                self._new[value] = self._narrow_write(moved, self._writing[value])
            else:
                self._new[value] = self._add(moved)
        outputs = [self._new[value] for value in self._graph.outputs]
        graph = rebuild_graph(self._graph, self._steps, outputs, self._layers.values(), self._declared.values())
        kept = {name: source.gather(self._state[source.name]) for name, source in self._sources.items() if name not in self._made}
        declared_first = {name: self._made[name] for name in (tensor.name for tensor in graph.declared) if name in self._made}
        state = declared_first | kept
        return Gated(graph, state, self._sources)

    def _add(self, step: Step) -> Value:
        self._steps.append(step)
        return Value(len(self._steps))

    # Which layers and additions to narrow.

    def _is_stream(self, axis_ids: Ids) -> bool:
        """Whether channels belong to a residual stream: a space that several layers write to."""
        spaces = np.unique(self._spaces.space_of[axis_ids])
        return any(len(self._spaces.spaces[space].members[Role.PRODUCER]) > 1 for space in spaces)

    def _is_plain_conv(self, name: str | None) -> bool:
        """Whether a name belongs to a convolution without groups that is called once."""
        return name is not None and self._layers[name].kind == "Conv2d" and self._layers[name].conv_groups == 1 and self._calls[name] == 1

    def _choose_positions(self, alive: Tensor, strength: Tensor) -> Tensor:
        """The positions to keep: those alive, and the strongest others up to a multiple of the granularity."""
        wanted = min(len(alive), -(-max(int(alive.sum()), 1) // self._granularity) * self._granularity)
        order = torch.where(alive, torch.inf, strength).argsort(descending=True, stable=True)
        return order[:wanted].sort().values

    def _kept_inputs(self, step: Step) -> Tensor | None:
        """The input positions that a layer keeps reading, if these are fewer than now."""
        if (
            not self._is_plain_conv(step.layer)
            or step.layer is None
            or not step.inputs()
            or not self._is_stream(self._spaces.ids[step.layer, "in"])
        ):
            return None
        found = self._slices[step.layer]
        kept = self._choose_positions(~found.dead_inputs, found.input_norms)
        return kept if len(kept) < found.dead.shape[1] else None

    def _find_write(self, value: Value, step: Step) -> _Write | None:
        """How an addition becomes narrower, if it does."""
        for operand in self._branch_operands(value, step):
            branch = step[operand]
            if not isinstance(branch, Value) or not self._is_read_once(branch):
                continue
            conv, norm = self._end_of_branch(branch)
            if conv is None or not self._is_stream(self._spaces.ids[conv, "out"]):
                continue
            found = self._slices[conv]
            constant = self._constants.values[branch.index].along(1, found.dead.shape[0])
            idle = found.dead_filters & constant.same_in_both_modes(self._threshold)
            if f"{norm or conv}.bias" not in self._state:  # a constant could only replace a bias
                idle &= constant.zero
            kept = self._choose_positions(~idle, found.filter_norms)
            if len(kept) < len(idle):
                gone = torch.ones(len(idle), dtype=torch.bool)
                gone[kept] = False
                positions = gone.nonzero().flatten()
                return _Write(operand, conv, norm, kept, positions, constant.eval_mode[positions], self._shapes.of(value)[1])
        return None

    def _branch_operands(self, value: Value, step: Step) -> tuple[str, ...]:
        """The names of the operands that an addition adds to a stream of the result's shape."""
        if step.target == "torch.index_add":
            own = step["dim"] % len(self._shapes.of(value)) == 1 and self._mentions[step["index"].name] == 1
            return ("source",) if own else ()
        names = ("other", "input") if step.target == "+" else ()
        return names if all(isinstance(step[name], Value) and self._shapes.same_shape(step[name], value) for name in names) else ()

    def _is_read_once(self, value: Value) -> bool:
        """Whether a result is read once and not returned."""
        return len(self._uses[value]) == 1 and value not in self._graph.outputs

    def _producing_step(self, operand: Operand) -> Step | None:
        """The step that makes a result, if only one step reads it."""
        if not isinstance(operand, Value) or not operand.index or not self._is_read_once(operand):
            return None
        return self._graph.steps[operand.index - 1]

    def _end_of_branch(self, branch: Value) -> tuple[str | None, str | None]:
        """The names of the convolution that a branch ends in, and of the BatchNorm after it."""
        step = self._producing_step(branch)
        if step is not None and step.target == _SAME_TYPE:
            step = self._producing_step(step["input"])
        norm = None
        if step is not None and step.layer and self._layers[step.layer].kind == "BatchNorm2d" and self._calls[step.layer] == 1:
            norm = step.layer
            step = self._producing_step(step.operands()[0])
        return (step.layer, norm) if step is not None and self._is_plain_conv(step.layer) else (None, None)

    # How to narrow them.

    def _declare(self, tensor: Declared) -> Attribute:
        """Declare a tensor under its name, with a number appended if that is taken."""
        name = free_name(tensor.name, self._declared.keys() | self._layers.keys())
        self._declared[name] = replace(tensor, name=name)
        return Attribute(name)

    def _index(self, base: str, values: Tensor) -> Attribute:
        return self._declare(Declared.index(base, tuple(values.tolist())))

    def _cut_rows(self, layer: Layer, axis: str, rows: Tensor) -> None:
        for tensor, axes in layer.signature.axes.items():
            name = f"{layer.name}.{tensor}"
            if name in self._sources and axis in axes:
                before = self._sources[name]
                self._sources[name] = Source(before.name, {**before.rows, axes.index(axis): rows}, before.shape)
        resized = self._layers[layer.name].with_arguments(**{layer.signature.sizes[axis]: len(rows)})
        self._layers[layer.name] = resized

    def _narrow_read(self, step: Step, kept: Tensor) -> Step:
        """The call of a narrower layer. An existing selection for this layer alone is narrowed, so that there is one gate, not two."""
        layer, read = self._layers[step.layer or ""], step.inputs()[0]
        source = self._new[read]
        self._cut_rows(layer, "in", kept)
        before = self._producing_step(read)
        if (
            before is not None
            and before.target == "torch.index_select"
            and before["dim"] % 4 == 1
            and self._mentions[before["index"].name] == 1
            and isinstance(before["input"], Value)
        ):
            kept = torch.tensor(self._declared.pop(before["index"].name).values)[kept]
            source = self._new[before["input"]]
        index = self._index(f"{layer.name}_reads", kept)
        return Step.make(step.target, input=self._add(Step.make("torch.index_select", input=source, dim=1, index=index)))

    def _narrow_write(self, step: Step, write: _Write) -> Value:
        """Add the branch to some channels only; `step` is the addition to all, in terms of the new steps."""
        branch, stream = step[write.operand], step["input" if write.operand != "input" else "other"]
        kept, idle = write.kept, write.idle
        self._cut_rows(self._layers[write.conv], "out", kept)
        if write.norm is not None:
            self._cut_rows(self._layers[write.norm], "features", kept)
        end = self._layers[write.norm or write.conv]
        if step.target == "torch.index_add":
            taken = torch.tensor(self._declared.pop(step["index"].name).values)
            kept, idle = taken[kept], taken[idle]
        if bool(write.constants.any()):
            stream = self._add_constants(end, stream, idle, write)
        index = self._index(f"{end.name}_writes", kept)
        if self._steps[branch.index - 1].target == _SAME_TYPE:  # the cast from an earlier gate
            branch = self._steps[branch.index - 1]["input"]
        branch = self._add(Step.make(_SAME_TYPE, input=branch, other=stream))  # types may differ under autocast, which + allows
        return self._add(Step.make("torch.index_add", input=stream, dim=1, index=index, source=branch))

    def _add_constants(self, end: Layer, stream: Value, idle: Tensor, write: _Write) -> Value:
        """Add what dead filters still add: one number per channel, at their channels of the stream."""
        donor = self._state[f"{end.name}.bias"]
        rest = self._declare(Declared(f"{end.name}_rest", (len(idle), 1, 1), "parameter" if end.trainable else "buffer"))
        blank = self._declare(Declared(f"{end.name}_blank", (write.width, 1, 1), "buffer"))
        gone = torch.ones(len(donor), dtype=torch.bool)
        gone[self._sources[f"{end.name}.bias"].rows[0]] = False
        self._made[rest.name] = write.constants.to(donor).reshape(-1, 1, 1)
        self._made[blank.name] = torch.zeros(write.width, 1, 1, dtype=donor.dtype, device=donor.device)
        self._sources[rest.name] = Source(f"{end.name}.bias", {0: gone.nonzero().flatten()}, (-1, 1, 1))
        self._sources[blank.name] = Source(NEW)
        index = self._index(f"{end.name}_idle", idle)
        spread = self._add(Step.make("torch.index_add", input=blank, dim=0, index=index, source=rest))
        return self._add(Step.make("+", input=stream, other=spread))
