"""Simplify the steps of one mode: drop those that nothing reads, and replace known groups of steps by one step."""

from dataclasses import dataclass, replace

import torch

from prunetrain.graph.functions import FAMILY_OF, Family
from prunetrain.graph.layergraph import Argument, Step, Value
from prunetrain.graph.tracing.builder import Builder, PlacedStep
from prunetrain.graph.tracing.records import Sizes


@dataclass(frozen=True)
class ModeSteps:
    """The steps of one mode, and its outputs; `ranks` has the number of dimensions of every result."""

    lines: tuple[PlacedStep, ...]
    outputs: tuple[Value, ...]
    ranks: tuple[int, ...]


def simplify_steps(build: Builder, outputs: tuple[Value, ...]) -> ModeSteps:
    """Return the steps that the outputs need, simplified."""
    lines = list(build.lines)
    _drop_broadcasts(lines, build, outputs)
    _replace_channel_shuffles(lines, outputs)
    return _keep_needed_steps(lines, outputs, build.sizes)


def _readers(lines: list[PlacedStep], outputs: tuple[Value, ...]) -> dict[int, list[int]]:
    """Map every result to the steps that read it and are needed themselves; -1 stands for an output."""
    readers: dict[int, list[int]] = {value.index: [-1] for value in outputs}
    for number in range(len(lines) - 1, -1, -1):
        if number + 1 in readers:
            for value in lines[number].step.inputs():
                readers.setdefault(value.index, []).append(number)
    return readers


def _drop_broadcasts(lines: list[PlacedStep], build: Builder, outputs: tuple[Value, ...]) -> None:
    """Drop a broadcast_to that an operator does by itself: its operands make the same shape without it.

    Only if nothing else reads the broadcast tensor: gradients from several readers would be added up in another order.
    """
    readers = _readers(lines, outputs)
    for number, line in enumerate(lines):
        if FAMILY_OF.get(line.step.target) is not Family.BINARY:
            continue
        arguments: dict[str, Argument] = dict(line.step.arguments)
        for name, other in (("input", "other"), ("other", "input")):
            one = arguments[name]
            if not isinstance(one, Value) or not one.index:
                continue
            source = lines[one.index - 1].step
            if source.target != "torch.broadcast_to" or len(readers.get(one.index, ())) != 1:
                continue
            pairs = zip(build.sizes_of(source["input"]), build.sizes_of(arguments[other]), strict=True)
            if tuple(torch.broadcast_shapes(*pair) for pair in pairs) == build.sizes[number + 1]:  # type: ignore[no-untyped-call]
                arguments[name] = source["input"]
        lines[number] = replace(line, step=replace(line.step, arguments=tuple(arguments.items())))


def _replace_channel_shuffles(lines: list[PlacedStep], outputs: tuple[Value, ...]) -> None:
    """Replace unflatten, transpose and flatten of channels by F.channel_shuffle."""
    readers = _readers(lines, outputs)
    for number, line in enumerate(lines):
        match line.step.arguments:
            case (("input", Value(moved)), ("start_dim", 1), ("end_dim", 2)) if line.step.target == "torch.flatten" and moved:
                swap = lines[moved - 1].step
            case _:
                continue
        if swap.target != "torch.transpose" or (swap["dim0"], swap["dim1"]) != (1, 2) or not isinstance(swap["input"], Value):
            continue
        split = lines[swap["input"].index - 1].step if swap["input"].index else None
        if split is None or split.target != "torch.unflatten" or split["dim"] != 1 or len(split["sizes"]) != 2:
            continue
        alone = len(readers.get(moved, ())) == 1 and len(readers.get(swap["input"].index, ())) == 1
        if alone and isinstance(split["sizes"][0], int) and split["sizes"][0] > 0:
            lines[number] = replace(line, step=Step.make("F.channel_shuffle", input=split["input"], groups=split["sizes"][0]))


def _keep_needed_steps(lines: list[PlacedStep], outputs: tuple[Value, ...], sizes: list[Sizes]) -> ModeSteps:
    readers = _readers(lines, outputs)
    kept, new, ranks = [], {Value(0): Value(0)}, [len(sizes[0][0])]
    for number, line in enumerate(lines):
        if number + 1 in readers:
            kept.append(replace(line, step=line.step.map_values(new.__getitem__)))
            new[Value(number + 1)] = Value(len(kept))
            ranks.append(len(sizes[number + 1][0]))
    return ModeSteps(tuple(kept), tuple(new[value] for value in outputs), tuple(ranks))


def names_read_by(steps: tuple[Step, ...]) -> set[str]:
    """Return the names of the layers and declared tensors that steps read."""
    return {name for step in steps for name in (*step.attributes(), step.layer) if name is not None}
