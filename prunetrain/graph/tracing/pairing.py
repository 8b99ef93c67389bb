"""Merge two recordings that differ only in the batch size: whole numbers that differ show what depends on the batch.

A third recording, of a single image, must agree with them.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch

from prunetrain.errors import TraceError
from prunetrain.graph.tracing.records import (
    BATCH_SIZES,
    BatchDependentInt,
    BatchDependentTensor,
    Call,
    Constant,
    PairedRecording,
    Place,
    Recording,
    Ref,
)


def pair_recordings(first: Recording, second: Recording, *, training: bool) -> PairedRecording:
    """Return the calls of both recordings as one.

    Raises:
        TraceError: where the model runs other steps for another batch size.
    """
    calls = []
    for one, two in zip_longest(first.calls, second.calls):
        if one is None or two is None or one.name != two.name or one.results != two.results:
            raise _different_steps_error(one or two)
        calls.append(
            Call(
                one.name,
                _pair_values(one.arguments, two.arguments, one.place),
                _pair_values(one.keywords, two.keywords, one.place),
                one.results,
                one.place,
            )
        )
    outputs = _pair_values(first.outputs, second.outputs, Place("", ""))
    return PairedRecording(training, tuple(calls), tuple(zip(first.shapes, second.shapes, strict=True)), outputs, frozenset(first.integers))


def check_single_image(several: PairedRecording, alone: Recording) -> None:
    """Check that the model does with one image what it does with several.

    Raises:
        TraceError: where it runs other steps, or the same steps with other numbers.
    """
    # contiguous() returns one image, transposed, as it is: such a call is not recorded
    both, single = ([call for call in calls if call.name != "contiguous"] for calls in (several.calls, tuple(alone.calls)))
    for one, two in zip_longest(both, single):
        if (
            one is None
            or two is None
            or one.name != two.name
            or not _arguments_agree((one.arguments, one.keywords), (two.arguments, two.keywords))
        ):
            raise _different_steps_error(two or one)


def _arguments_agree(both: Any, alone: Any) -> bool:
    """Whether an argument for one image equals that for several, unless it depends on the images or on their number."""
    if isinstance(both, tuple):
        return isinstance(alone, tuple) and len(both) == len(alone) and all(map(_arguments_agree, both, alone))
    if isinstance(both, Mapping):
        return isinstance(alone, Mapping) and both.keys() == alone.keys() and all(_arguments_agree(both[key], alone[key]) for key in both)
    if isinstance(both, slice):
        return isinstance(alone, slice) and all(
            _arguments_agree(getattr(both, part), getattr(alone, part)) for part in ("start", "stop", "step")
        )
    return isinstance(both, Ref | Constant | BatchDependentTensor | BatchDependentInt) or both == alone or str(both) == str(alone) == "nan"


def _different_steps_error(call: Call) -> TraceError:
    return call.place.error("runs different steps for different batch sizes: make forward independent of the batch size")


def _pair_values(one: Any, two: Any, place: Place) -> Any:
    if type(one) is type(two):
        if isinstance(one, tuple) and len(one) == len(two):
            return tuple(_pair_values(a, b, place) for a, b in zip(one, two, strict=True))
        if isinstance(one, Mapping) and one.keys() == two.keys():
            return {key: _pair_values(one[key], two[key], place) for key in one}
        if isinstance(one, slice):
            return slice(*(_pair_values(getattr(one, part), getattr(two, part), place) for part in ("start", "stop", "step")))
        if isinstance(one, Constant):
            if one.tensor.dtype == two.tensor.dtype and torch.equal(one.tensor, two.tensor):
                return one
            if _is_repeated(one.tensor, two.tensor):
                return Constant(one.tensor[:1], repeated=True)
            return BatchDependentTensor()
        if one == two or str(one) == str(two) == "nan":
            return one
        if type(one) is int:
            return BatchDependentInt((one, two))
    raise place.error(f"{one!r} would be {two!r} for another batch size: only shapes of tensors may depend on the batch size")


def _is_repeated(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two constants repeat the same row, once for each image."""
    if (
        one.ndim == 0
        or one.ndim != two.ndim
        or (len(one), len(two)) != BATCH_SIZES
        or one.dtype != two.dtype
        or one.shape[1:] != two.shape[1:]
    ):
        return False
    return bool((one == one[:1]).all()) and bool((two == one[:1]).all())
