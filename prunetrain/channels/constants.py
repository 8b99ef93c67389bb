"""Which activations are constants, and who can do without a channel that carries one.

In: a graph, its weights, which of their slices are dead. Out: for every value, what is known of each of its channels; for every
consumer of a channel, whether it can
do without it. An abstract interpretation of the network: a channel is unknown, or a constant with the number it has in eval mode and
the one it has in train mode. A dead slice counts as zeros.

A constant c that reaches a consumer through its slice W[:, i] adds sum_k W[:, i, k] * c to its outputs, everywhere, if no zero padding
meets it. That shift can be absorbed by a bias, or by the running mean of the BatchNorm that follows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Final

import torch
from torch import Tensor

from prunetrain.channels.slices import LayerSlices
from prunetrain.graph.catalog import ELEMENTWISE
from prunetrain.graph.layergraph import Attribute, Layer, LayerGraph, Step, Value
from prunetrain.graph.shapes import Shape, infer_shapes


@dataclass(frozen=True)
class Abstract:
    """What is known of a value's channels: `known` (C,) bool; `eval_mode` and `train_mode` (C,) float64, meaningful where known."""

    known: Tensor
    eval_mode: Tensor
    train_mode: Tensor

    @classmethod
    def unknown(cls, channels: int) -> "Abstract":
        zeros = torch.zeros(channels, dtype=torch.float64)
        return cls(torch.zeros(channels, dtype=torch.bool), zeros, zeros)

    @property
    def zero(self) -> Tensor:
        """Where the channel is zero in both modes."""
        return self.known & (self.eval_mode == 0) & (self.train_mode == 0)

    def agrees(self, tolerance: float) -> Tensor:
        """Where the channel is the same in both modes."""
        return self.known & ((self.eval_mode - self.train_mode).abs() <= tolerance)

    def only(self, where: Tensor) -> "Abstract":
        """The same with less known."""
        return Abstract(self.known & where, self.eval_mode, self.train_mode)

    def repeat(self, times: int) -> "Abstract":
        return Abstract(*(t.repeat_interleave(times) for t in (self.known, self.eval_mode, self.train_mode)))


class Receiver(Enum):
    """What absorbs a constant shift of a layer's outputs."""

    NONE = "nothing"
    RUNNING_MEAN = "the running mean of the BatchNorm behind it"
    BIAS = "its bias"


@dataclass(frozen=True)
class Consumer:
    """A conv or linear layer as a reader of channels.

    `expendable` (in,) bool: the layer can do without this input. `columns` (k,) int64: inputs that are constants other than zero.
    `shift` (out, k) float64: what each of these adds to each output in eval mode. `receiver` absorbs it, in the tensor called `receives`.
    """

    layer: str
    expendable: Tensor
    columns: Tensor
    shift: Tensor
    receiver: Receiver
    receives: str


@dataclass(frozen=True)
class Constants:
    """What `find_constants` finds; `values[i]` belongs to `Value(i)`.

    `derived[layer]` (n, 2) int64: outputs of a conv or linear layer that are constants, and inputs that they are computed from (constants
    that meet live weights). In training these inputs feel what becomes of the outputs, so the outputs cannot go alone.
    """

    values: tuple[Abstract, ...]
    consumers: Mapping[str, Consumer]
    derived: Mapping[str, Tensor]


def find_constants(graph: LayerGraph, state: Mapping[str, Tensor], slices: Mapping[str, LayerSlices], threshold: float) -> Constants:
    """Interpret the network over constants.

    Args:
        graph: the network.
        state: its state dict.
        slices: what `measure_slices` says of it.
        threshold: how far the two modes may differ where they must agree.
    """
    return _Interpreter(graph, state, slices, threshold).run()


class _Interpreter:
    def __init__(self, graph: LayerGraph, state: Mapping[str, Tensor], slices: Mapping[str, LayerSlices], threshold: float) -> None:
        self._graph = graph
        self._state = state
        self._slices = slices
        self._threshold = threshold
        self._shapes = infer_shapes(graph)
        self._layers = {layer.name: layer for layer in graph.layers}
        self._uses = graph.uses()
        self._calls = [step.layer for step in graph.steps if step.layer]
        self._values: list[Abstract] = []
        self._consumers: dict[str, Consumer] = {}
        self._derived: dict[str, Tensor] = {}

    def run(self) -> Constants:
        self._values.append(Abstract.unknown(self._graph.input_shape[0]))
        for value, step in self._graph.results():
            self._values.append(self._step(value, step, self._shapes[value.index]))
        return Constants(tuple(self._values), self._consumers, self._derived)

    def _step(self, value: Value, step: Step, shape: Shape) -> Abstract:
        if step.layer is not None:
            layer = self._layers[step.layer]
            source = self._values[step.inputs()[0].index]
            if layer.kind in ("Conv2d", "Linear"):
                return self._weighted(value, layer, source, shape)
            return self._batch_norm(layer, source)
        rule = _RULES.get(step.target)
        return rule(self, step, shape) if rule else Abstract.unknown(shape[0])

    def _tensor(self, name: str) -> Tensor:
        return self._state[name].detach().double()

    def _weighted(self, value: Value, layer: Layer, source: Abstract, shape: Shape) -> Abstract:
        if layer.is_depthwise:
            return self._depthwise(layer, source)
        if layer.name not in self._slices:
            return Abstract.unknown(shape[0])
        if layer.kind == "Linear" and len(shape) > 1:
            return self._unfollowed(layer, shape)
        spread = source.zero if _pads_with_zeros(layer) else source.known  # inputs that add one number everywhere
        constant = source.only(spread)
        columns = (spread & ~source.zero).nonzero().flatten()
        weight = self._state[f"{layer.name}.weight"].detach()[:, columns].double()
        sums = weight.flatten(2).sum(2) if weight.dim() > 2 else weight  # (out, columns)
        dead = self._slices[layer.name].dead
        known = (dead | spread).all(1)
        self._record(value, layer, constant, columns, sums)
        self._derive(layer, (known[:, None] & ~dead).nonzero())
        bias = self._tensor(f"{layer.name}.bias") if layer["bias"] else torch.zeros(len(known), dtype=torch.float64)
        return Abstract(known, *(bias + sums @ mode[columns] for mode in (constant.eval_mode, constant.train_mode)))

    def _depthwise(self, layer: Layer, source: Abstract) -> Abstract:
        weight = self._tensor(f"{layer.name}.weight").flatten(1)  # (out, window)
        source = source.repeat(layer["out_channels"] // layer["in_channels"])
        dead = weight.abs().amax(1) < self._threshold
        spread = source.zero if _pads_with_zeros(layer) else source.known
        bias = self._tensor(f"{layer.name}.bias") if layer["bias"] else torch.zeros(len(dead), dtype=torch.float64)
        gain = torch.where(dead, 0.0, weight.sum(1))
        alive = (spread & ~dead).nonzero()
        self._derive(layer, torch.cat([alive, alive * layer["in_channels"] // layer["out_channels"]], 1))
        return Abstract(dead | spread, bias + gain * source.eval_mode, bias + gain * source.train_mode)

    def _unfollowed(self, layer: Layer, shape: Shape) -> Abstract:
        """A linear layer over another dimension than the channels: it needs all that it reads."""
        needed, none = torch.zeros(layer["in_features"], dtype=torch.bool), torch.empty(0, dtype=torch.int64)
        self._consumers[layer.name] = Consumer(layer.name, needed, none, torch.zeros(layer["out_features"], 0), Receiver.NONE, "")
        return Abstract.unknown(shape[0])

    def _derive(self, layer: Layer, derived: Tensor) -> None:
        self._derived[layer.name] = torch.cat([self._derived.get(layer.name, derived[:0]), derived])

    def _record(self, value: Value, layer: Layer, constant: Abstract, columns: Tensor, sums: Tensor) -> None:
        receiver, receives = self._receiver(value, layer)
        match receiver:
            case Receiver.RUNNING_MEAN:
                absorbed = constant.known
            case Receiver.BIAS:
                absorbed = constant.zero | constant.agrees(self._threshold)
            case Receiver.NONE:
                absorbed = constant.zero
        shift = torch.where(absorbed[columns], sums * constant.eval_mode[columns], 0.0)
        expendable = self._slices[layer.name].dead.all(0) | absorbed
        if layer.name in self._consumers:  # called before: it needs what either call needs
            expendable = expendable & self._consumers[layer.name].expendable
        self._consumers[layer.name] = Consumer(layer.name, expendable, columns, shift, receiver, receives)

    def _receiver(self, value: Value, layer: Layer) -> tuple[Receiver, str]:
        if self._calls.count(layer.name) > 1:
            return Receiver.NONE, ""
        uses = self._uses[value]
        following = self._graph.steps[uses[0]].layer if len(uses) == 1 and value != self._graph.output else None
        if following and self._layers[following].kind.startswith("BatchNorm") and self._calls.count(following) == 1:
            tracked = self._layers[following]["track_running_stats"]
            return (Receiver.RUNNING_MEAN, f"{following}.running_mean") if tracked else (Receiver.NONE, "")
        return (Receiver.BIAS, f"{layer.name}.bias") if layer["bias"] else (Receiver.NONE, "")

    def _batch_norm(self, layer: Layer, source: Abstract) -> Abstract:
        ones = torch.ones(len(source.known), dtype=torch.float64)
        gain = self._tensor(f"{layer.name}.weight") if layer["affine"] else ones
        bias = self._tensor(f"{layer.name}.bias") if layer["affine"] else 0 * ones
        if not layer["track_running_stats"]:
            return Abstract(source.known, bias, bias)
        scale = gain / (self._tensor(f"{layer.name}.running_var") + layer["eps"]).sqrt()
        in_eval = bias + (source.eval_mode - self._tensor(f"{layer.name}.running_mean")) * scale
        return Abstract(source.known, in_eval, bias)  # in train mode a constant is its own batch mean

    # Functions.

    def _source(self, step: Step) -> Abstract:
        return self._values[step.inputs()[0].index]

    def _elementwise(self, step: Step, shape: Shape) -> Abstract:
        source = self._source(step)
        function = getattr(torch if step.target.startswith("torch.") else torch.nn.functional, step.target.split(".")[1])
        arguments = {name: value for name, value in step.arguments if name != "input"}
        return Abstract(source.known, function(source.eval_mode, **arguments), function(source.train_mode, **arguments))

    def _same(self, step: Step, shape: Shape) -> Abstract:
        return self._source(step)

    def _zeros_only(self, step: Step, shape: Shape) -> Abstract:
        source = self._source(step)
        return source.only(source.zero)

    def _avg_pool(self, step: Step, shape: Shape) -> Abstract:
        plain = step["padding"] == 0 and not step["ceil_mode"] and step["divisor_override"] is None
        return self._source(step) if plain else self._zeros_only(step, shape)

    def _flatten(self, step: Step, shape: Shape) -> Abstract:
        before = self._shapes[step.inputs()[0].index]
        return self._source(step).repeat(prod(before) // before[0]) if len(shape) == 1 else Abstract.unknown(shape[0])

    def _operands(self, step: Step, shape: Shape) -> tuple[Abstract, Abstract] | None:
        """Both operands, if each has a channel for each of the result's."""
        found = []
        for _, operand in step.arguments:
            if isinstance(operand, Attribute):
                own = self._state[operand.name].shape
                plain = len(own) == len(shape) and prod(own[1:]) == 1
                number = self._tensor(operand.name).flatten() if plain else torch.empty(0)
                abstract = Abstract(torch.ones(len(number), dtype=torch.bool), number, number)
            else:
                assert isinstance(operand, Value)
                own, abstract = torch.Size(self._shapes[operand.index]), self._values[operand.index]
            if len(own) != len(shape) or len(abstract.known) != shape[0]:
                return None
            found.append(abstract)
        return found[0], found[1]

    def _add(self, step: Step, shape: Shape) -> Abstract:
        operands = self._operands(step, shape)
        if operands is None:
            return Abstract.unknown(shape[0])
        a, b = operands
        return Abstract(a.known & b.known, a.eval_mode + b.eval_mode, a.train_mode + b.train_mode)

    def _mul(self, step: Step, shape: Shape) -> Abstract:
        operands = self._operands(step, shape)
        if operands is None:
            return Abstract.unknown(shape[0])
        a, b = operands
        zero = a.zero | b.zero
        in_eval, in_train = (torch.where(zero, 0.0, x * y) for x, y in ((a.eval_mode, b.eval_mode), (a.train_mode, b.train_mode)))
        return Abstract((a.known & b.known) | zero, in_eval, in_train)


def _pads_with_zeros(layer: Layer) -> bool:
    if layer.kind != "Conv2d" or layer["padding_mode"] != "zeros":
        return False
    return not (layer["padding"] in (0, "valid") or (layer["padding"] == "same" and layer["kernel_size"] == 1))


_RULES: Final[dict[str, Callable[[_Interpreter, Step, Shape], Abstract]]] = {
    **dict.fromkeys(ELEMENTWISE, _Interpreter._elementwise),
    "F.dropout": _Interpreter._zeros_only,  # in train mode it makes a constant random
    "F.max_pool2d": _Interpreter._same,
    "F.avg_pool2d": _Interpreter._avg_pool,
    "F.adaptive_avg_pool2d": _Interpreter._same,
    "torch.flatten": _Interpreter._flatten,
    "+": _Interpreter._add,
    "*": _Interpreter._mul,
}
