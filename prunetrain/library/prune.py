"""`prunetrain.prune`: a trained network pruned by one of the methods that people compare with, and retrained; a run like any other.

In: a checkpoint and what to remove. Out: the run that it became, with network files, checkpoints and metrics.
"""

from functools import partial
from pathlib import Path
from typing import Any

from prunetrain.config import TrainConfig, settings_from
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.paths import RunPaths, newest_run
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.events import Observer
from prunetrain.training.pruned_run import create_pruned, pruning_config, read_source_run
from prunetrain.training.run import CHANGEABLE, Outcome, continue_run, start_run
from prunetrain.training.stored import stored_config


def prune(
    checkpoint: str | Path,
    *,
    method: str,
    rate: float = 0.0,
    epochs: int | None = None,
    during: int | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    **settings: Any,
) -> Outcome:
    """Prune a checkpoint and retrain it, as a run of its own: `outcome.run.last` is its last checkpoint.

    Args:
        checkpoint: of a run of `prunetrain train`, at the end of an epoch.
        method: one of `prunetrain.method_settings.METHODS`.
        rate: share to remove, in [0, 1); for magnitude-std the factor of the standard deviation; group-lasso has `penalty_ratio` instead.
        epochs: of retraining after each pruning; by default 10, or where `retrain` takes the schedule back, the rest of it.
        during: epochs of training with the method before it prunes for good: ADMM pulls, filter methods prune softly. By default none,
            and for ADMM as many as of retraining.
        resume: go on with the newest run of this name, if there is one.
        observer: is told what happens.
        settings: fields of `TrainConfig` that differ from the checkpoint's: rounds, retrain, rewind_epoch, slice, lr, name and so on.

    Raises:
        PruneTrainError: for files, settings or a network that do not work; nothing is written before they were checked.
    """
    path = Path(checkpoint)
    given = settings_from({"method": method, "rate": rate, **settings})
    config = pruning_config(path, given, epochs=epochs, during=during)
    told = observer or Observer()
    run = newest_run(Path(config.output_dir), config.name) if resume else None
    source = read_source_run(path, config)
    create = partial(create_pruned, source)
    if run is None:
        return start_run(config, told, create)
    _check_start(run, config)
    decides = {key: value for key, value in config.to_dict().items() if key not in CHANGEABLE or key in given or key == "epochs"}
    return continue_run(run, config, decides, told, create, first=source.checkpoint.progress.epoch)


def _check_start(run: RunPaths, config: TrainConfig) -> None:
    """Refuse to go on with a run that prunes after another epoch: that follows from checkpoint and `during`, and has no name of its own.

    Raises:
        ConfigError: for such a run.
    """
    try:
        began = stored_config(run.last, load_checkpoint(run.last)).prune_at
    except CheckpointError:  # an older one is taken then, or the run started again
        return
    if began != config.prune_at:
        raise ConfigError(
            f"run {run.name} prunes after epoch {began}, and this would after epoch {config.prune_at}: "
            "give the checkpoint and --during that it began with, or leave out --resume"
        )
