"""Two recordings that differ in the batch size only become one: whole numbers that differ tell what depends on the batch.

A third one, of a single image, has to say the same.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch

from prunetrain.errors import TraceError
from prunetrain.graph.tracing.records import BATCHES, Call, Constant, Differing, Pass, Place, Recording, Ref, Varying


def pair_up(first: Recording, second: Recording, *, training: bool) -> Pass:
    """The calls of both recordings.

    Raises:
        TraceError: where the model takes other steps for another batch size.
    """
    calls = []
    for one, two in zip_longest(first.calls, second.calls):
        if one is None or two is None or one.name != two.name or one.results != two.results:
            raise _other_steps(one or two)
        calls.append(
            Call(
                one.name,
                _both(one.arguments, two.arguments, one.place),
                _both(one.keywords, two.keywords, one.place),
                one.results,
                one.place,
            )
        )
    outputs = _both(first.outputs, second.outputs, Place("", ""))
    return Pass(training, tuple(calls), tuple(zip(first.shapes, second.shapes, strict=True)), outputs, frozenset(first.integers))


def check_alone(several: Pass, alone: Recording) -> None:
    """Check that the model does with one image what it does with several.

    Raises:
        TraceError: where it takes other steps, or the same with other numbers.
    """
    # contiguous() gives one image, transposed, back as it is: nothing to write down
    both, single = ([call for call in calls if call.name != "contiguous"] for calls in (several.calls, tuple(alone.calls)))
    for one, two in zip_longest(both, single):
        if one is None or two is None or one.name != two.name or not _says((one.arguments, one.keywords), (two.arguments, two.keywords)):
            raise _other_steps(two or one)


def _says(both: Any, alone: Any) -> bool:
    """Whether an argument of one image is that of several, as far as it depends neither on the images nor on how many they are."""
    if isinstance(both, tuple):
        return isinstance(alone, tuple) and len(both) == len(alone) and all(map(_says, both, alone))
    if isinstance(both, Mapping):
        return isinstance(alone, Mapping) and both.keys() == alone.keys() and all(_says(both[key], alone[key]) for key in both)
    if isinstance(both, slice):
        return isinstance(alone, slice) and all(_says(getattr(both, part), getattr(alone, part)) for part in ("start", "stop", "step"))
    return isinstance(both, Ref | Constant | Varying | Differing) or both == alone or str(both) == str(alone) == "nan"


def _other_steps(call: Call) -> TraceError:
    return call.place.error("takes other steps when the batch size is another")


def _both(one: Any, two: Any, place: Place) -> Any:
    if type(one) is type(two):
        if isinstance(one, tuple) and len(one) == len(two):
            return tuple(_both(a, b, place) for a, b in zip(one, two, strict=True))
        if isinstance(one, Mapping) and one.keys() == two.keys():
            return {key: _both(one[key], two[key], place) for key in one}
        if isinstance(one, slice):
            return slice(*(_both(getattr(one, part), getattr(two, part), place) for part in ("start", "stop", "step")))
        if isinstance(one, Constant):
            if one.tensor.dtype == two.tensor.dtype and torch.equal(one.tensor, two.tensor):
                return one
            if _is_repeated(one.tensor, two.tensor):
                return Constant(one.tensor[:1], repeated=True)
            return Varying()
        if one == two or str(one) == str(two) == "nan":
            return one
        if type(one) is int:
            return Differing((one, two))
    raise place.error(f"{one!r} would be {two!r} for another batch size; only the shape of a tensor may depend on it")


def _is_repeated(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two constants have the same row over and over, once for each image."""
    if one.ndim == 0 or one.ndim != two.ndim or (len(one), len(two)) != BATCHES or one.dtype != two.dtype or one.shape[1:] != two.shape[1:]:
        return False
    return bool((one == one[:1]).all()) and bool((two == one[:1]).all())
