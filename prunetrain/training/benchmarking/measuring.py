"""The measurements of `prunetrain bench`, for one network or several that take turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.memory import peak_memory
from prunetrain.training.benchmarking.rounds import time_in_turn
from prunetrain.training.benchmarking.steps import Inference, LassoStep, TrainingStep
from prunetrain.training.compilation import OFF
from prunetrain.training.kernels import fastest_kernels


@dataclass(frozen=True)
class Measurements:
    """The measurements of one network: seconds, round by round, and bytes.

    `train_step`: forward, backward and optimizer, without the lasso, whose proximal step is `lasso_step`. `inference`: a forward pass
    of a batch; `inference_one`: of one image. `peak_memory`: of training.
    """

    peak_memory: int
    train_step: list[float]
    inference: list[float]
    inference_one: list[float]
    lasso_step: list[float]


def measure(graphs: Sequence[LayerGraph], conditions: Conditions, *, rounds: int) -> list[Measurements]:
    """Measure networks, with all measurements of all networks taking turns.

    Args:
        graphs: the networks.
        conditions: how they run.
        rounds: how often each measurement is taken, after two warm-up rounds.
    """
    eager = replace(conditions, compile=OFF)  # what a compiled network allocates cannot be seen from outside
    with fastest_kernels(conditions.device):
        peaks = [peak_memory(lambda graph=graph: TrainingStep(graph, eager), conditions.device) for graph in graphs]  # type: ignore[misc]
    actions: list[Callable[[], None]] = []
    for graph in graphs:
        step = TrainingStep(graph, conditions)
        actions += [
            _with_fastest_kernels(step, conditions),
            Inference(graph, conditions),
            Inference(graph, conditions.with_batch(1)),
            LassoStep(graph, step.model),
        ]
    seconds = time_in_turn(actions, rounds=rounds, wait=conditions.wait, clock=conditions.clock)
    each = len(actions) // len(graphs)
    return [Measurements(peak, *seconds[number * each : (number + 1) * each]) for number, peak in enumerate(peaks)]


def _with_fastest_kernels(step: TrainingStep, conditions: Conditions) -> Callable[[], None]:
    """The step, with the kernels that a run chooses."""

    def action() -> None:
        with fastest_kernels(conditions.device):
            step()

    return action
