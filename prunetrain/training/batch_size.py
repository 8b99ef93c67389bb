"""`--dynamic-batch`: after a cut the batch grows into the memory that was freed (PruneTrain, arXiv 1901.09290, its dynamic mini-batches).

In: the run, and the smaller network. Out: images per step from now on, over all workers, and the memory behind the decision. The learning
rate follows from the batch: `optimizers.build_scheduler`.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import cache

from prunetrain.config import TrainConfig
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.training.data import DataSource
from prunetrain.training.events import BatchChange
from prunetrain.training.memory import available_memory, is_measured, step_memory
from prunetrain.training.state import TrainState

STEP = 32  # images per worker
_DEFAULT_LIMIT = 4  # times the batch size in the settings
_MIN_STEPS = 10  # per epoch, so that it drops less than a tenth of its images and schedules keep their shape


def choose_batch_size(state: TrainState, smaller: LayerGraph, data: DataSource) -> BatchChange:
    """Choose the batch size after a cut.

    The budget is the memory that a training step of the dense network takes with the settings' batch size, and at most what the device
    has left.

    Args:
        state: the run before the cut.
        smaller: the network after it.
        data: the data set, for the number of images in an epoch.
    """
    config, workers = state.config, state.environment.ranks.world_size

    @cache  # a trial takes up to a second
    def memory(graph: LayerGraph, batch_size: int) -> float:
        return step_memory(state, graph, batch_size // workers)

    budget = min(memory(state.dense, config.batch_size), available_memory(state))
    step, limit = STEP * workers, upper_limit(config, data.num_train)
    chosen = largest_batch(
        present=state.batch_size,
        start=config.batch_size,
        step=step,
        limit=limit,
        fits=lambda batch_size: memory(smaller, batch_size) <= budget,
    )
    return BatchChange(
        batch_size=(state.batch_size, chosen),
        memory=(memory(state.graph, state.batch_size), memory(smaller, chosen)),
        budget=budget,
        measured=is_measured(state),
        steps_per_epoch=data.steps_per_epoch(chosen),
        largest=max(range(config.batch_size, limit + 1, step), default=0) <= chosen,
    )


def upper_limit(config: TrainConfig, num_train: int) -> int:
    """The most images per step: `--max-batch-size`, by default a multiple of the settings' batch size, leaving an epoch enough steps."""
    return min(config.max_batch_size or _DEFAULT_LIMIT * config.batch_size, num_train // _MIN_STEPS)


def largest_batch(*, present: int, start: int, step: int, limit: int, fits: Callable[[int], bool]) -> int:
    """The largest of start + step, start + 2 step, ... above the present batch, within the limit, that fits; otherwise the present one.

    Args:
        present: images per step now.
        start: images per step in the settings.
        step: images by which the batch grows.
        limit: the most images per step.
        fits: whether there is memory for a batch of this size; if one size does not fit, no larger one does.
    """
    sizes = range(start, limit + 1, step)
    larger = sizes[bisect_right(sizes, present) :]
    fitting = bisect_right(larger, False, key=lambda size: not fits(size))
    return larger[fitting - 1] if fitting else present
