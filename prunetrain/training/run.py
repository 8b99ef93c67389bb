"""A whole training run: epochs, validation, reconfigurations, files. What `prunetrain train` does, without the terminal."""

import json
import math
import resource
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prunetrain.config import TrainConfig, build_config, flag_of
from prunetrain.errors import CheckpointError, ConfigError, NetworkFileError, OutputError
from prunetrain.files import append_line, write_text
from prunetrain.graph.costs import costs
from prunetrain.models import short_name
from prunetrain.paths import LAST, RunPaths, run_of_checkpoint
from prunetrain.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from prunetrain.training.data import DataSource, load_data
from prunetrain.training.divergence import check_finite
from prunetrain.training.environment import Environment
from prunetrain.training.events import Metrics, Observer, Reconfiguration
from prunetrain.training.loop import EpochResult, evaluate, train_one_epoch
from prunetrain.training.reconfiguration import reconfigure
from prunetrain.training.recovery import discard_unborn, keep_newest, make_newest, newest_whole
from prunetrain.training.state import TrainState, load_state, new_state
from prunetrain.training.stopping import Action, Pacer, Requests, StopRequested, stopping_on_signals

# What may change between a run and its continuation; everything else decides what the run computes.
CHANGEABLE = frozenset(
    (
        "epochs prune_interval threshold criterion round_to data_dir download workers device compile milestones schedule "
        "checkpoint_minutes keep"
    ).split()
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its files, its metrics (a line an epoch), its present network, and the signal that stopped it before its end."""

    run: RunPaths
    history: list[Metrics]
    network: Path
    stopped_by: signal.Signals | None = None

    @property
    def finished(self) -> bool:
        """Whether it came to its last epoch's end."""
        return self.stopped_by is None


def start_run(config: TrainConfig, observer: Observer) -> Outcome:
    """Train from the beginning under the first free name.

    Raises:
        PruneTrainError: for settings, data or files that do not work; nothing is written before they were checked.
        StopRequested: if a signal came before training began, and left nothing of the run; or came twice.
    """
    with stopping_on_signals() as requests:
        return _start(config, observer, requests)


def run_name(config: TrainConfig) -> str:
    """The name of a run: the given one, or model and data set, such as `resnet18-digits` for `torchvision:resnet18`."""
    return config.name or f"{short_name(config.model)}-{config.dataset}"


def resume_run(path: Path, given: dict[str, Any], observer: Observer) -> Outcome:
    """Go on from a checkpoint with the settings inside it. What the run wrote after it goes.

    Args:
        path: the checkpoint; or a run's folder of checkpoints, for the newest whole one in it.
        given: settings that are to differ; only some may (`CHANGEABLE`).
        observer: is told what happens.

    Raises:
        PruneTrainError: for a checkpoint, network file or setting that does not work.
        StopRequested: if a signal came before training began, or came twice.
    """
    with stopping_on_signals() as requests:
        if not path.is_dir():
            config_of(path, given)  # refuse what cannot be resumed before anything is locked
        run = run_of_checkpoint(path / LAST if path.is_dir() else path)
        if not run.networks.is_dir():
            raise NetworkFileError(f"{path} is not a run's: it belongs to network files in {run.networks}, which is not there")
        with run.locked():
            checkpoint = newest_whole(run, observer.message) if path.is_dir() else path
            if checkpoint is None:
                raise CheckpointError(f"{path} has no checkpoint: start the run again without --resume")
            return _go_on(checkpoint, given, observer, requests)


def continue_run(run: RunPaths, config: TrainConfig, given: dict[str, Any], observer: Observer) -> Outcome:
    """Go on from the newest whole checkpoint of a run; start it if it was killed before it had one.

    Args:
        run: one of which something is there.
        config: settings of a start.
        given: settings that are to differ from those of the run.
        observer: is told what happens.

    Raises:
        PruneTrainError: if no checkpoint is whole, or another process is working on the run; and as `resume_run` and `start_run`.
        StopRequested: as there.
    """
    with stopping_on_signals() as requests:
        with run.locked():
            path = newest_whole(run, observer.message)
            if path is not None:
                return _go_on(path, given, observer, requests)
            discard_unborn(run)
        return _start(replace(config, name=run.name), observer, requests)


def _start(config: TrainConfig, observer: Observer, requests: Requests) -> Outcome:
    environment = Environment.of(config)
    data = load_data(config, environment.device)
    requests.check()
    state = new_state(config, RunPaths(Path(config.output_dir), run_name(config)), data, environment, observer.message)
    with state.run.locked():
        return _train(state, data, observer, requests)


def _go_on(path: Path, given: dict[str, Any], observer: Observer, requests: Requests) -> Outcome:
    config = config_of(path, given)
    observer.message(f"resuming from {path}")
    environment = Environment.of(config)
    data = load_data(config, environment.device)
    state = load_state(path, config, data, environment)
    state.check_fits(data)
    requests.check()
    make_newest(state.run, path, state.progress.epoch, observer.message)
    keep_newest(state.run, config.keep)
    _rewrite_metrics(state)
    return _train(state, data, observer, requests)


def config_of(path: Path, given: dict[str, Any]) -> TrainConfig:
    """The settings inside a checkpoint, with some changed.

    Raises:
        CheckpointError: if they cannot be read.
        ConfigError: for a change of what the run has been computing with.
    """
    config = stored_config(path, load_checkpoint(path))
    changed = {key: value for key, value in given.items() if getattr(config, key) != value}
    fixed = sorted(map(flag_of, changed.keys() - CHANGEABLE - {"name", "output_dir"}))
    if fixed:
        raise ConfigError(f"{fixed[0]} cannot change when a run is resumed: leave it out, or start a new run with --name")
    return build_config(config.to_dict(), {key: value for key, value in changed.items() if key in CHANGEABLE})


def stored_config(path: Path, checkpoint: Checkpoint) -> TrainConfig:
    """The settings inside a checkpoint.

    Raises:
        CheckpointError: if they cannot be read.
    """
    try:
        return build_config(checkpoint.config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its settings are not readable: {error}") from None


def _train(state: TrainState, data: DataSource, observer: Observer, requests: Requests) -> Outcome:
    config = state.config
    observer.started(
        total_epochs=config.epochs,
        epoch=state.progress.epoch,
        steps_per_epoch=data.steps_per_epoch(state.batch_size),
        dense_macs=costs(state.dense).macs,
    )
    pacer = Pacer(requests, config.checkpoint_minutes)
    with requests.deferred():
        while state.progress.epoch < config.epochs:
            result = train_one_epoch(state, data, observer, lambda: pacer.action() is not Action.GO_ON)
            check_finite(state, result)
            if pacer.action() is Action.STOP or state.progress.step < data.steps_per_epoch(state.batch_size):
                _save(state)
            else:
                state = _end_epoch(state, data, result, observer, requests)
            pacer.saved()
            if pacer.action() is Action.STOP and state.progress.epoch < config.epochs:
                return _outcome(state, requests.asked)
    return _outcome(state)


def _outcome(state: TrainState, stopped_by: signal.Signals | None = None) -> Outcome:
    return Outcome(state.run, state.progress.history, state.network, stopped_by)


def _save(state: TrainState) -> None:
    """Write last.pt.

    Raises:
        OutputError: if it cannot be written, or the network file is gone without which it is worth nothing.
    """
    for path in (state.network, state.run.checkpoints):
        if not path.exists():
            raise OutputError(f"{path} was removed while the run trained: put it back, or start a new run")
    save_checkpoint(state.run.last, state.checkpoint())


def _end_epoch(state: TrainState, data: DataSource, result: EpochResult, observer: Observer, requests: Requests) -> TrainState:
    """Validate, reconfigure when it is time, write everything, tell the observer; or, at a request to stop, save the epoch as it is."""
    trained = state.progress
    try:
        with requests.at_once():
            after, event = _validate_and_cut(state, data, result)
    except StopRequested:
        state.progress = trained
        _save(state)
        return state
    metrics = after.progress.history[-1]
    _save(after)
    append_line(after.run.metrics, _line_of(metrics))
    if event is not None:
        keep_newest(after.run, after.config.keep)
    observer.epoch_ended(metrics)
    if event is not None:
        observer.reconfigured(event)
    return after


def _validate_and_cut(state: TrainState, data: DataSource, result: EpochResult) -> tuple[TrainState, Reconfiguration | None]:
    """The run with the epoch in its history; and cut, if it is time. What is computed here comes out the same another time."""
    config = state.config
    evaluation = evaluate(state, data)
    metrics = _metrics(state, result, evaluation.loss, evaluation.top1)
    epoch = state.progress.epoch + 1
    state.progress = replace(state.progress, epoch=epoch, step=0, running={}, history=[*state.progress.history, metrics])
    if config.penalty_ratio > 0 and (epoch % config.prune_interval == 0 or epoch == config.epochs):
        return reconfigure(state, data, evaluation.top1)
    return state, None


def _metrics(state: TrainState, result: EpochResult, val_loss: float, val_top1: float) -> Metrics:
    strength = state.progress.lasso_strength or 0.0
    return {
        "epoch": state.progress.epoch + 1,
        "train_loss": result.loss,
        "lasso": strength * float(state.lasso.penalty()) if state.lasso else 0.0,
        "train_top1": result.top1,
        "val_loss": val_loss if math.isfinite(val_loss) else None,
        "val_top1": val_top1,
        "lr": state.optimizer.param_groups[0]["lr"],
        "batch_size": state.batch_size,
        "macs": state.costs.macs,
        "params": state.costs.params,
        "channels": state.costs.channels,
        "train_macs_total": state.progress.train_macs,
        "train_images_total": state.progress.train_images,
        "epoch_seconds": result.seconds,
        "images_per_second": result.images / result.seconds,
        "peak_memory_bytes": _peak_memory(state.device),
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _rewrite_metrics(state: TrainState) -> None:
    """Make metrics.jsonl say what the checkpoint says: a crash may have left a line too many or too few."""
    write_text(state.run.metrics, "".join(_line_of(line) + "\n" for line in state.progress.history))


def _line_of(metrics: Metrics) -> str:
    return json.dumps(metrics, allow_nan=False)
