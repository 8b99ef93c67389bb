"""A whole training run: epochs, validation, reconfigurations, files. What `prunetrain train` does, without the terminal.

With several processes, all of them run this, in step. The first one finds, locks and writes files; `Ranks.on_rank_zero` tells the others.
"""

import re
import signal
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunetrain.config import TrainConfig, build_config, flag_of
from prunetrain.errors import CheckpointError, ConfigError, NetworkFileError, OutputError
from prunetrain.files import append_line, resolve_links
from prunetrain.graph.costs import costs
from prunetrain.method_settings import GROUP_LASSO, LR_RESTART
from prunetrain.models import short_name
from prunetrain.paths import LAST, RunPaths, run_of_checkpoint
from prunetrain.training.best import best_epoch, keep_best, restore_best
from prunetrain.training.checkpoints import COPY_BOTH, Checkpoint, load_checkpoint
from prunetrain.training.creation import RunCreator, create_dense_run, new_state
from prunetrain.training.data import DataSource
from prunetrain.training.data.summary import summary
from prunetrain.training.distribution import Ranks
from prunetrain.training.divergence import check_finite
from prunetrain.training.environment import Environment, warning_images_left_out
from prunetrain.training.events import Metrics, Observer, Reconfiguration, Start
from prunetrain.training.joining import note_run
from prunetrain.training.lasso_schedule import (
    interval_start,
    warning_nothing_penalised,
    warning_target_unreachable,
    warning_too_few_epochs,
    why_target_missed,
)
from prunetrain.training.loop import EpochResult, evaluate, train_one_epoch
from prunetrain.training.memory import release_memory
from prunetrain.training.metrics import count_nonzero, line_of, metrics_of, rewrite_metrics
from prunetrain.training.pairs import pair_of
from prunetrain.training.pruned_run import prune_in_training
from prunetrain.training.pruning import is_due
from prunetrain.training.reconfiguration import reconfigure
from prunetrain.training.recovery import find_newest_checkpoint, remove_old_checkpoints, remove_unstarted_run, roll_back_to
from prunetrain.training.state import TrainState, load_state
from prunetrain.training.stopping import Action, Pacer, StopRequested, StopRequests, stopping_on_signals
from prunetrain.training.stored_config import stored_config

# What may change between a run and its continuation; everything else decides what the run computes.
CHANGEABLE = frozenset(
    """
    epochs prune_interval threshold criterion round_to dynamic_batch max_batch_size data_dir download cache workers device compile
    milestones schedule checkpoint_minutes keep keep_best
    """.split()
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its files, its metrics (one line per epoch), its present network, and the signal that stopped it early, if any.

    `val_top1` (a fraction) and `nonzero_params` are those of the present network: no line of metrics covers a pruning after the last epoch.
    `missed` says why a finished run has more MACs than its target, if it has; `best_epoch` is the epoch of `best.pt`, with `--keep-best`.
    """

    run: RunPaths
    history: list[Metrics] = field(repr=False)
    network: Path
    stopped_by: signal.Signals | None = None
    val_top1: float | None = None
    nonzero_params: int | None = None
    missed: str | None = None
    best_epoch: int | None = None

    @property
    def finished(self) -> bool:
        """Whether it reached the end of its last epoch."""
        return self.stopped_by is None


def start_run(config: TrainConfig, observer: Observer, create: RunCreator = create_dense_run) -> Outcome:
    """Train from the beginning under the first free name.

    Args:
        config: the settings.
        observer: receives the run's events.
        create: writes the first files; by default of a network with random weights.

    Raises:
        PruneTrainError: for settings, data or files that cannot be used; nothing is written before they were checked.
        StopRequested: if a signal came before training began, in which case nothing of the run is left, or came twice.
    """
    with stopping_on_signals() as requests, ExitStack() as held:
        return _train([_start(config, observer, requests, held, create)], observer, requests)


def run_name(config: TrainConfig) -> str:
    """The name of a run: the given one, or model and data set, such as `resnet18-digits` for `torchvision:resnet18`."""
    return config.name or f"{short_name(config.model)}-{config.dataset}"


def resume_run(path: Path, given: dict[str, Any], observer: Observer) -> Outcome:
    """Resume from a checkpoint with the settings inside it. What the run wrote after it is removed.

    Args:
        path: the checkpoint; or a run's folder of checkpoints, for the newest whole one in it.
        given: settings to change; only those in `CHANGEABLE` may change.
        observer: receives the run's events.

    Raises:
        PruneTrainError: for a checkpoint, network file or setting that cannot be used.
        StopRequested: if a signal came before training began, or came twice.
    """
    with stopping_on_signals() as requests, ExitStack() as held:
        checkpoint = Ranks.joined().on_rank_zero(lambda: _lock_checkpoint(path, given, observer, held))
        return _train([_resume(checkpoint, given, observer, requests)], observer, requests)


def _lock_checkpoint(path: Path, given: dict[str, Any], observer: Observer, held: ExitStack) -> Path:
    """Find the checkpoint that a path means; its run stays locked until `held` is closed."""
    if not path.is_dir():
        config_of(path, load_checkpoint(path), given)  # refuse what cannot be resumed before anything is locked
    run = run_of_checkpoint(path / LAST if path.is_dir() else path)
    if not run.networks.is_dir():
        raise NetworkFileError(
            f"{path} is not part of a run: its network files belong in {run.networks}, which does not exist: {COPY_BOTH}"
        )
    held.enter_context(run.locked())
    checkpoint = find_newest_checkpoint(run, observer.message) if path.is_dir() else path
    if checkpoint is None:
        raise CheckpointError(f"{path} has no checkpoint: start the run again without --resume")
    return checkpoint


def check_same_place(path: Path, *, name: str | None, output_dir: str | None) -> None:
    """Refuse to continue a run under another name or in another place.

    Args:
        path: as for `resume_run`.
        name: the run's name, if one was given; `x` also stands for `x-2`.
        output_dir: the folder of its files, if one was given.

    Raises:
        ConfigError: if these are not the run's.
    """
    if not path.exists() or (name is None and output_dir is None):
        return
    run = run_of_checkpoint(path / LAST if path.is_dir() else path)
    named = name is None or re.fullmatch(rf"{re.escape(name)}(-[0-9]+)?", run.name)
    if not named or (output_dir is not None and resolve_links(Path(output_dir)) != run.output_dir):
        raise ConfigError(
            f"{path} continues as run {run.name} in {run.output_dir}: leave out --name and --output-dir, or copy the run first"
        )


def continue_run(
    run: RunPaths, config: TrainConfig, given: dict[str, Any], observer: Observer, create: RunCreator = create_dense_run, *, first: int = 0
) -> Outcome:
    """Resume a run from its newest whole checkpoint; start it if it was killed before it had one.

    Args:
        run: a run of which some files exist.
        config: settings for a start.
        given: settings that differ from those of the run.
        observer: receives the run's events.
        create: writes the first files of a start.
        first: the epoch of these files.

    Raises:
        PruneTrainError: if no checkpoint is whole, or another process is working on the run; and as `resume_run` and `start_run`.
        StopRequested: as `resume_run` and `start_run`.
    """
    with stopping_on_signals() as requests, ExitStack() as held:
        path = Ranks.joined().on_rank_zero(lambda: _lock_newest_checkpoint(run, observer, held, first))
        if path is not None:
            return _train([_resume(path, given, observer, requests)], observer, requests)
        return _train([_start(replace(config, name=run.name), observer, requests, held, create)], observer, requests)


def _lock_newest_checkpoint(run: RunPaths, observer: Observer, held: ExitStack, first: int) -> Path | None:
    """Find the checkpoint to resume from, and lock the run until `held` is closed. None, with nothing locked or left, if there is none."""
    held.enter_context(run.locked())
    path = find_newest_checkpoint(run, observer.message, first)
    if path is None:
        remove_unstarted_run(run, first)
        held.close()
    return path


def _start(
    config: TrainConfig, observer: Observer, requests: StopRequests, held: ExitStack, create: RunCreator
) -> tuple[TrainState, DataSource]:
    environment = Environment.of(config)
    data = environment.load_data(config, observer.message)
    requests.check()
    place = RunPaths(Path(config.output_dir), run_name(config))
    state = new_state(
        config,
        place,
        data,
        environment,
        say=observer.message,
        create=create,
        created=lambda: held.enter_context(requests.deferred()),
        held=held,
    )
    if state.run.name != place.name:
        observer.message(f"run {place.name} exists already: this one is {state.run.name}")
    if state.progress.history:  # of the run that it continues
        state.check_fits(data)
        environment.ranks.on_rank_zero(lambda: rewrite_metrics(state))
    if config.epochs > state.progress.epoch and (
        line := warning_images_left_out(data.num_train, state.batch_size, environment.ranks.world_size)
    ):
        observer.message(line)
    return state, data


def _resume(path: Path, given: dict[str, Any], observer: Observer, requests: StopRequests) -> tuple[TrainState, DataSource]:
    checkpoint = load_checkpoint(path)
    config = config_of(path, checkpoint, given)
    observer.message(f"resuming from {path}")
    environment = Environment.of(config)
    data = environment.load_data(config, observer.message)
    state = load_state(pair_of(path, checkpoint), config, data, environment)
    state.check_fits(data)
    _check_position(path, state, data)
    requests.check()
    environment.ranks.on_rank_zero(lambda: _match_files_to_checkpoint(state, path, observer))
    if state.progress.epoch >= config.epochs:
        more = ": continue with a larger --epochs" if config.method == GROUP_LASSO else ""  # rounds fix the epochs of other methods
        observer.message(f"epoch {state.progress.epoch} was the last{more}")
    return state, data


def _check_position(path: Path, state: TrainState, data: DataSource) -> None:
    """Refuse a place in an epoch that the data does not have, as after an edit of the checkpoint or with another data set of that name."""
    steps = data.steps_per_epoch(state.batch_size)
    if steps == 0 or state.progress.step > steps:
        raise CheckpointError(
            f"{path} is at step {state.progress.step} of an epoch in batches of {state.batch_size:,}, and the data has {steps} such "
            "batches: resume it with the data that it was trained on"
        )


def _match_files_to_checkpoint(state: TrainState, path: Path, observer: Observer) -> None:
    """Make the run's files match the checkpoint that it resumes from."""
    roll_back_to(state.run, path, state.progress.epoch, observer.message)
    remove_old_checkpoints(state.run, state.config.keep, state.config.save_epochs)
    restore_best(state)
    rewrite_metrics(state)


def config_of(path: Path, checkpoint: Checkpoint, given: dict[str, Any]) -> TrainConfig:
    """The settings inside a checkpoint, with some changed; `path` is for errors.

    Raises:
        CheckpointError: if they cannot be read.
        ConfigError: for a change of a setting that must stay as it was.
    """
    config = stored_config(path, checkpoint)
    changed = {key: value for key, value in given.items() if getattr(config, key) != value}
    changeable = CHANGEABLE
    if config.rewinds:  # all rounds have the schedule of the first training
        changeable -= {"epochs"}
    if config.retrain == LR_RESTART and checkpoint.progress.epoch >= config.prune_at:  # the schedule is over
        changeable -= {"schedule", "milestones"}
    fixed = sorted(map(flag_of, changed.keys() - changeable - {"name", "output_dir"}))
    if fixed:
        raise ConfigError(f"{fixed[0]} cannot change when a run is resumed: leave it out, or start a new run with --name")
    return build_config(config.to_dict(), {key: value for key, value in changed.items() if key in changeable})


def _train(begun: list[tuple[TrainState, DataSource]], observer: Observer, requests: StopRequests) -> Outcome:
    """Train to the end. A run that has just begun already defers requests to stop, since there is something to resume from.

    The run comes in a list, from which it is popped: a variable of the caller would keep its first, largest network in memory.
    """
    state, data = begun.pop()
    config, ranks = state.config, state.environment.ranks
    note_run(state.run.checkpoints)
    if ranks.world_size > 1:
        each = state.environment.images_each(state.batch_size)
        observer.message(f"{ranks.world_size} workers: {each} images per step each, {state.batch_size} in all")
    if state.progress.epoch < config.epochs and (warning := _warning_before_training(state)):
        observer.message(warning)
    observer.started(
        Start(
            run=state.run,
            data=summary(config, data),
            total_epochs=config.epochs,
            epoch=state.progress.epoch,
            steps_per_epoch=data.steps_per_epoch(state.batch_size),
            dense_macs=costs(state.dense).macs,
        )
    )
    pacer = Pacer(requests, config.checkpoint_minutes if ranks.rank == 0 else 0)
    top1 = None
    with requests.deferred():
        while state.progress.epoch < config.epochs:
            result = train_one_epoch(state, data, observer, pacer.action)
            check_finite(state, result)
            if result.action is Action.STOP or state.progress.step < data.steps_per_epoch(state.batch_size):
                _save(state)
            else:
                before = state.graph
                state, top1 = _end_epoch(state, data, result, observer, requests)
                if state.graph is not before:  # nothing refers to the old network any more, so its memory can go
                    release_memory(state)
            pacer.saved()
            asked = next(filter(None, ranks.gather(requests.asked)), None)
            if asked is not None and state.progress.epoch < config.epochs:
                return _outcome(state, top1, asked)
        if top1 is None:  # there was nothing to train, and nothing is lost if this stops
            with requests.at_once() if ranks.world_size == 1 else nullcontext():
                top1 = evaluate(state, data).top1
            if not ranks.on_rank_zero(state.run.last.exists):
                _save(state)
        return _outcome(state, top1)


def _warning_before_training(state: TrainState) -> str | None:
    """A sentence on what keeps a run from its target; None if nothing does."""
    if state.costs.macs <= state.config.target_macs * costs(state.dense).macs:
        return None
    if warning := warning_too_few_epochs(state.config):
        return warning
    if state.progress.lasso_strength is not None:  # said when the run began
        return None
    return warning_nothing_penalised(state) or state.environment.ranks.on_rank_zero(lambda: warning_target_unreachable(state))


def _outcome(state: TrainState, top1: float | None, stopped_by: signal.Signals | None = None) -> Outcome:
    why = None if stopped_by else state.environment.ranks.on_rank_zero(lambda: why_target_missed(state))
    best = best_epoch(state) if state.config.keep_best and state.run.best.exists() else None
    return Outcome(state.run, state.progress.history, state.network, stopped_by, top1, count_nonzero(state.model), why, best)


def _save(state: TrainState) -> None:
    """Write last.pt.

    Raises:
        OutputError: if it cannot be written, or the network file that it needs is gone.
    """
    state.environment.ranks.on_rank_zero(lambda: _check_files(state))
    state.save(state.run.last)


def _check_files(state: TrainState) -> None:
    for path in (state.network, state.run.checkpoints):
        if not path.exists():
            raise OutputError(f"{path} was removed while the run trained: put it back, or start a new run")


def _end_epoch(
    state: TrainState, data: DataSource, result: EpochResult, observer: Observer, requests: StopRequests
) -> tuple[TrainState, float | None]:
    """Let the method act, validate, cut or prune when it is time, write everything, tell the observer.

    On a request to stop, save the epoch as it is instead. Return the run, and its present validation top-1.
    """
    trained, ranks = state.progress, state.environment.ranks
    state.run_method.end_epoch_(trained.epoch + 1)
    if trained.epoch + 1 == state.config.rewind_epoch:
        state.keep_rewind_weights()
    try:
        # Several processes would each stop at a different place, so they finish the end of the epoch first.
        with requests.at_once() if ranks.world_size == 1 else nullcontext():
            after, event = _validate_and_cut(state, data, result)
    except StopRequested:
        state.progress = trained
        _save(state)
        return state, None
    metrics = after.progress.history[-1]
    if event is None and after.progress.epoch in after.config.save_epochs:
        after.save(after.run.checkpoint(after.progress.epoch))
    _save(after)
    if after.config.keep_best:
        ranks.on_rank_zero(lambda: keep_best(after))
    ranks.on_rank_zero(lambda: append_line(after.run.metrics, line_of(metrics)))
    if event is not None:
        ranks.on_rank_zero(lambda: remove_old_checkpoints(after.run, after.config.keep, after.config.save_epochs))
    observer.epoch_ended(metrics)
    if event is not None:
        observer.reconfigured(event)
    return after, event.val_top1[1] if event else metrics["val_top1"]


def _validate_and_cut(state: TrainState, data: DataSource, result: EpochResult) -> tuple[TrainState, Reconfiguration | None]:
    """Return the run with the epoch in its history, and cut if it is time. Repeating this gives the same results."""
    evaluation = evaluate(state, data)
    metrics = metrics_of(state, result, evaluation)
    epoch = state.progress.epoch + 1
    state.progress = replace(state.progress, epoch=epoch, step=0, running={}, history=[*state.progress.history, metrics])
    if is_due(state.config, state.run_method.rounds, epoch):
        return prune_in_training(state, data, evaluation.top1)
    if _is_cut_due(state):
        state.progress = replace(state.progress, fading=[])
        return reconfigure(state, data, evaluation.top1)
    return state, None


def _is_cut_due(state: TrainState) -> bool:
    """Whether a reconfiguration follows the epoch just done: after every interval while the lasso acts, and at the end."""
    config, epoch = state.config, state.progress.epoch
    if not config.uses_group_lasso:
        return False
    return epoch == config.epochs or (interval_start(config, epoch) == epoch and bool(state.progress.lasso_strength))
