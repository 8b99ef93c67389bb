"""Walk over a graph's steps, give every element of every value an *atom*, and record which atoms belong to one channel.

Each operation makes new atoms, passes atoms on, unites them, or freezes them. Views, shuffles and concatenations have no rules of their
own: they run on the grid of atoms (`grids.py`). An unknown operation freezes whatever it touches: fewer cuts, never a wrong one.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from prunetrain.channels.atoms import Atoms, Role
from prunetrain.channels.computed_weights import find_computed_weights
from prunetrain.channels.grids import Mover, Shapes, aligned, broadcast, pads, pads_one_channel, placed, reduced, varying
from prunetrain.graph.function_shapes import dims_of
from prunetrain.graph.functions import FAMILY_OF, Family
from prunetrain.graph.layergraph import Attribute, Layer, LayerGraph, Operand, Step, Value, loses_whole_groups
from prunetrain.graph.windows import Shape, pair

_MAX_ATOMS: Final = 1 << 20  # in a declared tensor; larger ones do not hold one number per channel


class Walk:
    """The walk that the module describes. Call `run` once."""

    def __init__(self, graph: LayerGraph) -> None:
        self._graph = graph
        self._shapes = Shapes(graph)
        self._mover = Mover(graph, self._shapes)
        self._layers = {layer.name: layer for layer in graph.layers}
        self._weights = find_computed_weights(graph)
        self._atoms = Atoms()

    def run(self) -> Atoms:
        """Return the atoms of the graph.

        Raises:
            ShapeError: if the shapes of the graph do not fit together.
        """
        image = placed(self._atoms.fresh(self._graph.input_shape[0]), 1, len(self._graph.input_shape) + 1)
        self._atoms.freeze(image, "the network's input")
        self._atoms.values.append((image, "the input"))
        for value, step in self._graph.results():
            self._atoms.values.append((self._step(step, self._shapes.of(value)), step.target))
        for value in self._graph.outputs:
            self._atoms.freeze(self._grid(value), "the network's output")
        return self._atoms

    def _step(self, step: Step, shape: Shape) -> Tensor:
        if step.layer is not None:
            layer = self._layers[step.layer]
            return _LAYER_RULES[layer.kind](self, layer, self._grid(step.operands()[0]), shape)
        rule = _RULES.get(step.target) or _FAMILY_RULES.get(FAMILY_OF[step.target])
        return rule(self, step, shape) if rule else self._unknown(step, shape)

    # Building blocks of the rules.

    def _grid(self, operand: Operand) -> Tensor:
        if isinstance(operand, Value):
            return self._atoms.values[operand.index][0]
        if operand.name not in self._atoms.declared:
            if self._mover.is_index(operand):
                self._declare_frozen(operand, f"{operand.name} is an index")
                return self._atoms.declared[operand.name]
            shape = self._shapes.of(operand)
            if operand.name in self._weights.declared and sum(size > 1 for size in shape) > 1:
                self._atoms.declared[operand.name] = placed(self._atoms.fresh(shape[0]), 0, len(shape))
            elif int(np.prod(shape)) > _MAX_ATOMS:
                self._declare_frozen(operand, f"{operand.name} is large")
            else:
                self._atoms.declared[operand.name] = self._atoms.fresh(int(np.prod(shape))).view(shape)
        return self._atoms.declared[operand.name]

    def _declare_frozen(self, operand: Attribute, why: str) -> None:
        """Give a declared tensor that cannot be cut a single frozen atom."""
        self._atoms.declared[operand.name] = self._atoms.fresh(1).view((1,) * len(self._shapes.of(operand)))
        self._atoms.freeze(self._atoms.declared[operand.name], why)

    def _unknown(self, step: Step, shape: Shape) -> Tensor:
        return self._frozen(step, shape, f"{step.target} is not followed")

    def _frozen(self, step: Step, shape: Shape, why: str) -> Tensor:
        for operand in step.operands():
            if isinstance(operand, Attribute) and operand.name not in self._atoms.declared:
                self._declare_frozen(operand, why)
            else:
                self._atoms.freeze(self._grid(operand), why)
        return self._frozen_result(shape, why)

    def _frozen_result(self, shape: Shape, why: str) -> Tensor:
        dim = 1 if len(shape) in (2, 4) else len(shape) - 1
        grid = placed(self._atoms.fresh(shape[dim]), dim, len(shape)) if shape else self._atoms.fresh(1).view(())
        self._atoms.freeze(grid, why)
        return grid

    def _frozen_number(self, rank: int, why: str) -> Tensor:
        """The grid of a result without channels, which counts as a single one that must stay."""
        grid = self._atoms.fresh(1).view((1,) * rank)
        self._atoms.freeze(grid, why)
        return grid

    def _record_reduction(self, dim: int) -> None:
        """Record that the step at hand reduces over its input's channels, which lie along `dim`."""
        self._atoms.reductions[len(self._atoms.values)] = dim

    # Layers.

    def _convolution(self, layer: Layer, grid: Tensor, shape: Shape) -> Tensor:
        if layer.kind == "Conv1d" and varying(grid) == [2] and layer["in_channels"] == 1 and shape[1:] == (1, grid.shape[2]):
            return self._convolution_over_channels(layer, grid)
        atoms = self._atoms.along(grid, 1, layer["in_channels"], f"{layer.name} reads a dimension other than the channels")
        groups = layer.conv_groups
        if groups > 1:
            atoms = self._grouped(layer, atoms.view(groups, -1))
        else:
            self._atoms.put(layer.name, "in", Role.CONSUMER, atoms)
            atoms = self._atoms.produced(layer.name, layer["out_channels"])
        return placed(atoms, 1, len(shape))

    def _convolution_over_channels(self, layer: Layer, grid: Tensor) -> Tensor:
        """A Conv1d whose window slides over the channels and returns as many numbers, as in ECA (arXiv 1910.03151)."""
        self._record_reduction(2)
        ends = [self._atoms.put(layer.name, "in", Role.CONSUMER, self._atoms.fresh(1)), self._atoms.produced(layer.name, 1)]
        for atoms in ends:
            self._atoms.freeze(atoms, f"{layer.name} slides over the channels")
        return grid

    def _grouped(self, layer: Layer, atoms: Tensor) -> Tensor:
        """Tie the channels of a conv: many groups (depthwise: one per channel) go as a whole, few groups each lose the same channels."""
        groups = len(atoms)
        if layer.kind == "ConvTranspose2d":
            why = f"grouped {layer.name} is not followed"
            self._atoms.freeze(atoms, why)
            made = self._atoms.produced(layer.name, layer["out_channels"])
            self._atoms.freeze(made, why)
            return made
        if layer.passes_groups:
            whole = self._atoms.tied(atoms, [1]).reshape(-1)
            return self._atoms.put(layer.name, "out", Role.CARRIER, whole.repeat_interleave(layer["out_channels"] // groups))
        self._atoms.put(layer.name, "in", Role.CONSUMER, self._atoms.tied(atoms, [0]).reshape(-1))
        return self._atoms.produced(layer.name, layer["out_channels"] // groups, copies=groups)

    def _linear(self, layer: Layer, grid: Tensor, shape: Shape) -> Tensor:
        atoms = self._atoms.along(grid, -1, layer["in_features"], f"{layer.name} works on a dimension other than the channels")
        self._atoms.put(layer.name, "in", Role.CONSUMER, atoms)
        made = self._atoms.produced(layer.name, layer["out_features"])
        if grid.shape[-1] == 1 and varying(grid):
            self._atoms.freeze(made, f"{layer.name} works on a dimension other than the channels")
        return placed(made, len(shape) - 1, len(shape))

    def _carry(self, layer: Layer, grid: Tensor, shape: Shape) -> Tensor:
        atoms = self._atoms.along(grid, 1, shape[1], f"{layer.name} reads a dimension other than the channels")
        return placed(self._atoms.put(layer.name, "features", Role.CARRIER, atoms), 1, len(shape))

    def _prelu(self, layer: Layer, grid: Tensor, shape: Shape) -> Tensor:
        return grid if layer["num_parameters"] == 1 else self._carry(layer, grid, shape)

    def _group_norm(self, layer: Layer, grid: Tensor, shape: Shape) -> Tensor:
        """Tie the channels of each group, so that they can only go together; a single group is a reduction over all channels."""
        carried = self._carry(layer, grid, shape)
        if layer["num_groups"] > 1:
            self._atoms.tied(carried.view(layer["num_groups"], -1), [1])
        elif carried.shape[1] > 1:
            self._record_reduction(1)
        return carried

    def _layer_norm(self, layer: Layer, grid: Tensor, shape: Shape) -> Tensor:
        normalized = pair(layer["normalized_shape"], 1)
        if len(normalized) == 1 and grid.shape[-1] > 1:
            self._record_reduction(len(shape) - 1)
            atoms = self._atoms.along(grid, -1, shape[-1], "")
            return placed(self._atoms.put(layer.name, "features", Role.CARRIER, atoms), len(shape) - 1, len(shape))
        if len(normalized) == 1:  # another call may put channels on this axis, which then have to stay
            fresh = self._atoms.fresh(1)
            self._atoms.freeze(fresh, f"{layer.name} works on a dimension other than the channels")
            self._atoms.put(layer.name, "features", Role.CARRIER, fresh.expand(shape[-1]))
        if set(varying(grid)) & set(range(len(shape) - len(normalized), len(shape))):
            self._atoms.freeze(grid, f"{layer.name} averages over several dimensions")
        return grid

    def _attention(self, layer: Layer, grid: Tensor, shape: Shape) -> Tensor:
        why = f"{layer.name} is an attention layer"
        self._atoms.freeze(grid, why)
        return self._frozen_result(shape, why)

    # Functions.

    def _weighted(self, step: Step, shape: Shape) -> Tensor:
        """A conv or linear map with a computed weight: rows go with the outputs, and columns of inputs that go are not read."""
        grid, weight = self._grid(step["input"]), self._grid(step["weight"])
        outputs = self._shapes.of(step["weight"])[0]
        if step["weight"] not in self._weights.fixed or set(varying(weight)) - {0} or weight.shape[0] < outputs:
            return self._unknown(step, shape)
        dim = len(shape) - 1 if step.target == "F.linear" else 1
        why = f"{step.target} works on a dimension other than the channels"
        atoms, rows = self._atoms.along(grid, dim, self._shapes.of(step["input"])[dim], why), weight.reshape(-1)
        if grid.shape[dim] == 1 and varying(grid):
            self._atoms.freeze(rows, why)
        if step["bias"] is not None:
            self._unite_row(step["bias"], rows, step)
        groups = 1 if step.target == "F.linear" else step["groups"]
        if loses_whole_groups(groups, len(atoms)):
            whole = self._atoms.tied(atoms.view(groups, -1), [1]).reshape(-1)
            self._atoms.unite(rows, whole.repeat_interleave(outputs // groups))
            return placed(rows, dim, len(shape))
        if groups > 1:
            self._atoms.tied(atoms.view(groups, -1), [0])
            self._atoms.tied(rows.view(groups, -1), [0])
        if grid.shape[dim] > 1:
            self._record_reduction(dim)
        return placed(rows, dim, len(shape))

    def _batch_norm(self, step: Step, shape: Shape) -> Tensor:
        """BatchNorm without running statistics, as in weight standardisation: its scales and shifts go with its channels."""
        if step["running_mean"] is not None:
            return self._unknown(step, shape)
        why = f"{step.target} reads a dimension other than the channels"
        atoms = self._atoms.along(self._grid(step["input"]), 1, shape[1], why)
        for operand in (step["weight"], step["bias"]):
            if operand is not None:
                self._unite_row(operand, atoms, step)
        return placed(atoms, 1, len(shape))

    def _unite_row(self, operand: Operand, atoms: Tensor, step: Step) -> None:
        """Unite a tensor that has one number for each channel, such as a bias, with the channels."""
        if isinstance(operand, Attribute) and operand.name not in self._atoms.declared:
            self._atoms.declared[operand.name] = atoms.reshape(-1)
            return
        own = self._grid(operand)
        if own.shape[0] == len(atoms):
            self._atoms.unite(own, atoms)
        else:
            self._atoms.freeze(atoms, f"broadcast by {step.target}")

    def _pass(self, step: Step, shape: Shape) -> Tensor:
        return self._grid(step["input"])

    def _pool(self, step: Step, shape: Shape) -> Tensor:
        grid = self._grid(step["input"])
        return self._frozen(step, shape, f"{step.target} averages over channels") if {2, 3} & set(varying(grid)) else grid

    def _reduce(self, step: Step, shape: Shape) -> Tensor:
        """Reduce over the channels, or over other dimensions, uniting what differs along them."""
        grid = self._grid(step["input"])
        rank = grid.dim()
        over = set(varying(grid)) & set(dims_of(tuple(range(rank)) if step["dim"] is None else step["dim"], rank))
        if over and not set(varying(grid)) - over:
            if len(over) > 1:
                return self._frozen(step, shape, f"{step.target} runs over several dimensions of channels")
            self._record_reduction(*over)
            if FAMILY_OF[step.target] is not Family.REDUCE:
                return grid
            return self._frozen_number(len(shape), f"{step.target} of all channels")
        tied = self._atoms.tied(grid, sorted(over))
        return reduced(tied, step) if FAMILY_OF[step.target] is Family.REDUCE else tied

    def _move(self, step: Step, shape: Shape) -> Tensor:
        grid = self._grid(step["input"])
        by_number = {"[]": "dim", "torch.roll": "dims", "torch.squeeze": "dim"}.get(step.target)  # squeeze drops only dimensions of size 1
        if step.target == "[:]" and step["step"] > 1:
            by_number = "dim"
        if by_number and set(dims_of(step[by_number], grid.dim())) & set(varying(grid)):
            return self._frozen(step, shape, f"{step.target} depends on channel positions")
        return self._mover.move(step, self._grid)

    def _pixel_shuffle(self, step: Step, shape: Shape) -> Tensor:
        atoms = self._atoms.along(self._grid(step["input"]), 1, self._shapes.of(step["input"])[1], "F.pixel_shuffle is not followed")
        return placed(self._atoms.tied(atoms.view(shape[1], -1), [1]).reshape(-1), 1, 4)

    def _join(self, step: Step, shape: Shape) -> Tensor:
        """Join; operands joined along a dimension other than the channels share their channels.

        What is joined along the channels may be a declared tensor of other numbers for each pixel, such as coordinates: it is one channel.
        """
        joined = self._mover.move(step, self._grid)
        dim = step["dim"] % len(shape)
        others = [other for other in varying(joined) if other != dim]
        if dim not in varying(joined) or not others:
            return joined
        joins_channels = step.target == "torch.cat" and any(varying(self._grid(operand)) == [dim] for operand in step["tensors"])
        return self._atoms.tied(joined, others if joins_channels else [dim])

    def _pad(self, step: Step, shape: Shape) -> Tensor:
        grid, own = self._grid(step["input"]), self._shapes.of(step["input"])
        for dim, (before, after) in pads(step, grid.dim()).items():
            if grid.shape[dim] == 1 and not pads_one_channel(grid, own, dim):
                continue
            if step["mode"] != "constant" or before < 0 or after < 0 or len(varying(grid)) > 1:
                return self._frozen(step, shape, f"{step.target} repeats channels")
            fresh = [placed(self._atoms.fresh(count), dim, grid.dim()) for count in (before, after) if count]
            self._atoms.padding += [atoms.reshape(-1).numpy() for atoms in fresh]
            grid = torch.cat([*fresh[: bool(before)], grid, *fresh[bool(before) :]], dim)
        return grid

    def _binary(self, step: Step, shape: Shape) -> Tensor:
        """Unite operands that have one channel for each of the result's; freeze a single channel that is broadcast over many."""
        operands = step.operands()
        if any(map(self._mover.is_index, operands)):
            return self._unknown(step, shape)
        # Declared tensors without atoms yet adopt those of the result; if no operand has any, the first gets new ones.
        known = [o for o in operands if isinstance(o, Value) or o.name in self._atoms.declared] or [operands[0]]
        grids = {operand: aligned(self._grid(operand), len(shape)) for operand in known}
        along = {dim for grid in grids.values() for dim in varying(grid)}
        result: Tensor | None = None
        for operand, grid in grids.items():
            if self._is_broadcast(operand, shape, along):
                if isinstance(operand, Value) or varying(grid):
                    self._atoms.freeze(grid, f"broadcast by {step.target}")
            elif result is None:
                result = grid
            else:
                self._atoms.unite(result, grid)
                result = broadcast(result, grid)[0]
        if result is None:
            return self._frozen(step, shape, f"broadcast by {step.target}")
        for operand in operands:
            if isinstance(operand, Attribute) and operand not in grids:
                self._give_channels(step, operand, result)
        return result

    def _is_broadcast(self, operand: Operand, shape: Shape, along: set[int]) -> bool:
        """Whether one number of an operand serves several channels: it has size 1 in a dimension along which the result's channels lie."""
        own = self._shapes.of(operand)
        own = (1,) * (len(shape) - len(own)) + own
        return any(own[dim] == 1 < shape[dim] for dim in along)

    def _give_channels(self, step: Step, operand: Attribute, result: Tensor) -> None:
        """Give a declared tensor at its first use the channels of the result, if it has one number for each of them."""
        own = self._shapes.of(operand)
        sizes = (1,) * (result.dim() - len(own)) + own
        shared = [dim for dim in varying(result) if sizes[dim] > 1]
        if len(shared) == len(varying(result)):
            self._atoms.declared[operand.name] = result.reshape(result.shape[result.dim() - len(own) :])
        elif shared:
            self._atoms.freeze(result, f"{step.target} broadcasts {operand.name}")

    def _product(self, step: Step, shape: Shape) -> Tensor:
        """A matrix product: rows of the first operand and columns of the second pass channels on, as in global context blocks.

        Channels along which both are summed up, as in non-local blocks, are united, and end there.
        """
        operands = step.operands()
        if any(isinstance(operand, Attribute) or len(self._shapes.of(operand)) < 2 for operand in operands):
            return self._unknown(step, shape)
        rank, (one, other) = len(shape), map(self._grid, operands)
        along = [[dim - grid.dim() for dim in varying(grid)] for grid in (one, other)]
        if along == [[-1], [-2]]:
            self._atoms.unite(one.reshape(-1), other.reshape(-1))
            self._record_reduction(one.dim() - 1)
            return self._frozen_number(rank, f"{step.target} adds up all channels")
        for passed, shared, dim in ((one, other, -2), (other, one, -1)):
            if (varying(passed), varying(shared)) == ([passed.dim() + dim], []):
                self._atoms.freeze(shared, f"broadcast by {step.target}")
                return placed(passed.reshape(-1), rank + dim, rank)
        return self._unknown(step, shape)

    def _index_add(self, step: Step, shape: Shape) -> Tensor:
        grid, source = self._grid(step["input"]), self._grid(step["source"])
        dim = step["dim"] % len(shape)
        if varying(grid) not in ([dim], []) or varying(source) not in ([dim], []):
            return self._unknown(step, shape)
        index = self._mover.index(step["index"].name)
        atoms = grid.reshape(-1).expand(shape[dim])
        self._atoms.unite(atoms[index], source.reshape(-1).expand(len(index)))
        return placed(atoms, dim, len(shape))


_LAYER_RULES: Final[dict[str, Callable[[Walk, Layer, Tensor, Shape], Tensor]]] = {
    "Conv1d": Walk._convolution,
    "Conv2d": Walk._convolution,
    "ConvTranspose2d": Walk._convolution,
    "Linear": Walk._linear,
    "BatchNorm1d": Walk._carry,
    "BatchNorm2d": Walk._carry,
    "InstanceNorm2d": Walk._carry,
    "LayerNorm": Walk._layer_norm,
    "RMSNorm": Walk._layer_norm,
    "GroupNorm": Walk._group_norm,
    "PReLU": Walk._prelu,
    "MultiheadAttention": Walk._attention,
}
_FAMILY_RULES: Final[dict[Family, Callable[[Walk, Step, Shape], Tensor]]] = {
    Family.ELEMENTWISE: Walk._pass,
    Family.RANDOM: Walk._pass,
    Family.BINARY: Walk._binary,
    Family.POOL: Walk._pool,
    Family.REDUCE: Walk._reduce,
    Family.NORMALIZE: Walk._reduce,
    Family.MOVE: Walk._move,
}
_RULES: Final[dict[str, Callable[[Walk, Step, Shape], Tensor]]] = {
    "@": Walk._product,
    "torch.cat": Walk._join,
    "torch.stack": Walk._join,
    "F.batch_norm": Walk._batch_norm,
    "F.conv1d": Walk._weighted,
    "F.conv2d": Walk._weighted,
    "F.linear": Walk._weighted,
    "F.pad": Walk._pad,
    "F.pixel_shuffle": Walk._pixel_shuffle,
    "torch.Tensor.type_as": Walk._pass,
    "torch.addcmul": Walk._binary,
    "torch.index_add": Walk._index_add,
}
