"""Merge the steps of train mode and of eval mode into one list.

A step that runs only in train mode is either random (dropout, stochastic depth: it reads `self.training`) or feeds only outputs that
exist only in train mode (auxiliary heads). Eval mode has no steps of its own.
"""

from dataclasses import dataclass
from typing import Any

from prunetrain.errors import TraceError
from prunetrain.graph.functions import FAMILY_OF, Family
from prunetrain.graph.layergraph import TRAINING, Argument, Step, Value
from prunetrain.graph.tracing.builder import STOCHASTIC_DEPTH, PlacedStep
from prunetrain.graph.tracing.simplify import ModeSteps


@dataclass(frozen=True)
class MergedSteps:
    """The steps of both modes, the outputs of both modes, and those of train mode only."""

    steps: tuple[Step, ...]
    outputs: tuple[Value, ...]
    auxiliary: tuple[Value, ...]


def merge_modes(training: ModeSteps, evaluation: ModeSteps) -> MergedSteps:
    """Return one list of steps for both modes.

    Raises:
        TraceError: at the first step that runs in one mode only and is neither random nor part of an auxiliary head.
    """
    steps: list[Step] = []
    in_evaluation = {Value(0): Value(0)}  # result of train mode -> what stands for it in eval mode, as a result of train mode
    matched = {Value(0): Value(0)}  # result of eval mode -> the same result of train mode
    first: dict[Step | None, Value] = {}  # repeatable step -> the result of its first run, which stands for the others
    waiting = list(evaluation.lines)
    for number, line in enumerate(training.lines, start=1):
        step, value = line.step, Value(number)
        seen = _step_in_eval_mode(step, in_evaluation)
        both = _step_for_both_modes(step, seen, waiting[0].step.map_values(matched.__getitem__)) if seen and waiting else None
        if both is not None:
            waiting.pop(0)
            in_evaluation[value] = first.setdefault(seen, value) if _is_repeatable(both) else value
            matched[Value(len(evaluation.lines) - len(waiting))] = in_evaluation[value]
            step = both
        elif _is_random(step):
            step = _with_training_flag(step)
            read = step.inputs()[0]
            if read in in_evaluation:
                in_evaluation[value] = in_evaluation[read]
        elif seen in first:  # an auxiliary head ran this step first
            in_evaluation[value] = first[seen]
        steps.append(step)
    count = len(evaluation.outputs)
    fits = not waiting and all(
        in_evaluation.get(one) == matched[other] for one, other in zip(training.outputs, evaluation.outputs, strict=False)
    )
    if not fits or len(training.outputs) < count:
        raise _mode_difference_error(training, in_evaluation, waiting, count)
    return _expand_stochastic_depth(steps, training, count)


def _step_in_eval_mode(step: Step, in_evaluation: dict[Value, Value]) -> Step | None:
    """Return a step with what stands for its inputs in eval mode, or None if only train mode has one of them."""
    known = all(value in in_evaluation for value in step.inputs())
    return step.map_values(in_evaluation.__getitem__) if known else None


def _step_for_both_modes(step: Step, one: Step, two: Step) -> Step | None:
    """Return a step for both modes, or None if they differ: `one` is `step` as seen in eval mode, `two` is of eval mode."""
    if one == two:
        return step
    if one.target == two.target == "F.batch_norm" and _without_mode(one) == _without_mode(two) and step["training"] and not two["training"]:
        return _with_training_flag(step)
    return None


def _without_mode(step: Step) -> tuple[tuple[str, Argument], ...]:
    return tuple((name, argument) for name, argument in step.arguments if name != "training")


def _is_random(step: Step) -> bool:
    return step.target == STOCHASTIC_DEPTH or (FAMILY_OF.get(step.target) is Family.RANDOM and step["training"] is True)


def _is_repeatable(step: Step) -> bool:
    """Whether a step always gives the same result for the same inputs in eval mode, and changes no buffer."""
    if step.target == "F.scaled_dot_product_attention":
        return not step["dropout_p"]
    if step.target == "F.batch_norm":
        return step["training"] is not True
    return not _is_random(step)


def _with_training_flag(step: Step) -> Step:
    if step.target == STOCHASTIC_DEPTH:
        return step
    return Step.make(step.target, **{**dict(step.arguments), "training": TRAINING})


def _mode_difference_error(training: ModeSteps, in_evaluation: dict[Value, Value], waiting: list[PlacedStep], count: int) -> TraceError:
    needed = {value.index for value in training.outputs[:count]}
    first = None
    for number in range(len(training.lines), 0, -1):
        if number in needed:
            needed |= {value.index for value in training.lines[number - 1].step.inputs()}
            first = training.lines[number - 1] if Value(number) not in in_evaluation else first
    line = first or (waiting[0] if waiting else training.lines[-1])
    if [left.step.target for left in waiting] in (["F.softmax"], ["F.log_softmax"]):
        return line.place.error(f"{waiting[0].step.target} runs in eval mode only: leave it out, so that both modes return logits")
    return line.place.error(
        "forward runs different steps in train and eval mode: only dropout, stochastic depth and extra outputs in train mode may differ"
    )


def _expand_stochastic_depth(steps: list[Step], training: ModeSteps, count: int) -> MergedSteps:
    """Write stochastic depth as calls of torch: dropout of whole rows, which draws the same random numbers."""
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
    return MergedSteps(tuple(written), outputs[:count], outputs[count:])
