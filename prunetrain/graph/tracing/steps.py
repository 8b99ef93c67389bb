"""All supported calls, and the steps of one mode that they become."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn

from prunetrain.graph.layergraph import Value
from prunetrain.graph.tracing.arithmetic import ARITHMETIC
from prunetrain.graph.tracing.builder import Builder
from prunetrain.graph.tracing.calls import RANDOM
from prunetrain.graph.tracing.functional import FUNCTIONAL, call_module
from prunetrain.graph.tracing.indexing import INDEXING
from prunetrain.graph.tracing.records import Call, PairedRecording, Place
from prunetrain.graph.tracing.registry import Registry
from prunetrain.graph.tracing.reshapes import RESHAPES
from prunetrain.graph.tracing.simple import SIMPLE
from prunetrain.graph.tracing.simplify import ModeSteps, simplify_steps

_CONVERTERS: Final[Mapping[str, Callable[[Builder, Call], Any]]] = {**SIMPLE, **ARITHMETIC, **RESHAPES, **INDEXING, **FUNCTIONAL}


def steps_from_recording(traced: PairedRecording, registry: Registry, modules: Mapping[str, nn.Module]) -> ModeSteps:
    """Return the steps of one mode.

    Raises:
        TraceError: at the first call that the outputs need and a network file cannot express.
    """
    build = Builder(traced, registry)
    for call in needed_calls(traced):
        build.at(call.place)
        if call.name == "module":
            build.convert(call, lambda build, call: call_module(build, call, modules))
        elif call.name in _CONVERTERS:
            build.convert(call, _CONVERTERS[call.name])
        else:
            random = "draws random numbers: only dropout and stochastic depth are supported"
            reason = random if call.name in RANDOM else "is not supported yet: use other functions of torch"
            raise call.place.error(f"{call.name} {reason}")
    outputs = []
    build.at(Place("", ""))
    for leaf in traced.outputs:
        try:
            made = build.tensor(leaf)
        except ValueError as error:
            raise Place("", "").error(f"the output of forward {error}") from None
        if not isinstance(made, Value):
            raise Place("", "").error("forward returns a tensor that does not depend on the images")
        outputs.append(made)
    return simplify_steps(build, tuple(outputs))


def needed_calls(traced: PairedRecording) -> tuple[Call, ...]:
    """Return the calls that the outputs depend on, in order."""
    needed = set(_results_in(traced.outputs))
    kept = []
    for call in reversed(traced.calls):
        if needed & set(call.results):
            needed.update(_results_in((call.arguments, tuple(call.keywords.values()))))
            kept.append(call)
    return tuple(reversed(kept))


def _results_in(value: object) -> list[int]:
    if isinstance(value, tuple):
        return [number for item in value for number in _results_in(item)]
    index = getattr(value, "index", None)
    return [index] if isinstance(index, int) else []
