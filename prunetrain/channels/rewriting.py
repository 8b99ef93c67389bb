"""Rewrite a graph after channels are removed: layers and tensors get their new sizes, steps keep their meaning.

In: a graph, a KeepPlan. Out: the smaller graph, and for every axis the positions that are left. Most steps stay as they are. Sizes and
positions that a step spells out are recomputed. Some steps need more:

* a reduction over the channels counts the removed ones too (`reductions.py`). Its smaller input is padded with the zeros that they were:
  `torch.mean(F.pad(x, (0, 0, 0, 0, 0, 32)), dim=1)`. LayerNorm keeps its length, the remaining channels come first in its weights, and
  the padding is sliced off again: `self.norm(F.pad(x, (0, 32)))[:, :, :64]`.
* a conv that slides over the channels (ECA) gets its input padded and in the old order, and what is left is selected from its output.
* a conv or linear map with a computed weight (`computed_weights.py`) reads the columns of what is left from its weight.
* a channel shuffle whose groups are left with different sizes becomes a selection of positions.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prunetrain.channels.editing import rebuild_graph
from prunetrain.channels.grids import Shapes, pads
from prunetrain.channels.reductions import Reductions, reads_all_channels
from prunetrain.channels.selection import KeepPlan
from prunetrain.channels.spaces import Axis, Ids
from prunetrain.graph.blocks import block_of
from prunetrain.graph.free_names import free_name
from prunetrain.graph.functions import FAMILY_OF, WEIGHTED, Family
from prunetrain.graph.layergraph import Attribute, Declared, Layer, LayerGraph, Operand, Step, Value, loses_whole_groups

_SIZES = {"torch.unflatten": "sizes", "torch.reshape": "shape", "torch.broadcast_to": "size"}  # the argument that spells out sizes
_NO_IDS: Ids = np.empty(0, dtype=np.int64)

AXES = ("in", "out", "features")
"""The channel axes that a layer may have."""


@dataclass(frozen=True)
class Rewritten:
    """The smaller graph; `rows[axis]` has the remaining positions of an axis, in their order in the smaller network."""

    graph: LayerGraph
    rows: Mapping[Axis, Ids]


def rewrite(graph: LayerGraph, plan: KeepPlan) -> Rewritten:
    """Remove the channels that a plan does not keep."""
    return _Rewriter(graph, plan).run()


def resized(layer: Layer, sizes: Mapping[str, int]) -> Layer:
    """Return a layer with other numbers of channels.

    Args:
        layer: the layer.
        sizes: the number of positions left on each of its channel axes: "in", "out", "features".
    """
    if not sizes or reads_all_channels(layer):
        return layer
    groups = layer.conv_groups
    changes: dict[str, Any] = {layer.signature.sizes[axis]: size for axis, size in sizes.items()}
    if layer.passes_groups:
        changes["groups"] = sizes["out"] * groups // layer["out_channels"]
        changes["in_channels"] = changes["groups"] * layer["in_channels"] // groups
    elif groups > 1 and "in" in sizes:
        changes["in_channels"] = sizes["in"] * groups
    if layer.kind == "GroupNorm":
        changes["num_groups"] = layer["num_groups"] * sizes["features"] // layer["num_channels"]
    return layer.with_arguments(**changes)


class _Rewriter:
    def __init__(self, graph: LayerGraph, plan: KeepPlan) -> None:
        self._graph = graph
        self._plan = plan
        self._shapes = Shapes(graph)
        self._reductions = Reductions(graph, plan.spaces, self._shapes)
        self._whole: dict[Operand, Value] = {}
        self._selections: dict[Operand, tuple[Value, Ids]] = {}
        self._layers = {layer.name: layer for layer in graph.layers}
        self._steps: list[Step] = []
        self._new: dict[Value, Value] = {Value(0): Value(0)}
        self._declared = {tensor.name: self._resized_tensor(tensor) for tensor in graph.declared}
        self._uses = graph.uses()
        self._positions = {tensor.name: tensor.values for tensor in graph.declared if tensor.values}
        self._reads = Counter(name for step in graph.steps for name in step.attributes())
        self._block = ""

    def run(self) -> Rewritten:
        rows = {axis: self._rows(axis) for axis in self._plan.spaces.ids}
        for value, step in self._graph.results():
            self._block = block_of(step.layer).replace(".", "_") if step.layer else self._block
            self._new[value] = self._step(value, step)
        layers = tuple(resized(layer, self._sizes(layer, rows)) for layer in self._graph.layers)
        outputs = [self._new[value] for value in self._graph.outputs]
        smaller = rebuild_graph(self._graph, self._steps, outputs, layers, self._declared.values())
        return Rewritten(smaller, rows)

    def _producing_step(self, operand: Operand) -> Step | None:
        """The step that makes a result; None for the network's input and for declared tensors."""
        return self._graph.steps[operand.index - 1] if isinstance(operand, Value) and operand.index else None

    # What is left.

    def _kept(self, operand: Operand, dim: int) -> npt.NDArray[np.bool_] | None:
        """Which positions along a dimension of a result or declared tensor are left, (size,); None if all are."""
        spaces, dim = self._plan.spaces, dim % len(self._shapes.of(operand))
        if isinstance(operand, Value):
            ids, along = spaces.values[operand.index], spaces.values[operand.index].shape[dim] > 1
        else:
            ids, along = spaces.ids.get((operand.name, "features"), _NO_IDS), spaces.dims.get(operand.name) == dim
        kept: npt.NDArray[np.bool_] = self._plan.keep[ids]
        return kept.reshape(-1) if along and not kept.all() else None

    def _rows(self, axis: Axis) -> Ids:
        """The positions of an axis that are left; for a normalisation over all channels, followed by the others."""
        keep = self._plan.keep[self._plan.spaces.ids[axis]]
        layer = self._layers.get(axis[0])
        if layer is not None and reads_all_channels(layer):
            return np.concatenate([np.flatnonzero(keep), np.flatnonzero(~keep)])
        return np.flatnonzero(keep)

    @staticmethod
    def _sizes(layer: Layer, rows: Mapping[Axis, Ids]) -> dict[str, int]:
        return {axis: len(rows[layer.name, axis]) for axis in AXES if (layer.name, axis) in rows}

    def _resized_tensor(self, tensor: Declared) -> Declared:
        dim = self._plan.spaces.dims.get(tensor.name)
        if dim is None:
            return tensor
        size = int(self._plan.keep[self._plan.spaces.ids[tensor.name, "features"]].sum())
        return replace(tensor, shape=(*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]))

    # Steps.

    def _step(self, value: Value, step: Step) -> Value:
        if (reduction := self._reductions.of(value)) is not None:
            return self._reduce(value, step, *reduction)
        moved = step.map_values(lambda read: self._new[read])
        match step.target:
            case "[:]":
                moved = self._slice(step, moved)
            case "F.pad":
                moved = self._pad(value, step, moved)
                if not any(moved["pad"]) and isinstance(moved["input"], Value):
                    return moved["input"]
            case "F.channel_shuffle":
                moved = self._shuffle(step, moved)
            case "torch.index_select" | "torch.index_add":
                moved = self._reindex(step, moved)
            case "F.conv1d" | "F.conv2d":
                moved = self._drop_groups(step, moved)
            case target if target in _SIZES:
                moved = self._resize_argument(value, step, moved)
        return self._add(moved)

    def _add(self, step: Step) -> Value:
        self._steps.append(step)
        return Value(len(self._steps))

    def _reduce(self, value: Value, step: Step, source: Operand, dim: int) -> Value:
        """A reduction over channels, which lie along `dim` of its input, counted from the end."""
        kept = self._kept(source, dim)
        if kept is None or step.target == "@" or (step.target == "torch.sum" and not self._reductions.is_recomputed(source)):
            return self._add(step.map_values(lambda read: self._new[read]))
        if step.layer is not None and self._layers[step.layer].is_convolution:
            return self._slide(step, source, dim, kept)
        if step.target in WEIGHTED:
            return self._read_columns(step, kept)
        reduced = self._add(Step.make(step.target, **dict(step.arguments) | {"input": self._padded(source, dim)}))
        if step.layer is None and FAMILY_OF[step.target] is Family.REDUCE:
            return reduced
        reads = [self._graph.steps[number] for number in self._uses[value]]
        rank = len(self._shapes.of(value))
        if value not in self._graph.outputs and all(self._slices_off_removed(read, kept, dim, rank) for read in reads):
            return reduced
        return self._add(Step.make("[:]", input=reduced, dim=rank + dim, stop=int(kept.sum())))

    def _slide(self, step: Step, source: Operand, dim: int, kept: npt.NDArray[np.bool_]) -> Value:
        """A conv that slides over channels: it reads them in their old order, and of what it returns, what is left is selected."""
        rank = len(self._shapes.of(source))
        along, positions = rank + dim, np.arange(len(kept))
        before = self._producing_step(source)
        if before is not None and before.target == "torch.index_select" and before["dim"] % rank == along:  # from an earlier cut
            name, shared = before["index"].name, isinstance(source, Value) and len(self._uses[source]) > 1
            source, positions = before["input"], np.array(self._positions[name]) if shared else self._take_index(name)
        left = self._kept(source, dim)
        gone = ~(np.ones(self._shapes.of(source)[dim], dtype=bool) if left is None else left)
        order = np.argsort(np.argsort(gone, kind="stable"))[positions]  # channels that are left come first in what is padded
        reads = self._declare_index(f"{step.layer}_reads", order)
        ordered = self._add(Step.make("torch.index_select", input=self._padded(source, dim), dim=along, index=reads))
        slid = self._add(Step.make(step.target, input=ordered))
        writes = self._declare_index(f"{step.layer}_writes", np.flatnonzero(kept))
        selected = self._add(Step.make("torch.index_select", input=slid, dim=along, index=writes))
        self._selections[selected] = slid, np.flatnonzero(kept)
        return selected

    def _read_columns(self, step: Step, kept: npt.NDArray[np.bool_]) -> Value:
        """A conv or linear map with fewer inputs: it gets the columns of its weight for those that are left, the same in each group."""
        weight = step["weight"]
        positions = np.flatnonzero(kept[: self._shapes.of(weight)[1]])
        before = self._producing_step(weight)
        if before is not None and before.target == "torch.index_select" and before["dim"] == 1:  # from an earlier cut
            name, shared = before["index"].name, len(self._uses[weight]) > 1
            weight, positions = before["input"], np.array(self._positions[name] if shared else self._take_index(name))[positions]
            base = name
        else:
            stored = self._graph.weight_of(step)
            base = f"{stored.name.removesuffix('weight').rstrip('_') if stored else ''}_reads".lstrip("_")
        moved = step.map_values(lambda read: self._new[read])
        whole = self._new[weight] if isinstance(weight, Value) else weight
        chosen = self._add(Step.make("torch.index_select", input=whole, dim=1, index=self._declare_index(base, positions)))
        return self._add(Step.make(step.target, **dict(moved.arguments) | {"weight": chosen}))

    def _drop_groups(self, step: Step, moved: Step) -> Step:
        """A grouped conv with a computed weight loses whole groups."""
        kept = self._kept(step["input"], 1)
        if kept is None or not loses_whole_groups(step["groups"], len(kept)):
            return moved
        return Step.make(step.target, **dict(moved.arguments) | {"groups": step["groups"] * int(kept.sum()) // len(kept)})

    def _padded(self, operand: Operand, dim: int) -> Operand:
        """The channels of an operand that are left, followed by zeros, or what becomes of zeros, for those that are not."""
        kept = self._kept(operand, dim) if self._reductions.has_channels(operand) else None
        if kept is None:
            return self._new[operand] if isinstance(operand, Value) else operand
        if operand not in self._whole:
            step = self._producing_step(operand)
            if step is not None and self._reductions.is_recomputed(operand):
                arguments = {
                    name: self._padded(read, dim) if isinstance(read, Value | Attribute) else read for name, read in step.arguments
                }
                self._whole[operand] = self._add(Step.make(step.target, **arguments))
            else:
                self._whole[operand] = self._add(self._padding(operand, step, dim, kept))
        return self._whole[operand]

    def _padding(self, operand: Operand, step: Step | None, dim: int, kept: npt.NDArray[np.bool_]) -> Step:
        """Pad an operand with zeros to its old length. If it ends in such zeros, from the step that makes it, these are added to."""
        left = int(kept.sum())
        if step is not None and step.target == "F.pad" and step["mode"] == "constant" and not step["value"]:
            rank = len(self._shapes.of(operand))
            amounts = pads(step, rank)
            if amounts.keys() == {rank + dim} and amounts[rank + dim][0] == 0:
                operand = step["input"]
                before = self._kept(operand, dim)
                left = self._shapes.of(operand)[dim] if before is None else int(before.sum())
        source = self._new[operand] if isinstance(operand, Value) else operand
        return Step.make("F.pad", input=source, pad=(0, 0) * (-1 - dim) + (0, len(kept) - left))

    @staticmethod
    def _slices_off_removed(read: Step, kept: npt.NDArray[np.bool_], dim: int, rank: int) -> bool:
        """Whether a step slices off the end of a dimension, and no removed channel lies in that end."""
        return (
            read.target == "[:]"
            and read["dim"] % rank == rank + dim
            and (read["start"], read["step"]) == (0, 1)
            and read["stop"] is not None
            and bool((~kept[read["stop"] :]).sum() == 0)
        )

    def _slice(self, step: Step, moved: Step) -> Step:
        kept = self._kept(step["input"], step["dim"])
        if kept is None:
            return moved
        start, stop, _ = slice(step["start"], step["stop"]).indices(len(kept))
        new_stop = None if step["stop"] is None else int(kept[:stop].sum())
        return Step.make("[:]", **dict(moved.arguments) | {"start": int(kept[:start].sum()), "stop": new_stop})

    def _pad(self, value: Value, step: Step, moved: Step) -> Step:
        """Add as many channels as are left of those that were added."""
        amounts, rank = list(step["pad"]), len(self._shapes.of(value))
        for dim, (before, after) in pads(step, rank).items():
            kept = self._kept(value, dim)
            if kept is not None:
                first = 2 * (rank - 1 - dim)
                amounts[first : first + 2] = int(kept[:before].sum()), int(kept[len(kept) - after :].sum())
        return Step.make("F.pad", **dict(moved.arguments) | {"pad": tuple(amounts)})

    def _resize_argument(self, value: Value, step: Step, moved: Step) -> Step:
        name = _SIZES[step.target]
        first = step["dim"] % len(self._shapes.of(step["input"])) if step.target == "torch.unflatten" else 0
        sizes = list(moved[name])
        for position, size in enumerate(sizes):
            kept = self._kept(value, first + position)
            if kept is not None and type(size) is int and size != -1:
                sizes[position] = int(kept.sum())
        return Step.make(step.target, **dict(moved.arguments) | {name: tuple(sizes)})

    def _shuffle(self, step: Step, moved: Step) -> Step:
        kept = self._kept(step["input"], 1)
        if kept is None:
            return moved
        groups = step["groups"]
        order = np.arange(len(kept)).reshape(groups, -1).T.reshape(-1)  # the position that each output comes from
        left = np.cumsum(kept) - 1
        positions = left[order[kept[order]]]
        if len(positions) % groups == 0 and (positions == np.arange(len(positions)).reshape(groups, -1).T.reshape(-1)).all():
            return moved
        index = self._declare_index(f"{self._block}_order".lstrip("_"), positions)
        return Step.make("torch.index_select", input=moved["input"], dim=1, index=index)

    def _declare_index(self, base: str, values: Ids) -> Attribute:
        index = Declared.index(free_name(base, self._layers.keys() | self._declared.keys()), tuple(values.tolist()))
        self._declared[index.name] = index
        return Attribute(index.name)

    def _take_index(self, name: str) -> Ids:
        """The positions in an index that a step replaces; its name becomes free if no other step reads it."""
        if self._reads[name] == 1:
            del self._declared[name]
        return np.array(self._positions[name])

    def _reindex(self, step: Step, moved: Step) -> Step:
        """Renumber an index to the positions that are left; if other steps read it too, the new one gets a new name."""
        kept = self._kept(step["input"], step["dim"])
        if kept is None:
            return moved
        name = step["index"].name
        old = self._take_index(name)
        left = (np.cumsum(kept) - 1)[old[kept[old]]]
        source = moved["input"]
        if step.target == "torch.index_select" and source in self._selections:  # one selection instead of two
            source, among = self._selections[source]
            left = among[left]
        return Step.make(step.target, **dict(moved.arguments) | {"input": source, "index": self._declare_index(name, left)})
