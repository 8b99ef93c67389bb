"""Profiling a network's forward pass: every step is timed on its own, forward and backward, on the activations that actually reach it.

On a CPU each step runs once per round. On a GPU, where launching a step and waiting for it takes longer than many steps themselves, it is
then repeated several times in a row, between two events of the GPU's own clock.

In: graphs. Out: for each step its MACs, the bytes it must move, and seconds. Steps are named after the layer that they call, or, for
functions, after the function and the layer before it, so that the steps of a network and of its cut form can be matched.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunetrain.graph.costs import TRAIN_TO_FORWARD, step_macs
from prunetrain.graph.expressions import expression
from prunetrain.graph.layergraph import LayerGraph, Step, Value
from prunetrain.training.benchmarking.conditions import Conditions

_REPEATS = 10  # on a GPU


@dataclass(frozen=True)
class StepProfile:
    """One step of a forward pass, in training, for a whole batch.

    `kind` is the layer's class or the function; `macs` and `moved` (bytes) are for forward and backward together; `forward` and
    `backward` hold the seconds of every round.

    The forward pass reads inputs and weights and writes the output. The backward pass reads the output's gradient and what autograd saved
    for it, and writes the gradients of inputs and weights. Each counts once; a view moves nothing, nor does a gradient passed on unchanged.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    macs: int
    moved: int
    forward: tuple[float, ...]
    backward: tuple[float, ...]

    @property
    def seconds(self) -> list[float]:
        """Seconds of forward plus backward, round by round."""
        return [there + back for there, back in zip(self.forward, self.backward, strict=True)]


def profile_steps(graphs: list[LayerGraph], conditions: Conditions, *, rounds: int) -> list[list[StepProfile]]:
    """Time all steps of some networks, which take turns round after round, following one round of warm-up."""
    timers = [_StepTimer(graph, conditions) for graph in graphs]
    passes: list[list[list[StepProfile]]] = [[list(timer.run()) for timer in timers] for _ in range(rounds + 1)]
    return [[_merge_rounds(step) for step in zip(*(done[number] for done in passes[1:]), strict=True)] for number in range(len(graphs))]


def _merge_rounds(rounds: tuple[StepProfile, ...]) -> StepProfile:
    forward, backward = (tuple(seconds for step in rounds for seconds in getattr(step, way)) for way in ("forward", "backward"))
    return replace(rounds[0], forward=forward, backward=backward)


def step_names(graph: LayerGraph) -> list[str]:
    """A name for every step: `conv1`, `F.relu after bn1`, `F.relu after bn1 (2)`."""
    names, before, taken = [], "input", Counter[str]()
    for step in graph.steps:
        before = step.layer or before
        name = step.layer or f"{step.target} after {before}"
        taken[name] += 1
        names.append(f"{name} ({taken[name]})" if taken[name] > 1 else name)
    return names


class _StepTimer:
    """Runs a network step by step in train mode."""

    def __init__(self, graph: LayerGraph, conditions: Conditions) -> None:
        self._graph = graph
        self._conditions = conditions
        self._model = conditions.build(graph).train()
        self._kinds = {layer.name: layer.kind for layer in graph.layers}
        self._codes = [self._compile(step) for step in graph.steps]
        self._last_use = {value: numbers[-1] for value, numbers in graph.uses().items() if numbers}
        self._names = step_names(graph)
        self._macs = step_macs(graph)
        self._declared = dict(self._model.named_parameters(recurse=False))

    def _compile(self, step: Step) -> CodeType:
        kind = self._kinds[step.layer] if step.layer else None
        return compile(expression([step], [kind], _name), f"<{step.target}>", "eval")

    def run(self) -> Iterator[StepProfile]:
        """One pass; yields each step with the seconds of this pass."""
        values: dict[Value, Tensor] = {Value(0): self._conditions.images(self._graph.input_shape)}
        for value, step in self._graph.results():
            profile, values[value] = self._time(value.index - 1, step, values)
            for read in set(step.inputs()):
                if self._last_use[read] == value.index - 1 and read not in self._graph.outputs:
                    del values[read]
            yield profile

    def _time(self, number: int, step: Step, values: dict[Value, Tensor]) -> tuple[StepProfile, Tensor]:
        """A step's profile, and its result (N, ...)."""
        inputs = {value: values[value].detach() for value in step.inputs()}
        for value, tensor in inputs.items():  # the images need no gradient
            tensor.requires_grad_(value != Value(0) and tensor.is_floating_point())
        tensors = [*inputs.values(), *self._weights(step)]
        learning = [tensor for tensor in tensors if tensor.requires_grad]
        scope = {"torch": torch, "F": functional, "self": self._model, **{_name(value): tensor for value, tensor in inputs.items()}}
        forward, output, saved = self._forward(self._codes[number], scope)
        backward, gradients = self._backward(output, learning) if output.requires_grad else (0.0, [])
        result = output.detach()
        learned = TRAIN_TO_FORWARD - (Value(0) in inputs)  # without the gradient of the images
        moved = 0 if _shares_memory(result, inputs.values()) else _size([*tensors, result])
        moved += _size([result, *saved, *gradients]) if gradients else 0
        profile = StepProfile(
            self._names[number],
            self._kinds[step.layer] if step.layer else step.target,
            tuple(result.shape[1:]),
            learned * self._macs[number] * self._conditions.batch_size,
            moved,
            (forward,),
            (backward,),
        )
        return profile, result

    def _forward(self, code: CodeType, scope: dict[str, Any]) -> tuple[float, Tensor, list[Tensor]]:
        """Seconds of a step's forward pass, its output, and the tensors that autograd saves for backward."""
        saved: list[Tensor] = []
        made: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            saved.append(tensor)
            return tensor

        def again() -> None:
            with self._conditions.autocast():
                eval(code, scope)

        with self._conditions.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
            seconds = self._conditions.seconds(lambda: made.append(eval(code, scope)))
        return _seconds_in_a_row(again) if self._conditions.is_asynchronous else seconds, made[0], saved

    def _backward(self, output: Tensor, learning: list[Tensor]) -> tuple[float, list[Tensor]]:
        """Seconds of a step's backward pass, and the gradients that it makes, without those that it passes on unchanged."""
        several = self._conditions.is_asynchronous
        gradient = torch.ones_like(output)
        made: list[Tensor] = []

        def again() -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(output, learning, gradient, allow_unused=True, retain_graph=several)

        def once() -> None:
            made.extend(tensor for tensor in again() if tensor is not None and not _shares_memory(tensor, [gradient]))

        seconds = self._conditions.seconds(once)
        return _seconds_in_a_row(again) if several else seconds, made

    def _weights(self, step: Step) -> list[Tensor]:
        layer = self._model.get_submodule(step.layer).parameters() if step.layer else ()
        return [*layer, *(self._declared[name] for name in step.attributes() if name in self._declared)]


def _seconds_in_a_row(action: Callable[[], object]) -> float:
    """Seconds by the GPU's clock of an action that has run before: the mean of several times in a row."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    for _ in range(_REPEATS):
        action()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000 / _REPEATS  # torch gives milliseconds


def _name(value: Value) -> str:
    return f"v{value.index}"


def _size(tensors: Iterable[Tensor]) -> int:
    """Total bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _shares_memory(tensor: Tensor, others: Iterable[Tensor]) -> bool:
    """Whether a tensor shares the memory of another, so that nothing was moved to make it."""
    return any(tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in others)
