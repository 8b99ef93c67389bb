"""`prunetrain.prune`: prune a trained network by one of the usual baselines and retrain it, as a run like any other.

In: a checkpoint and what to remove. Out: a run with network files, checkpoints and metrics.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prunetrain.config import TrainConfig, check_ignored_settings, check_resume, settings_from
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.method_settings import GROUP_LASSO
from prunetrain.paths import RunPaths, checkpoint_of, newest_run
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.events import Observer
from prunetrain.training.pruned_run import create_pruned_run, pruning_config, read_pruning_source
from prunetrain.training.run import CHANGEABLE, Outcome, config_of, continue_run, start_run


def prune(
    checkpoint: str | Path,
    *,
    method: str,
    rate: float | None = None,
    epochs: int | None = None,
    during: int | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    **settings: Any,
) -> Outcome:
    """Prune a checkpoint and retrain it, as a run of its own: `outcome.run.last` is its last checkpoint.

    Args:
        checkpoint: an end-of-epoch checkpoint of a `prunetrain train` run; or the name of a run in the current folder, which stands for
            its last.pt.
        method: one of `prunetrain.method_settings.METHODS`.
        rate: share to remove, in [0, 1); for magnitude-std the factor of the standard deviation. Needed, except where `layer_rates` name
            shares and for group-lasso, which has `penalty_ratio` and `target_macs` instead.
        epochs: epochs of retraining after each pruning; by default 10, or the rest of the schedule where `retrain` rewinds it.
        during: epochs of training with the method before it prunes for good: ADMM pulls weights, filter methods prune softly. By default
            none, and for ADMM as many as for retraining.
        resume: continue the newest run of this name, if there is one.
        observer: receives the run's events: epochs, cuts, messages.
        settings: fields of `TrainConfig` that differ from the checkpoint's: rounds, retrain, rewind_epoch, slice, lr, name and so on.

    Raises:
        PruneTrainError: for unusable files, settings or networks; all are checked before anything is written.
    """
    check_resume(resume)
    for name, number in (("epochs", epochs), ("during", during)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
            raise ConfigError(f"{name} must be a whole number from 0, not {number!r}")
    given = settings_from({"method": method, **({} if rate is None else {"rate": rate}), **settings})
    if method != GROUP_LASSO and not given.keys() & {"rate", "layer_rates"}:
        raise ConfigError("no rate to prune at: say how much to remove, such as --rate 0.5")
    path = checkpoint_of(checkpoint)
    config = pruning_config(path, given, epochs=epochs, during=during)
    listener = observer or Observer()
    run = newest_run(Path(config.output_dir), config.name) if resume else None
    began = None if run is None else _began_with(run, given)
    if began is not None:  # runs of older versions fine-tune
        config = pruning_config(path, given | {"retrain": began.retrain}, epochs=epochs, during=during)
    source = read_pruning_source(path, config)
    create = partial(create_pruned_run, source)
    if run is None:
        check_ignored_settings(given, config)
        return start_run(config, listener, create)
    if began is not None:
        _check_prune_epoch(run, began, config)
    kept = CHANGEABLE - {"epochs"} | {"importance"}  # the run's own, unless given; runs of older versions rank by norm
    overrides = {key: value for key, value in config.to_dict().items() if key not in kept or key in given}
    return continue_run(run, config, overrides, listener, create, first=source.checkpoint.progress.epoch)


def _began_with(run: RunPaths, given: Mapping[str, Any]) -> TrainConfig | None:
    """The settings of a run; None if its last checkpoint is unreadable: it then continues from an older one, or starts again.

    Raises:
        ConfigError: if another way to retrain is asked for, from which other settings would follow.
    """
    try:
        return config_of(run.last, load_checkpoint(run.last), {"retrain": given["retrain"]} if "retrain" in given else {})
    except CheckpointError:
        return None


def _check_prune_epoch(run: RunPaths, began: TrainConfig, config: TrainConfig) -> None:
    """Refuse to continue a run that prunes after another epoch, which follows from the checkpoint and `during`, not from the run's name.

    Raises:
        ConfigError: for such a run.
    """
    if began.prune_at != config.prune_at:
        raise ConfigError(
            f"run {run.name} prunes after epoch {began.prune_at}, but this command would prune after epoch {config.prune_at}: "
            "give the checkpoint and --during that the run began with, or leave out --resume"
        )
