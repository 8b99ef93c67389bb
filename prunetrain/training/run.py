"""A whole training run: epochs, validation, reconfigurations, files. What `prunetrain train` does, without the terminal."""

import json
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prunetrain.config import TrainConfig, build_config, flag_of
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.files import append_line, remove_leftovers, write_text
from prunetrain.graph.costs import costs
from prunetrain.models import short_name
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from prunetrain.training.data import DataSource, load_data
from prunetrain.training.environment import Environment
from prunetrain.training.events import Metrics, Observer
from prunetrain.training.loop import EpochResult, evaluate, train_one_epoch
from prunetrain.training.reconfiguration import reconfigure
from prunetrain.training.state import TrainState, load_state, new_state
from prunetrain.training.stopping import stopping_on_signals

# What may change between a run and its continuation; everything else decides what the run computes.
CHANGEABLE = frozenset(
    "epochs prune_interval threshold criterion round_to data_dir download workers device compile milestones schedule".split()
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its files, its metrics (a line an epoch), its present network, and whether it was stopped before its last epoch."""

    run: RunPaths
    history: list[Metrics]
    network: Path
    finished: bool


def start_run(config: TrainConfig, observer: Observer) -> Outcome:
    """Train from the beginning under the first free name.

    Raises:
        PruneTrainError: for settings, data or files that do not work; nothing is written before they were checked.
    """
    environment = Environment.of(config)
    data = load_data(config, environment.device)
    state = new_state(config, RunPaths(Path(config.output_dir), run_name(config)), data, environment, observer.message)
    return _train(state, data, observer)


def run_name(config: TrainConfig) -> str:
    """The name of a run: the given one, or model and data set, such as `resnet18-digits` for `torchvision:resnet18`."""
    return config.name or f"{short_name(config.model)}-{config.dataset}"


def resume_run(path: Path, given: dict[str, Any], observer: Observer) -> Outcome:
    """Go on from a checkpoint with the settings inside it.

    Args:
        path: the checkpoint.
        given: settings that are to differ; only some may (`CHANGEABLE`).
        observer: is told what happens.

    Raises:
        PruneTrainError: for a checkpoint, network file or setting that does not work.
    """
    config = config_of(path, given)
    environment = Environment.of(config)
    data = load_data(config, environment.device)
    state = load_state(path, config, data, environment)
    state.check_fits(data)
    for folder in (state.run.networks, state.run.checkpoints):
        remove_leftovers(folder)
    _rewrite_metrics(state)
    return _train(state, data, observer)


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


def _train(state: TrainState, data: DataSource, observer: Observer) -> Outcome:
    config = state.config
    observer.started(
        total_epochs=config.epochs,
        epoch=state.progress.epoch,
        steps_per_epoch=data.steps_per_epoch(state.batch_size),
        dense_macs=costs(state.dense).macs,
    )
    with stopping_on_signals() as stop:
        while state.progress.epoch < config.epochs:
            result = train_one_epoch(state, data, observer, stop)
            if result.stopped and state.progress.step < data.steps_per_epoch(state.batch_size):
                save_checkpoint(state.run.last, state.checkpoint())
                return _outcome(state, finished=False)
            state = _end_epoch(state, data, result, observer)
            if stop() and state.progress.epoch < config.epochs:
                return _outcome(state, finished=False)
    return _outcome(state, finished=True)


def _outcome(state: TrainState, *, finished: bool) -> Outcome:
    return Outcome(state.run, state.progress.history, state.network, finished)


def _end_epoch(state: TrainState, data: DataSource, result: EpochResult, observer: Observer) -> TrainState:
    """Validate, reconfigure when it is time, write everything, tell the observer."""
    evaluation = evaluate(state, data)
    metrics = _metrics(state, result, evaluation.loss, evaluation.top1)
    epoch = state.progress.epoch + 1
    state.progress = replace(state.progress, epoch=epoch, step=0, running={}, history=[*state.progress.history, metrics])
    event = None
    if _time_to_cut(state):
        state.progress = replace(state.progress, fading=[])
        state, event = reconfigure(state, data, evaluation.top1)
    save_checkpoint(state.run.last, state.checkpoint())
    append_line(state.run.metrics, json.dumps(metrics))
    observer.epoch_ended(metrics)
    if event is not None:
        observer.reconfigured(event)
    return state


def _time_to_cut(state: TrainState) -> bool:
    """Whether a reconfiguration follows the epoch just done: every interval as long as there is a lasso, and at the end."""
    config, epoch = state.config, state.progress.epoch
    if config.penalty_ratio == 0:
        return False
    return epoch == config.epochs or (epoch % config.prune_interval == 0 and bool(state.progress.lasso_strength))


def _metrics(state: TrainState, result: EpochResult, val_loss: float, val_top1: float) -> Metrics:
    strength = state.progress.lasso_strength or 0.0
    return {
        "epoch": state.progress.epoch + 1,
        "train_loss": result.loss,
        "lasso": strength * float(state.lasso.penalty()) if state.lasso else 0.0,
        "train_top1": result.top1,
        "val_loss": val_loss,
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
    write_text(state.run.metrics, "".join(json.dumps(line) + "\n" for line in state.progress.history))
