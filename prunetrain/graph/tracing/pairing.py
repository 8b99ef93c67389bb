"""Two recordings that differ in the batch size only become one: whole numbers that differ tell what depends on the batch."""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch

from prunetrain.graph.tracing.records import BATCHES, Call, Constant, Differing, Pass, Place, Recording, Varying


def pair_up(first: Recording, second: Recording, *, training: bool) -> Pass:
    """The calls of both recordings.

    Raises:
        TraceError: where the model takes other steps for another batch size.
    """
    calls = []
    for one, two in zip_longest(first.calls, second.calls):
        if one is None or two is None or one.name != two.name or one.results != two.results:
            raise (one or two).place.error("takes other steps when the batch size is another")
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
