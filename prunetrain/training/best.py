"""The best checkpoint of a run, `best.pt`, with `--keep-best`.

In: a run, `last.pt` of its newest epoch. Out: a copy of it, if that epoch has the highest validation top-1 of the present network.
Epochs of a larger network, or of one with more weights, do not count: a cut or a pruning starts the comparison again.
"""

from collections.abc import Iterator
from itertools import takewhile

from prunetrain.errors import CheckpointError
from prunetrain.files import copy_file
from prunetrain.method_settings import GROUP_LASSO
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.events import Metrics
from prunetrain.training.state import TrainState


def best_epoch(state: TrainState) -> int | None:
    """The epoch with the highest validation top-1 since the last cut or pruning, the first of equal ones; None if there is none yet."""
    lines = list(_metrics_since_cut(state))
    return max(reversed(lines), key=lambda line: line["val_top1"])["epoch"] if lines else None


def _metrics_since_cut(state: TrainState) -> Iterator[Metrics]:
    """The present network's lines of metrics, newest first.

    A method writes a network file after each epoch that ends with a pruning, the group lasso also where it cuts nothing.
    """

    def is_of_present(line: Metrics) -> bool:
        if state.config.method != GROUP_LASSO:
            return state.run.network(line["epoch"]).name != state.network.name
        return line["macs"] == state.costs.macs and "sparsity" not in line

    return takewhile(is_of_present, reversed(state.progress.history))


def keep_best(state: TrainState) -> None:
    """Update best.pt, on one process only; `last.pt` must already be that of the newest epoch's end.

    Raises:
        OutputError: if it cannot be written.
    """
    best = best_epoch(state)
    if best is None:
        state.run.best.unlink(missing_ok=True)
    elif best == state.progress.epoch:
        copy_file(state.run.last, state.run.best)


def restore_best(state: TrainState) -> None:
    """Correct best.pt when a run resumes: the run may have ended before it was written, or may resume from an earlier epoch.

    If the run no longer keeps its best checkpoint, an older one stays.

    Raises:
        OutputError: if it cannot be written.
    """
    progress = state.progress
    if state.config.keep_best and progress.step == 0 and best_epoch(state) == progress.epoch:
        keep_best(state)
    elif state.run.best.exists() and _is_outdated(state):
        state.run.best.unlink()


def _is_outdated(state: TrainState) -> bool:
    """Whether best.pt is not of the best epoch; if the run no longer keeps that, whether it is of a later epoch than the present one."""
    found = _epoch_of_best(state)
    if state.config.keep_best:
        return found != best_epoch(state)
    return found is not None and found > state.progress.epoch


def _epoch_of_best(state: TrainState) -> int | None:
    try:
        return load_checkpoint(state.run.best).progress.epoch
    except CheckpointError:
        return None
