"""Find the activations that are constants, and the layers that can do without a channel that carries one.

In: a graph, its weights, and which of their slices are dead. Out: for every value, what is known about its elements; for every consumer of
a channel, whether it can do without it. This is an abstract interpretation of the network (`abstract.py`); a dead slice counts as zeros.

A constant c that reaches a consumer through its slice W[:, i] adds sum_k W[:, i, k] * c to its outputs at every pixel, unless it meets
zero padding. That shift can be absorbed by a bias, or by the running mean of the BatchNorm that follows.

Train mode is the network's; some BatchNorms may be in eval mode in it (`always_eval`), as is common in fine-tuning.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import torch
from torch import Tensor

from prunetrain.channels.abstract import Abstract, Functions
from prunetrain.channels.computed_weights import compute_weight, find_computed_weights
from prunetrain.channels.grids import Mover, Shapes, compress
from prunetrain.channels.reductions import Reductions
from prunetrain.channels.slices import LayerSlices, blocks
from prunetrain.channels.spaces import ChannelSpaces, Ids
from prunetrain.graph.functions import WEIGHTED
from prunetrain.graph.layergraph import Layer, LayerGraph, Operand, Step, Value
from prunetrain.graph.windows import Shape, pair


class Receiver(Enum):
    """What absorbs a constant shift of a layer's outputs."""

    NONE = "nothing"
    RUNNING_MEAN = "the running mean of the BatchNorm after it"
    BIAS = "its bias"


@dataclass(frozen=True)
class Consumer:
    """A conv or linear layer as a reader of channels.

    `expendable` (in,) bool: the inputs that the layer can do without. `columns` (k,) int64: inputs that are constants other than zero;
    `constants` (k,) float64: their numbers in eval mode, zero where they cannot be absorbed. `receiver` absorbs what they add to the
    outputs, in the tensor named `receives`.
    """

    layer: str
    expendable: Tensor
    columns: Tensor
    constants: Tensor
    receiver: Receiver
    receives: str

    def shift(self, weight: Tensor, gone: Tensor) -> Tensor:
        """Return what the constants of some inputs add to each output in eval mode, (out,) float64.

        Args:
            weight: the layer's weight, on any device.
            gone: (in,) bool: the inputs.
        """
        chosen = gone[self.columns]
        return sum_constant_inputs(weight, self.columns[chosen], self.constants[chosen, None])[:, 0]


@dataclass(frozen=True)
class Constants:
    """What `find_constants` finds; `values[i]` belongs to `Value(i)`.

    `absent` has, for each reduction over channels, these channels and (n,) bool, which of them it can leave out (`reductions.py`).
    `derived[layer]` (n, 2) int64: constant outputs of a layer, and the inputs that they are computed from (constants that meet live
    weights). In training these inputs get gradients through the outputs, so the outputs cannot go alone.
    """

    values: tuple[Abstract, ...]
    consumers: Mapping[str, Consumer]
    absent: tuple[tuple[Ids, Tensor], ...]
    derived: Mapping[str, Tensor]


def sum_constant_inputs(weight: Tensor, columns: Tensor, numbers: Tensor) -> Tensor:
    """Return what constant inputs, the same at every pixel, add to each output: (out, n) float64 on the CPU.

    Args:
        weight: (out, in, ...).
        columns: (k,), the inputs.
        numbers: (k, n) float64, n numbers for each input.
    """
    sums = torch.zeros(len(weight), numbers.shape[1], dtype=torch.float64)
    for rows, block in blocks(weight if len(columns) else weight[:0]):
        chosen = block[:, columns.to(block.device)].double()
        sums[rows] = (chosen.flatten(2).sum(2) if chosen.dim() > 2 else chosen).cpu() @ numbers
    return sums


def find_constants(
    graph: LayerGraph,
    spaces: ChannelSpaces,
    state: Mapping[str, Tensor],
    slices: Mapping[str, LayerSlices],
    threshold: float,
    *,
    always_eval: Collection[str] = (),
) -> Constants:
    """Find the constants of a network by abstract interpretation.

    Args:
        graph: the network.
        spaces: its channel spaces.
        state: its state dict, on any device; the result is on the CPU.
        slices: what `measure_slices` returns for it.
        threshold: largest difference between the two modes where they must agree; weights under it are dead.
        always_eval: names of the layers that are in eval mode while the network is in train mode.
    """
    return _Interpreter(graph, spaces, state, slices, threshold, always_eval=always_eval).run()


class _Interpreter:
    def __init__(
        self,
        graph: LayerGraph,
        spaces: ChannelSpaces,
        state: Mapping[str, Tensor],
        slices: Mapping[str, LayerSlices],
        threshold: float,
        *,
        always_eval: Collection[str],
    ) -> None:
        self._graph = graph
        self._shared = {tensor.name for tensor in graph.declared if tensor.role == "parameter"} - spaces.dims.keys()
        self._state = state
        self._slices = slices
        self._threshold = threshold
        self._always_eval = frozenset(always_eval)
        self._shapes = Shapes(graph)
        self._spaces = spaces
        self._reductions = Reductions(graph, spaces, self._shapes)
        self._weights = find_computed_weights(graph)
        self._functions = Functions(Mover(graph, self._shapes), self._shapes, self._value_of, self._along)
        self._layers = {layer.name: layer for layer in graph.layers}
        self._uses = graph.uses()
        self._calls = Counter(step.layer for step in graph.steps)
        self._values: list[Abstract] = []
        self._consumers: dict[str, Consumer] = {}
        self._absent: list[tuple[Ids, Tensor]] = []
        self._derived: dict[str, Tensor] = {}

    def run(self) -> Constants:
        self._values.append(Abstract.nothing(len(self._graph.input_shape) + 1))
        for value, step in self._graph.results():
            self._values.append(self._step(value, step, self._shapes.of(value)))
            self._record_absent(value)
        return Constants(tuple(self._values), self._consumers, tuple(self._absent), self._derived)

    def _step(self, value: Value, step: Step, shape: Shape) -> Abstract:
        if step.target in WEIGHTED:
            return self._computed_weight(step, shape)
        if step.layer is None:
            return self._functions.result(value, step, shape)
        layer = self._layers[step.layer]
        operand = step.operands()[0]
        if layer.kind == "PReLU" and layer["num_parameters"] == 1:
            return self._single_prelu(operand)
        rule = _LAYER_RULES.get(layer.kind)
        if rule is None:
            return Abstract.nothing(len(shape))
        dim = len(shape) - 1 if layer.kind in ("Linear", "LayerNorm", "RMSNorm") else 1
        source = self._value_of(operand).along(dim, self._shapes.of(operand)[dim])
        return rule(self, layer, source, value).placed(dim, len(shape))

    def _value_of(self, operand: Operand) -> Abstract:
        if isinstance(operand, Value):
            return self._values[operand.index]
        unknown = operand.name in self._shared or operand.name not in self._state  # trained by all channels, constants too; or an index
        if unknown or operand.name in self._weights.declared:
            return Abstract.nothing(len(self._shapes.of(operand)))
        found = Abstract.number(compress(self._tensor(operand.name)))
        return found.only(found.zero) if self._state[operand.name].dtype == torch.bool else found  # True + True is True, not 2

    def _record_absent(self, value: Value) -> None:
        """Record which channels are zero in all that a reduction could leave them out of."""
        if (found := self._reductions.of(value)) is None:
            return
        source, dim = found
        row = self._spaces.channels_of(source)
        zeros = [self._value_of(operand).along(dim, len(row)).zero for operand in self._reductions.left_out(value)]
        self._absent.append((row, torch.stack(zeros).all(0)))

    def _along(self, value: Value) -> list[int]:
        """The dimensions of a result along which its channels lie."""
        return [dim for dim, size in enumerate(self._spaces.values[value.index].shape) if size > 1]

    def _tensor(self, name: str) -> Tensor:
        return self._state[name].detach().cpu().double()

    def _bias(self, layer: Layer, size: int) -> Tensor:
        return self._tensor(f"{layer.name}.bias") if layer["bias"] else torch.zeros(size, dtype=torch.float64)

    # Layers with weights for each pair of channels. A rule takes what is known about the inputs, (in,), and returns it for the outputs.

    def _weighted(self, layer: Layer, source: Abstract, value: Value) -> Abstract:
        """An output is a constant, its bias plus the sum over its inputs, if each of its weights is dead or meets a constant."""
        if layer.conv_groups > 1:
            return self._grouped(layer, source)
        spread = source.zero if _pads_with_zeros(layer) else source.known  # inputs that add the same number at every pixel
        constant = source.only(spread)
        columns = (spread & ~source.zero).nonzero().flatten()
        weight = self._state[f"{layer.name}.weight"].detach()
        weight = weight.transpose(0, 1) if layer.kind == "ConvTranspose2d" else weight
        dead = self._slices[layer.name].dead  # (out, in)
        known = (dead | spread).all(1) if bool(spread.any()) else self._slices[layer.name].dead_filters
        self._record_absorbed(value, layer, constant, columns)
        rows = known.nonzero().flatten()
        alive = (~dead[rows]).nonzero()  # of the known outputs only: (out, in) may be large
        self._record_derived(layer, torch.stack([rows[alive[:, 0]], alive[:, 1]], 1))
        numbers = torch.stack([constant.eval_mode[columns], constant.train_mode[columns]], 1)
        return Abstract(known, *(self._bias(layer, len(known))[:, None] + sum_constant_inputs(weight, columns, numbers)).T)

    def _computed_weight(self, step: Step, shape: Shape) -> Abstract:
        """A function that is given its weight returns its bias where the weight's filter is zero."""
        if step["weight"] not in self._weights.fixed:
            return Abstract.nothing(len(shape))
        weight = compute_weight(self._graph, self._state, step["weight"])
        zero = torch.cat([(block == 0).flatten(1).all(1) for _, block in blocks(weight)]).cpu()
        bias = Abstract.number(torch.zeros(len(zero), dtype=torch.float64))
        if step["bias"] is not None:
            bias = self._value_of(step["bias"]).along(0, len(zero))
        return bias.only(zero).placed(len(shape) - 1 if step.target == "F.linear" else 1, len(shape))

    def _grouped(self, layer: Layer, source: Abstract) -> Abstract:
        """Each output reads the inputs of its group. Unless the conv passes whole groups on, a channel is one input of every group."""
        if layer.kind == "ConvTranspose2d":
            return Abstract.unknown(layer["out_channels"])
        groups = layer.conv_groups
        weight = self._state[f"{layer.name}.weight"].detach()  # (out, in of a group, window)
        dead = torch.cat([block.abs().flatten(2).amax(2) for _, block in blocks(weight)]).cpu() < self._threshold  # (out, in of a group)
        of_groups = torch.arange(layer["in_channels"]).view(groups, -1)
        inputs = of_groups.repeat_interleave(layer["out_channels"] // groups, 0)  # (out, in of a group): which input each weight is for
        zero, spread = source.zero, source.zero if _pads_with_zeros(layer) else source.known
        known = (dead | spread[inputs]).all(1)
        if not layer.passes_groups:
            none = torch.empty(0, dtype=torch.int64)
            self._record_consumer(Consumer(layer.name, (dead | zero[inputs]).all(0), none, none.double(), Receiver.NONE, ""))
            positions = torch.arange(inputs.shape[1]).expand_as(inputs)
        else:
            positions = inputs
        alive = (known[:, None] & ~dead).nonzero()
        self._record_derived(layer, torch.stack([alive[:, 0], positions[alive[:, 0], alive[:, 1]]], 1))
        gain = torch.where(dead, 0.0, weight.flatten(2).sum(2, dtype=torch.float64).cpu())
        bias = self._bias(layer, len(known))
        in_eval, in_train = (
            bias + (gain * torch.where(spread, mode, 0.0)[inputs]).sum(1) for mode in (source.eval_mode, source.train_mode)
        )
        return Abstract(known, in_eval, in_train)

    def _record_consumer(self, consumer: Consumer) -> None:
        """Record a consumer. If it is called more than once, it needs what any of the calls needs."""
        before = self._consumers.get(consumer.layer)
        expendable = consumer.expendable & before.expendable if before else consumer.expendable
        self._consumers[consumer.layer] = replace(consumer, expendable=expendable)

    def _record_derived(self, layer: Layer, derived: Tensor) -> None:
        """Record (n, 2) constant outputs of a call and their live inputs (`Constants.derived`)."""
        self._derived[layer.name] = torch.cat([self._derived.get(layer.name, derived[:0]), derived])

    def _record_absorbed(self, value: Value, layer: Layer, constant: Abstract, columns: Tensor) -> None:
        """Record what a layer can do without: inputs that meet dead weights, and constants that its receiver absorbs in both modes."""
        receiver, receives = self._receiver(value, layer)
        match receiver:
            case Receiver.NONE:
                absorbed = constant.zero
            case Receiver.RUNNING_MEAN if receives.rpartition(".")[0] not in self._always_eval:
                absorbed = constant.known
            case _:
                absorbed = constant.zero | constant.same_in_both_modes(self._threshold)
        constants = torch.where(absorbed[columns], constant.eval_mode[columns], 0.0)
        expendable = self._slices[layer.name].dead_inputs | absorbed
        self._record_consumer(Consumer(layer.name, expendable, columns, constants, receiver, receives))

    def _receiver(self, value: Value, layer: Layer) -> tuple[Receiver, str]:
        """What absorbs a shift of a layer's outputs, and in which tensor: a BatchNorm if it is their only reader, else the layer's bias."""
        if self._calls[layer.name] > 1:
            return Receiver.NONE, ""
        uses = self._uses[value]
        following = self._graph.steps[uses[0]].layer if len(uses) == 1 and value not in self._graph.outputs else None
        norm = self._layers[following] if following is not None and self._calls[following] == 1 else None
        if norm is not None and norm.kind.startswith("BatchNorm") and (layer.kind != "Linear" or len(self._shapes.of(value)) == 2):
            return (Receiver.RUNNING_MEAN, f"{norm.name}.running_mean") if norm["track_running_stats"] else (Receiver.NONE, "")
        return (Receiver.BIAS, f"{layer.name}.bias") if layer["bias"] else (Receiver.NONE, "")

    # Layers that pass channels on.

    def _affine(self, layer: Layer, size: int) -> tuple[Tensor, Tensor]:
        names = {f"{layer.name}.{tensor}" for tensor in ("weight", "bias")} & self._state.keys()
        gain = self._tensor(f"{layer.name}.weight") if f"{layer.name}.weight" in names else torch.ones(size, dtype=torch.float64)
        bias = self._tensor(f"{layer.name}.bias") if f"{layer.name}.bias" in names else torch.zeros(size, dtype=torch.float64)
        return gain, bias

    def _batch_norm(self, layer: Layer, source: Abstract, value: Value) -> Abstract:
        gain, bias = self._affine(layer, len(source.known))
        if bool(gain.any()) and self._follows_computed_weight(value):
            source = Abstract(source.known | (gain == 0), source.eval_mode, source.train_mode)
        if not layer["track_running_stats"]:
            return Abstract(source.known, bias, bias)
        scale = gain / (self._tensor(f"{layer.name}.running_var") + layer["eps"]).sqrt()
        mean = self._tensor(f"{layer.name}.running_mean")
        in_eval = bias + (source.eval_mode - mean) * scale
        if layer.name in self._always_eval:
            return Abstract(source.known, in_eval, bias + (source.train_mode - mean) * scale)
        return Abstract(source.known, in_eval, bias)  # in train mode a constant is its own batch mean

    def _follows_computed_weight(self, value: Value) -> bool:
        """Whether a BatchNorm reads what a computed weight makes, which may never fade: then a scale of zero makes a constant.

        Elsewhere it says nothing, nor does it where all are zero: residual branches often begin like that.
        """
        (source,) = self._graph.steps[value.index - 1].operands()
        return isinstance(source, Value) and source.index > 0 and self._graph.steps[source.index - 1].target in WEIGHTED

    def _instance_norm(self, layer: Layer, source: Abstract, value: Value) -> Abstract:
        if layer["track_running_stats"]:
            return Abstract.unknown(len(source.known))
        _, bias = self._affine(layer, len(source.known))
        return Abstract(source.known, bias, bias)

    def _dead_scale_norm(self, layer: Layer, source: Abstract, value: Value) -> Abstract:
        """A channel that is multiplied by a dead scale equals its bias, whatever its input."""
        gain, bias = self._affine(layer, len(source.known))
        return Abstract(gain.abs() < self._threshold, bias, bias)

    def _layer_norm(self, layer: Layer, source: Abstract, value: Value) -> Abstract:
        if self._along(value) != [len(self._shapes.of(value)) - 1] or len(pair(layer["normalized_shape"], 1)) > 1:
            return Abstract.unknown(len(source.known))  # its weights belong to other dimensions and get gradients from all channels
        return self._dead_scale_norm(layer, source, value)

    def _prelu(self, layer: Layer, source: Abstract, value: Value) -> Abstract:
        slope = self._tensor(f"{layer.name}.weight")
        return Abstract(source.known, *(torch.where(mode < 0, slope * mode, mode) for mode in (source.eval_mode, source.train_mode)))

    def _single_prelu(self, operand: Operand) -> Abstract:
        """A slope that all channels share gets gradients from every negative number, so negative constants count as unknown."""
        source = self._value_of(operand)
        return source.only((source.eval_mode >= 0) & (source.train_mode >= 0))


def _pads_with_zeros(layer: Layer) -> bool:
    if layer.kind == "ConvTranspose2d":
        return True  # fewer windows overlap at the borders
    if layer.kind == "Linear" or layer["padding_mode"] != "zeros":
        return False
    return not (layer["padding"] in (0, "valid") or (layer["padding"] == "same" and layer["kernel_size"] == 1))


_LAYER_RULES: Final[dict[str, Callable[[_Interpreter, Layer, Abstract, Value], Abstract]]] = {
    "Conv1d": _Interpreter._weighted,
    "Conv2d": _Interpreter._weighted,
    "ConvTranspose2d": _Interpreter._weighted,
    "Linear": _Interpreter._weighted,
    "BatchNorm1d": _Interpreter._batch_norm,
    "BatchNorm2d": _Interpreter._batch_norm,
    "InstanceNorm2d": _Interpreter._instance_norm,
    "GroupNorm": _Interpreter._dead_scale_norm,
    "LayerNorm": _Interpreter._layer_norm,
    "RMSNorm": _Interpreter._layer_norm,
    "PReLU": _Interpreter._prelu,
}
