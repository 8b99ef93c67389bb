"""Channel spaces: which positions of which tensors belong together and can only be cut together.

In: a LayerGraph. Out: for every channel axis of every layer, the *channel id* of each position. A channel is one id: everything that
carries it goes or stays as one. One walk over the steps; each operation either makes fresh ids, passes ids on, unites them, or freezes
them.

Worked example, conv1 (3 -> 16), bn1, then `x + conv2(x)` and fc after flattening 16x2x2:

    ids["conv1", "out"]     0 1 2 ... 15      fresh, then united with conv2's outputs by the addition
    ids["bn1", "features"]  0 1 2 ... 15      passed on
    ids["conv2", "out"]     0 1 2 ... 15
    ids["fc", "in"]         0 0 0 0 1 1 1 1 ...   each channel fills four features
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from prunetrain.graph.catalog import ELEMENTWISE
from prunetrain.graph.layergraph import Attribute, Layer, LayerGraph, Step, Value
from prunetrain.graph.shapes import Shape, infer_shapes

Ids: TypeAlias = npt.NDArray[np.int64]
Axis: TypeAlias = tuple[str, str]
"""A layer or declared tensor, and its axis: "in", "out" or "features"."""


class Role(Enum):
    """What a layer does to the channels of an axis."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    CARRIER = "carrier"


@dataclass(frozen=True)
class ChannelSpace:
    """Channels whose producers are tied to each other; named after the first of these.

    `frozen` says why nothing of it may be cut, or "".
    """

    name: str
    channels: Ids
    members: Mapping[Role, tuple[str, ...]]
    frozen: str = ""

    def __str__(self) -> str:
        count = len(self.channels)
        parts = [f"{count} channel{'s' if count > 1 else ''}"]
        parts += [f"{role.value}{'s' if len(names) > 1 else ''} {', '.join(names)}" for role, names in self.members.items() if names]
        return f"{self.name}: {'; '.join(parts)}" + (f"; frozen: {self.frozen}" if self.frozen else "")


@dataclass(frozen=True)
class ChannelSpaces:
    """The channels of a network.

    `ids[axis]` has an entry a position of the axis; `values[i]` has an entry a channel of `Value(i)`; ids run from 0 to `num_channels` - 1.
    Every id is in exactly one space; `space_of[id]` is its number in `spaces`.
    """

    num_channels: int
    ids: Mapping[Axis, Ids]
    roles: Mapping[Axis, Role]
    values: tuple[Ids, ...]
    spaces: tuple[ChannelSpace, ...]
    space_of: Ids

    def axes(self, role: Role) -> list[Axis]:
        """The axes that play a role."""
        return [axis for axis, r in self.roles.items() if r is role]

    def frozen_channels(self) -> npt.NDArray[np.bool_]:
        """For every channel, whether it must stay."""
        frozen = np.array([bool(space.frozen) for space in self.spaces], dtype=bool)
        return frozen[self.space_of]


def find_spaces(graph: LayerGraph) -> ChannelSpaces:
    """The channel spaces of a network.

    Raises:
        ShapeError: if the shapes of the graph do not fit together.
    """
    return _Walk(graph).run()


class _Union:
    """Union-find over integers, with path halving."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def fresh(self, count: int) -> Ids:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def unite(self, left: Ids, right: Ids) -> None:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            root_a, root_b = self.root(a), self.root(b)
            self._parent[max(root_a, root_b)] = min(root_a, root_b)

    def labels(self) -> Ids:
        return np.array([self.root(i) for i in range(len(self._parent))], dtype=np.int64)


class _Walk:
    """One pass over the steps; `self._values[i]` holds the ids along the first dimension of `Value(i)`."""

    def __init__(self, graph: LayerGraph) -> None:
        self._graph = graph
        self._shapes = infer_shapes(graph)
        self._layers = {layer.name: layer for layer in graph.layers}
        self._declared = {tensor.name: tensor.shape for tensor in graph.declared}
        self._union = _Union()
        self._axes: dict[Axis, Ids] = {}
        self._roles: dict[Axis, Role] = {}
        self._frozen: dict[int, str] = {}  # id -> why
        self._together: list[Ids] = []  # ids that make one space
        self._values: list[Ids] = []

    def run(self) -> ChannelSpaces:
        self._values.append(self._fresh(self._graph.input_shape[0]))
        self._freeze(self._values[0], "the network's input")
        for value, step in self._graph.results():
            self._values.append(self._step(step, self._shapes[value.index]))
        self._freeze(self._values[self._graph.output.index], "the network's output")
        return self._result()

    def _step(self, step: Step, shape: Shape) -> Ids:
        operands = [self._values[value.index] for value in step.inputs()]
        if step.layer is not None:
            layer = self._layers[step.layer]
            return _LAYER_RULES[layer.kind](self, layer, operands[0], shape)
        rule = _FUNCTION_RULES.get(step.target)
        return rule(self, step, shape) if rule else self._unknown(step.target, operands, shape)

    # What rules are made of.

    def _fresh(self, count: int) -> Ids:
        """New ids that make one space."""
        self._together.append(self._union.fresh(count))
        return self._together[-1]

    def _axis(self, name: str, axis: str, role: Role, ids: Ids) -> Ids:
        """Put ids on an axis; a layer that is called again has them already, and both calls' channels become one."""
        if (name, axis) in self._axes:
            self._union.unite(self._axes[name, axis], ids)
        else:
            self._axes[name, axis], self._roles[name, axis] = ids, role
        return self._axes[name, axis]

    def _fresh_axis(self, name: str, axis: str, count: int) -> Ids:
        return self._axes[name, axis] if (name, axis) in self._axes else self._axis(name, axis, Role.PRODUCER, self._fresh(count))

    def _freeze(self, ids: Ids, why: str) -> None:
        for channel in ids.tolist():
            self._frozen.setdefault(channel, why)

    def _unknown(self, what: str, operands: list[Ids], shape: Shape) -> Ids:
        for ids in operands:
            self._freeze(ids, f"{what} is not followed")
        fresh = self._fresh(shape[0])
        self._freeze(fresh, f"{what} is not followed")
        return fresh

    # One rule a kind of operation.

    def _conv2d(self, layer: Layer, ids: Ids, shape: Shape) -> Ids:
        if layer.is_depthwise:
            return self._axis(layer.name, "out", Role.CARRIER, np.repeat(ids, layer["out_channels"] // layer["in_channels"]))
        if layer["groups"] > 1:
            self._axis(layer.name, "out", Role.PRODUCER, self._unknown(f"grouped {layer.name}", [ids], shape))
            return self._axes[layer.name, "out"]
        self._axis(layer.name, "in", Role.CONSUMER, ids)
        return self._fresh_axis(layer.name, "out", layer["out_channels"])

    def _linear(self, layer: Layer, ids: Ids, shape: Shape) -> Ids:
        if len(shape) > 1:
            why = f"{layer.name} works on more than one dimension"
            self._freeze(self._axis(layer.name, "in", Role.CONSUMER, self._fresh(layer["in_features"])), why)
            self._freeze(self._fresh_axis(layer.name, "out", layer["out_features"]), why)
            return self._unknown(layer.name, [ids], shape)
        self._axis(layer.name, "in", Role.CONSUMER, ids)
        return self._fresh_axis(layer.name, "out", layer["out_features"])

    def _carry(self, layer: Layer, ids: Ids, shape: Shape) -> Ids:
        return self._axis(layer.name, "features", Role.CARRIER, ids)

    def _pass(self, step: Step, shape: Shape) -> Ids:
        return self._values[step.inputs()[0].index]

    def _flatten(self, step: Step, shape: Shape) -> Ids:
        before = self._shapes[step.inputs()[0].index]
        ids = self._pass(step, shape)
        return np.repeat(ids, prod(before) // before[0]) if len(shape) == 1 else self._flatten_later(step, ids, shape)

    def _flatten_later(self, step: Step, ids: Ids, shape: Shape) -> Ids:
        """Merging dimensions behind the channels leaves these alone."""
        return ids if len(ids) == shape[0] else self._unknown("torch.flatten", [ids], shape)

    def _elementwise(self, step: Step, shape: Shape) -> Ids:
        """Operands with a channel each for each of the result's: tied together. A single channel broadcast over many: frozen."""
        tied: list[Ids] = []
        for _, operand in step.arguments:
            ids, own_shape = self._operand(operand)
            if len(own_shape) == len(shape) and own_shape[0] == shape[0]:
                tied.append(ids)
            else:
                self._freeze(ids, f"{step.target} broadcasts it")
        if not tied:
            return self._unknown(step.target, [], shape)
        for other in tied[1:]:
            self._union.unite(tied[0], other)
        return tied[0]

    def _operand(self, operand: object) -> tuple[Ids, Shape]:
        if isinstance(operand, Value):
            return self._values[operand.index], self._shapes[operand.index]
        assert isinstance(operand, Attribute)
        shape = self._declared[operand.name]
        if (operand.name, "features") not in self._axes:
            self._axis(operand.name, "features", Role.CARRIER, self._fresh(shape[0]))
        return self._axes[operand.name, "features"], shape

    # From atoms to channels and spaces.

    def _result(self) -> ChannelSpaces:
        labels = self._union.labels()
        numbers, ids_of_atom = np.unique(labels, return_inverse=True)
        count = len(numbers)
        axes = {axis: ids_of_atom[atoms] for axis, atoms in self._axes.items()}
        values = tuple(ids_of_atom[atoms] for atoms in self._values)
        ties = _Union()
        ties.fresh(count)
        for atoms in self._together:
            ids = ids_of_atom[atoms]
            ties.unite(np.full(len(ids), ids[0]), ids)
        _, space_of = np.unique(ties.labels(), return_inverse=True)
        frozen = {int(space_of[ids_of_atom[atom]]): why for atom, why in reversed(self._frozen.items())}
        return ChannelSpaces(count, axes, self._roles, values, self._spaces(axes, space_of, frozen), space_of)

    def _spaces(self, axes: dict[Axis, Ids], space_of: Ids, frozen: dict[int, str]) -> tuple[ChannelSpace, ...]:
        count = int(space_of.max()) + 1
        members: list[dict[Role, list[str]]] = [{role: [] for role in Role} for _ in range(count)]
        for (name, axis), ids in axes.items():
            for space in np.unique(space_of[ids]).tolist():
                members[space][self._roles[name, axis]].append(name)
        order = np.argsort(space_of, kind="stable")
        channels = np.split(order, np.cumsum(np.bincount(space_of, minlength=count))[:-1])
        return tuple(
            ChannelSpace(
                name=_name_of(roles) if number else "input",
                channels=channels[number],
                members={role: tuple(names) for role, names in roles.items()},
                frozen=frozen.get(number, ""),
            )
            for number, roles in enumerate(members)
        )


def _name_of(members: Mapping[Role, list[str]]) -> str:
    makers = members[Role.PRODUCER] or members[Role.CARRIER]
    return makers[0] if makers else f"input of {members[Role.CONSUMER][0]}" if members[Role.CONSUMER] else "no layer"


_LAYER_RULES: Final[dict[str, Callable[[_Walk, Layer, Ids, Shape], Ids]]] = {
    "Conv2d": _Walk._conv2d,
    "Linear": _Walk._linear,
    "BatchNorm1d": _Walk._carry,
    "BatchNorm2d": _Walk._carry,
}
_FUNCTION_RULES: Final[dict[str, Callable[[_Walk, Step, Shape], Ids]]] = {
    **dict.fromkeys((*ELEMENTWISE, "F.dropout", "F.max_pool2d", "F.avg_pool2d", "F.adaptive_avg_pool2d"), _Walk._pass),
    "torch.flatten": _Walk._flatten,
    "+": _Walk._elementwise,
    "*": _Walk._elementwise,
}
