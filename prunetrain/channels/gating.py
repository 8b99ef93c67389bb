"""Channel gating: each block of a residual stream reads and writes only the channels that it uses (PruneTrain, arXiv 1901.09290, 4.2).

In: a network whose stream has channels that are dead for some blocks and alive for others, so that no cut can take them. Out: the same
function, with smaller layers at the ends of the blocks. A layer that reads the stream with dead slices gets the rest by
`torch.index_select`; a branch of which some filters are dead is added to the rest by `torch.index_add`. What a dead filter still adds, a
constant from its BatchNorm, stays as a declared parameter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prunetrain.channels.constants import Constants, find_constants
from prunetrain.channels.grids import Shapes
from prunetrain.channels.slices import LayerSlices, measure_slices
from prunetrain.channels.sources import NEW, Source
from prunetrain.channels.spaces import ChannelSpaces, Ids, Role, find_spaces
from prunetrain.graph.layergraph import Attribute, Declared, Layer, LayerGraph, Step, Value

_SAME_TYPE = "torch.Tensor.type_as"


@dataclass(frozen=True)
class Gated:
    """A network with gates: `sources` say where its tensors came from, `gates` how many reads and writes became narrower."""

    graph: LayerGraph
    state: dict[str, Tensor]
    sources: dict[str, Source]
    gates: int


@dataclass(frozen=True)
class _Write:
    """An addition to a stream of `width` channels whose `operand` keeps the positions `kept`; at `idle` it adds `constants`."""

    operand: str
    kept: Tensor
    idle: Tensor
    constants: Tensor
    width: int


def gate_streams(graph: LayerGraph, state: Mapping[str, Tensor], *, threshold: float, granularity: int = 1) -> Gated:
    """Gate what reads and writes residual streams.

    Args:
        graph: the network.
        state: its state dict, on any device.
        threshold: slices with every absolute weight under this are dead.
        granularity: what a layer reads or writes stays a multiple of this.
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
        on_cpu = {name: tensor.cpu() for name, tensor in self._state.items()}
        self._constants: Constants = find_constants(graph, self._spaces, on_cpu, self._slices, threshold)
        self._layers = {layer.name: layer for layer in graph.layers}
        self._calls = [step.layer for step in graph.steps if step.layer]
        self._uses = graph.uses()
        self._declared = {tensor.name: tensor for tensor in graph.declared}
        self._sources = {name: Source(name) for name in state}
        self._made: dict[str, Tensor] = {}
        self._steps: list[Step] = []
        self._new: dict[Value, Value] = {Value(0): Value(0)}
        self._gates = 0
        reads = {value: kept for value, step in graph.results() if (kept := self._reads(step)) is not None}
        writes = {value: write for value, step in graph.results() if (write := self._writes(value, step)) is not None}
        self._reading, self._writing = reads, writes

    def run(self) -> Gated:
        for value, step in self._graph.results():
            moved = step.map_values(lambda read: self._new[read])
            if value in self._reading:
                moved = self._narrow_read(moved, self._reading[value])
            if value in self._writing:
                self._new[value] = self._narrow_write(moved, self._writing[value])
            else:
                self._new[value] = self._add(moved)
        steps, new = _without_idle(self._steps, [self._new[value] for value in self._graph.outputs])
        output, *others = (new[self._new[value]] for value in self._graph.outputs)
        used = {name for step in steps for name in step.attributes()}
        graph = replace(
            self._graph,
            layers=tuple(self._layers.values()),
            steps=tuple(steps),
            output=output,
            declared=tuple(tensor for tensor in self._declared.values() if tensor.name in used),
            extra=tuple(others[: len(self._graph.extra)]),
            auxiliary=tuple(others[len(self._graph.extra) :]),
        )
        kept = {name: source.gather(self._state[source.name]) for name, source in self._sources.items() if name not in self._made}
        declared_first = {name: self._made[name] for name in (tensor.name for tensor in graph.declared) if name in self._made}
        state = declared_first | kept
        return Gated(graph, state, self._sources, self._gates)

    def _add(self, step: Step) -> Value:
        self._steps.append(step)
        return Value(len(self._steps))

    # Which.

    def _stream(self, axis_ids: Ids) -> bool:
        """Whether channels belong to a residual stream: a space that several layers write to."""
        spaces = np.unique(self._spaces.space_of[axis_ids])
        return any(len(self._spaces.spaces[space].members[Role.PRODUCER]) > 1 for space in spaces)

    def _plain(self, name: str | None) -> bool:
        """Whether a name is that of a convolution without groups that is called once."""
        return (
            name is not None
            and self._layers[name].kind == "Conv2d"
            and self._layers[name].conv_groups == 1
            and self._calls.count(name) == 1
        )

    def _rounded(self, alive: Tensor, strength: Tensor) -> Tensor:
        """Positions to keep: those alive, and the strongest others up to a multiple of the granularity."""
        wanted = min(len(alive), -(-max(int(alive.sum()), 1) // self._granularity) * self._granularity)
        order = torch.where(alive, torch.inf, strength).argsort(descending=True, stable=True)
        return order[:wanted].sort().values

    def _reads(self, step: Step) -> Tensor | None:
        """The input positions that a layer goes on reading, if these are fewer."""
        if not self._plain(step.layer) or step.layer is None or not self._stream(self._spaces.ids[step.layer, "in"]):
            return None
        found = self._slices[step.layer]
        kept = self._rounded(~found.dead.all(0), found.input_norms)
        return kept if len(kept) < found.dead.shape[1] else None

    def _writes(self, value: Value, step: Step) -> _Write | None:
        """How an addition becomes narrower, if it does."""
        if step.target not in ("+", "torch.index_add"):
            return None
        for operand in ("other", "input") if step.target == "+" else ("source",):
            branch = step[operand]
            if not isinstance(branch, Value) or len(self._uses[branch]) != 1 or branch in self._graph.outputs:
                continue
            conv, norm = self._end_of_branch(branch)
            if conv is None or not self._stream(self._spaces.ids[conv.name, "out"]):
                continue
            found = self._slices[conv.name]
            constant = self._constants.values[branch.index].along(1, found.dead.shape[0])
            idle = found.dead.all(1) & constant.agrees(self._threshold)
            donor = f"{(norm or conv).name}.bias"
            if donor not in self._state:
                idle &= constant.zero
            kept = self._rounded(~idle, found.filter_norms)
            if len(kept) < len(idle):
                gone = torch.ones(len(idle), dtype=torch.bool)
                gone[kept] = False
                positions = gone.nonzero().flatten()
                return _Write(operand, kept, positions, constant.eval_mode[positions], self._shapes.of(value)[1])
        return None

    def _end_of_branch(self, branch: Value) -> tuple[Layer | None, Layer | None]:
        """The convolution, and the BatchNorm behind it, that a branch ends in."""
        step = self._graph.steps[branch.index - 1] if branch.index else None
        if step is not None and step.target == _SAME_TYPE and len(self._uses[step["input"]]) == 1:
            step = self._graph.steps[step["input"].index - 1]
        norm = None
        if step is not None and step.layer and self._layers[step.layer].kind == "BatchNorm2d" and self._calls.count(step.layer) == 1:
            norm = self._layers[step.layer]
            made = step.inputs()[0]
            step = self._graph.steps[made.index - 1] if made.index and len(self._uses[made]) == 1 else None
        if step is None or not self._plain(step.layer):
            return None, None
        return self._layers[step.layer or ""], norm

    # How.

    def _declare(self, tensor: Declared) -> Attribute:
        """Declare a tensor under its name, or that with a number."""
        name, number = tensor.name, 2
        while name in self._declared or name in self._layers:
            name, number = f"{tensor.name}_{number}", number + 1
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
        layer = self._layers[step.layer or ""]
        source = step.inputs()[0]
        self._cut_rows(layer, "in", kept)
        self._gates += 1
        before = self._steps[source.index - 1] if source.index else None
        if before is not None and before.target == "torch.index_select" and self._alone(step):  # one gate, not two
            kept = torch.tensor(self._declared.pop(before["index"].name).values)[kept]
            source = before["input"]
        index = self._index(f"{layer.name}_reads", kept)
        return Step.make(step.target, input=self._add(Step.make("torch.index_select", input=source, dim=1, index=index)))

    def _alone(self, step: Step) -> bool:
        """Whether a layer is the only reader of what it reads."""
        old = next(s for s in self._graph.steps if s.target == step.target)
        return len(self._uses[old.inputs()[0]]) == 1

    def _narrow_write(self, step: Step, write: _Write) -> Value:
        branch, stream = step[write.operand], step["input" if write.operand != "input" else "other"]
        kept, idle = write.kept, write.idle
        conv, norm = self._ends_of(branch)
        self._cut_rows(conv, "out", kept)
        if norm is not None:
            self._cut_rows(norm, "features", kept)
        self._gates += 1
        end = norm or conv
        if step.target == "torch.index_add":
            taken = torch.tensor(self._declared.pop(step["index"].name).values)
            kept, idle = taken[kept], taken[idle]
        if bool(write.constants.any()):
            stream = self._rest(end, stream, idle, write)
        index = self._index(f"{end.name}_writes", kept)
        if (
            self._steps[branch.index - 1].target != _SAME_TYPE
        ):  # under autocast the two may differ, which an addition takes and this does not
            branch = self._add(Step.make(_SAME_TYPE, input=branch, other=stream))
        return self._add(Step.make("torch.index_add", input=stream, dim=1, index=index, source=branch))

    def _ends_of(self, branch: Value) -> tuple[Layer, Layer | None]:
        """As `_end_of_branch`, in the steps that are being made."""
        if self._steps[branch.index - 1].target == _SAME_TYPE:
            branch = self._steps[branch.index - 1]["input"]
        last = self._layers[self._steps[branch.index - 1].layer or ""]
        if last.kind != "BatchNorm2d":
            return last, None
        made = self._steps[branch.index - 1].inputs()[0]
        return self._layers[self._steps[made.index - 1].layer or ""], last

    def _rest(self, end: Layer, stream: Value, idle: Tensor, write: _Write) -> Value:
        """Add what dead filters still add: a number a channel, spread over the channels of the stream."""
        donor = self._state[f"{end.name}.bias"]
        rest = self._declare(Declared(f"{end.name}_rest", (len(idle), 1, 1)))
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


def _without_idle(steps: list[Step], outputs: list[Value]) -> tuple[list[Step], dict[Value, Value]]:
    """The steps without those whose results nobody reads (selections that another one replaced), and the results' new numbers."""
    needed = {value.index for value in outputs}
    for number in range(len(steps), 0, -1):
        if number in needed:
            needed |= {value.index for value in steps[number - 1].inputs()}
    new = {Value(0): Value(0)}
    kept: list[Step] = []
    for number, step in enumerate(steps, start=1):
        if number in needed:
            kept.append(step.map_values(lambda value: new[value]))
            new[Value(number)] = Value(len(kept))
    return kept, new
