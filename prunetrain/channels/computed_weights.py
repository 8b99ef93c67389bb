"""Weights that a function is given: declared tensors, or computed from some, as in weight standardisation (arXiv 1903.10520).

In: a graph. Out: which declared tensors these weights come from, and which of them no factor may scale; with a state dict, the weights. A
weight is (out, in, ...): its rows belong to the outputs of the function, its columns to the inputs.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from prunetrain.graph.functions import FAMILY_OF, RESULT_OF, WEIGHTED, Family
from prunetrain.graph.layergraph import Attribute, LayerGraph, Operand, Step, Value


@dataclass(frozen=True)
class ComputedWeights:
    """The weights that the functions of a graph are given.

    `declared` names the tensors that they are computed from, or the weights that are declared themselves. `fixed` has those weights that
    do not depend on the images. `stored` names the tensors that hold a fixed weight before something is computed from it: the largest that
    it is computed from, and all with several numbers for each filter. Where these are normalised, a smaller tensor gives the same weight,
    and one of zeros gives 0/0; so none is scaled and none set to zero.
    """

    declared: frozenset[str]
    fixed: frozenset[Operand]
    stored: frozenset[str]


def find_computed_weights(graph: LayerGraph) -> ComputedWeights:
    """Find the weights that the functions of a graph are given."""
    shapes = {tensor.name: tensor.shape for tensor in graph.declared}
    declared: set[str] = set()
    stored: set[str] = set()
    fixed: set[Operand] = set()
    for weight in {step["weight"] for step in graph.steps if step.target in WEIGHTED}:
        behind = graph.behind(weight)
        names = {operand.name for operand in behind if isinstance(operand, Attribute)}
        declared |= names
        if all(_is_computable(graph, operand) for operand in behind):
            fixed.add(weight)
            if isinstance(weight, Value):
                largest = max(prod(shapes[name]) for name in names)
                stored |= {name for name in names if prod(shapes[name]) == largest or sum(size > 1 for size in shapes[name]) > 1}
    return ComputedWeights(frozenset(declared), frozenset(fixed), frozenset(stored))


def _is_computable(graph: LayerGraph, operand: Operand) -> bool:
    """Whether `compute_weight` can compute a tensor, given what its step reads."""
    if isinstance(operand, Attribute):
        return True
    if not operand.index:
        return False
    step = graph.steps[operand.index - 1]
    if step.target == "F.batch_norm":
        return step["running_mean"] is None
    return step.layer is None and (FAMILY_OF[step.target] not in (Family.OTHER, Family.RANDOM) or step.target == "torch.addcmul")


def compute_weight(graph: LayerGraph, state: Mapping[str, Tensor], weight: Operand) -> Tensor:
    """Compute a weight that does not depend on the images; without gradients, on the device of the state dict.

    Args:
        graph: the network.
        state: its state dict.
        weight: one of `ComputedWeights.fixed`.
    """
    indices = {tensor.name: torch.tensor(tensor.values) for tensor in graph.declared if tensor.role == "index"}
    known: dict[Operand, Tensor] = {}

    def given(argument: object) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(given, argument))
        if not isinstance(argument, Value | Attribute):
            return argument
        if argument not in known:
            known[argument] = declared(argument.name) if isinstance(argument, Attribute) else computed(graph.steps[argument.index - 1])
        return known[argument]

    def declared(name: str) -> Tensor:
        return indices[name].to(next(iter(state.values())).device) if name in indices else state[name].detach()

    def computed(step: Step) -> Tensor:
        return _called(step.target, {name: given(argument) for name, argument in step.arguments})

    result: Tensor = given(weight)
    return result


def _called(target: str, arguments: dict[str, Any]) -> Tensor:
    if target in ("[:]", "[]"):
        dim = arguments["dim"] % arguments["input"].dim()
        part = slice(arguments.get("start"), arguments.get("stop"), arguments.get("step")) if target == "[:]" else arguments["index"]
        found: Tensor = arguments["input"][(slice(None),) * dim + (part,)]
        return found
    if target in _OPERATORS:
        return _OPERATORS[target](arguments["input"], arguments["other"])
    match target, arguments:
        case "F.batch_norm", _:
            arguments = {"running_mean": None, "running_var": None} | arguments
        case "torch.flip", {"dims": int()}:
            arguments = arguments | {"dims": (arguments["dims"],)}
    module, _, name = target.partition(".")
    result = attrgetter(name)({"F": F, "torch": torch}[module])(**arguments)
    if target in RESULT_OF:
        result = result[0 if RESULT_OF[target] == ".values" else 1]
    return result  # type: ignore[no-any-return]


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Tensor]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}
