"""The steps of train mode and of eval mode become one list.

What runs in train mode alone is either random (dropout, stochastic depth: it reads `self.training`) or feeds nothing but outputs that
exist in train mode alone (auxiliary heads). Eval mode has no steps of its own.
"""

from dataclasses import dataclass
from typing import Any

from prunetrain.errors import TraceError
from prunetrain.graph.functions import FAMILY_OF, Family
from prunetrain.graph.layergraph import TRAINING, Argument, Step, Value
from prunetrain.graph.tracing.builder import STOCHASTIC_DEPTH, Line
from prunetrain.graph.tracing.simplify import Steps


@dataclass(frozen=True)
class Merged:
    """The steps of both modes; outputs of both modes and those of train mode alone."""

    steps: tuple[Step, ...]
    outputs: tuple[Value, ...]
    auxiliary: tuple[Value, ...]


class _Unknown(Exception):
    pass


def merged(training: Steps, evaluation: Steps) -> Merged:
    """One list of steps for both modes.

    Raises:
        TraceError: at the first step that runs in one mode only and is neither random nor part of an auxiliary head.
    """
    steps: list[Step] = []
    in_evaluation = {Value(0): Value(0)}  # result of train mode -> what stands for it in eval mode, as a result of train mode
    matched = {Value(0): Value(0)}  # result of eval mode -> the same result of train mode
    waiting = list(evaluation.lines)
    for number, line in enumerate(training.lines, start=1):
        step, value = line.step, Value(number)
        both = _in_both(step, waiting[0].step, in_evaluation, matched) if waiting else None
        if both is not None:
            waiting.pop(0)
            matched[Value(len(evaluation.lines) - len(waiting))] = in_evaluation[value] = value
            step = both
        elif _is_random(step):
            step = _reading_the_mode(step)
            read = step.inputs()[0]
            if read in in_evaluation:
                in_evaluation[value] = in_evaluation[read]
        steps.append(step)
    count = len(evaluation.outputs)
    fits = not waiting and all(
        in_evaluation.get(one) == matched[other] for one, other in zip(training.outputs, evaluation.outputs, strict=False)
    )
    if not fits or len(training.outputs) < count:
        raise _difference(training, in_evaluation, waiting, count)
    return _written_out(steps, training, count)


def _in_both(step: Step, other: Step, in_evaluation: dict[Value, Value], matched: dict[Value, Value]) -> Step | None:
    """The step that says both, or None if they do not say the same."""

    def seen(value: Value) -> Value:
        if value not in in_evaluation:
            raise _Unknown
        return in_evaluation[value]

    try:
        one = step.map_values(seen)
    except _Unknown:
        return None
    two = other.map_values(matched.__getitem__)
    if one == two:
        return step
    if (
        one.target == two.target == "F.batch_norm"
        and _without_mode(one) == _without_mode(two)
        and step["training"]
        and not other["training"]
    ):
        return _reading_the_mode(step)
    return None


def _without_mode(step: Step) -> tuple[tuple[str, Argument], ...]:
    return tuple((name, argument) for name, argument in step.arguments if name != "training")


def _is_random(step: Step) -> bool:
    return step.target == STOCHASTIC_DEPTH or (FAMILY_OF.get(step.target) is Family.RANDOM and step["training"] is True)


def _reading_the_mode(step: Step) -> Step:
    if step.target == STOCHASTIC_DEPTH:
        return step
    return Step.make(step.target, **{**dict(step.arguments), "training": TRAINING})


def _difference(training: Steps, in_evaluation: dict[Value, Value], waiting: list[Line], count: int) -> TraceError:
    needed = {value.index for value in training.outputs[:count]}
    first = None
    for number in range(len(training.lines), 0, -1):
        if number in needed:
            needed |= {value.index for value in training.lines[number - 1].step.inputs()}
            first = training.lines[number - 1] if Value(number) not in in_evaluation else first
    line = first or (waiting[0] if waiting else training.lines[-1])
    return line.place.error(
        "forward takes other steps in train mode than in eval mode; only dropout, stochastic depth and outputs of train mode may differ"
    )


def _written_out(steps: list[Step], training: Steps, count: int) -> Merged:
    """Stochastic depth as steps of torch: dropout of whole rows, which draws the same random numbers."""
    written: list[Step] = []
    new: dict[Value, Value] = {Value(0): Value(0)}
    for number, step in enumerate(steps, start=1):
        moved = step.map_values(new.__getitem__)
        if step.target == STOCHASTIC_DEPTH:
            arguments: dict[str, Any] = dict(moved.arguments)
            rank = training.ranks[number]
            written.append(Step.make("torch.unsqueeze", input=arguments["input"], dim=1))
            written.append(Step.make(f"F.dropout{rank - 1}d", input=Value(len(written)), p=arguments["p"], training=TRAINING))
            moved = Step.make("torch.squeeze", input=Value(len(written)), dim=1)
        written.append(moved)
        new[Value(number)] = Value(len(written))
    outputs = tuple(new[value] for value in training.outputs)
    return Merged(tuple(written), outputs[:count], outputs[count:])
