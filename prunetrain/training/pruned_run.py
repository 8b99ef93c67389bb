"""Runs that prune: at some epoch of their training, or at the start, from another run's checkpoint. What `prunetrain prune` does.

In: a run, or a checkpoint and settings. Out: a run that continues from a network file and checkpoint, as after a reconfiguration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from prunetrain.config import AUTO, FINE_TUNING_LR_FACTOR, TAYLOR, TrainConfig, build_config
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.files import write_text
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.parse import parse
from prunetrain.method_settings import ADMM, FINETUNE, GROUP_LASSO, LR_RESTART, METHOD_SETTINGS, NOTHING_REWOUND, REWINDING_MODES
from prunetrain.methods.rewinding import WEIGHT_REWINDING_MODES
from prunetrain.paths import RunPaths, run_of_checkpoint
from prunetrain.training.checkpoints import Checkpoint, load_checkpoint
from prunetrain.training.class_names import check_names
from prunetrain.training.creation import Claim
from prunetrain.training.data import DataSource
from prunetrain.training.data.holding_out import check_unseen
from prunetrain.training.environment import Environment
from prunetrain.training.events import Change, Reconfiguration
from prunetrain.training.loop import evaluate
from prunetrain.training.memory import restart_peak
from prunetrain.training.metrics import count_nonzero
from prunetrain.training.pairs import pair_of, read_pair, write_pair
from prunetrain.training.pruning import prune_checkpoint, starting_checkpoint
from prunetrain.training.reconfiguration import PhaseTimer
from prunetrain.training.state import TrainState, load_state
from prunetrain.training.stored_config import stored_config

EPOCHS: Final = 10
"""Default number of epochs of retraining after each pruning."""


@dataclass(frozen=True)
class PruningSource:
    """What will be pruned: a checkpoint, its graph, its settings, its dense network's text, and the weights to rewind to, if any."""

    path: Path
    checkpoint: Checkpoint
    graph: LayerGraph
    config: TrainConfig
    dense: str
    early: Mapping[str, Tensor]


def pruning_config(path: Path, given: Mapping[str, Any], *, epochs: int | None = None, during: int | None = None) -> TrainConfig:
    """The settings of a run that prunes a checkpoint.

    Args:
        path: the checkpoint.
        given: settings that differ from those inside it.
        epochs: epochs of retraining after each pruning; by default 10, or if the schedule is rewound, the rest of it.
        during: epochs of training with the method before it prunes for good; by default none, and for ADMM as many as of retraining; not
            for the group lasso, whose schedule begins at once.

    Raises:
        PruneTrainError: for a checkpoint that cannot be used, or settings that do not go together.
    """
    checkpoint = load_checkpoint(path)
    base = stored_config(path, checkpoint)
    check_unseen(path, base.val_split, given)
    done = checkpoint.progress.epoch
    method = given.get("method", GROUP_LASSO)
    values = base.to_dict() | {name: getattr(TrainConfig, name) for name in ("rate", "prune_at", *METHOD_SETTINGS)}
    values |= {"name": f"{run_of_checkpoint(path).name}-{method.replace(':', '-')}", "save_epochs": ()}
    retrain = given.get("retrain", LR_RESTART if method == GROUP_LASSO else FINETUNE)
    if method == GROUP_LASSO:
        if retrain in REWINDING_MODES:
            raise ConfigError(NOTHING_REWOUND)
        if during:
            raise ConfigError("group-lasso prunes while it trains: leave out --during")
        values["penalty_ratio"] = base.penalty_ratio or TrainConfig.penalty_ratio  # the run may have been trained without it
    else:
        values["dynamic_batch"] = False
    epochs, schedule = _retraining(base, retrain, given.get("rewind_epoch", 0), epochs, done)
    values |= schedule | {"retrain": retrain}
    if retrain in REWINDING_MODES:
        _check_trained_whole(path, checkpoint, base, given.get("rewind_epoch", 0))
    if method == GROUP_LASSO:
        chosen = given.get("importance", base.importance)
        if chosen == AUTO:  # of trained weights, gradients say a little more than norms (docs/results.md)
            chosen = TAYLOR
        return build_config(values, {"prune_at": done, "epochs": done + epochs}, given, {"importance": chosen})
    during = (epochs if method == ADMM else 0) if during is None else during
    if method == ADMM and during == 0:
        raise ConfigError("admm acts before it prunes: give --during, the number of epochs in which it acts")
    rounds = max(1, given.get("rounds", 1))
    return build_config(values, {"prune_at": done + during, "epochs": done + during + rounds * epochs}, given)


def _retraining(base: TrainConfig, retrain: str, rewind_epoch: int, epochs: int | None, done: int) -> tuple[int, dict[str, Any]]:
    """The number of epochs after each pruning, and the schedule of this and of the epochs before, in which a method acts.

    Args:
        base: the settings of the run that is pruned.
        retrain: one of `RETRAIN_MODES`.
        rewind_epoch: where a rewound schedule begins.
        epochs: number of epochs asked for.
        done: number of epochs that the run has trained.

    Raises:
        ConfigError: if a rewound schedule has a different number of epochs left.
    """
    constant = {"schedule": "constant", "warmup_epochs": 0}
    if retrain == FINETUNE:
        tuned = base.schedule == "constant" and base.prune_at > 0 and base.retrain != LR_RESTART  # by this function, or its like
        schedule = constant | {"lr": base.lr if tuned else base.lr * FINE_TUNING_LR_FACTOR}
        return EPOCHS if epochs is None else epochs, schedule
    if retrain == LR_RESTART:
        fine_tuning = {"schedule": "step", "warmup_epochs": 0, "milestones": (done,), "lr_gamma": FINE_TUNING_LR_FACTOR}
        return EPOCHS if epochs is None else epochs, fine_tuning if done else constant
    rest = base.schedule_epochs - rewind_epoch
    if epochs not in (None, rest) or rest < 1:
        raise ConfigError(
            f"{retrain} repeats the run's schedule of {base.schedule_epochs} epochs from its rewind-epoch on: "
            + ("leave out --epochs" if rest > 0 else f"give a rewind-epoch under {base.schedule_epochs}")
        )
    return rest, {}


def _check_trained_whole(path: Path, checkpoint: Checkpoint, config: TrainConfig, first: int) -> None:
    """Refuse to repeat a schedule of which the run has trained only the end, as a fine-tuned run has, or one that has restarted it.

    Args:
        path: the checkpoint.
        checkpoint: its history has the learning rates, each line that of the next epoch.
        config: its settings.
        first: the epoch to rewind to.

    Raises:
        ConfigError: for such a run.
    """
    if config.retrain != LR_RESTART and (config.schedule != "constant" or config.warmup_epochs or config.rewinds):
        return
    before = [line["lr"] for line in checkpoint.progress.history if first <= line["epoch"] < config.prune_at]
    if not all(isclose(lr, config.lr) for lr in before):
        raise ConfigError(
            f"{path} was retrained from epoch {config.prune_at} on, and has no schedule of the epochs before: prune a checkpoint of the "
            "run that it was made from, or leave out --retrain"
        )


def read_pruning_source(path: Path, config: TrainConfig) -> PruningSource:
    """Read what a pruning starts from.

    Args:
        path: the checkpoint.
        config: the settings of the new run.

    Raises:
        PruneTrainError: for files that cannot be used or do not fit each other.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.progress.step:
        raise CheckpointError(f"{path} is in the middle of an epoch: finish it with --resume first, or name another checkpoint")
    pair = pair_of(path, checkpoint)
    pair.build()  # to check that the weights fit
    early = _load_rewind_weights(run_of_checkpoint(path), config, checkpoint)
    return PruningSource(path, checkpoint, pair.graph, stored_config(path, checkpoint), pair.read_dense_source(), early)


def _load_rewind_weights(run: RunPaths, config: TrainConfig, now: Checkpoint) -> Mapping[str, Tensor]:
    """The weights of the epoch to rewind to, from the run's own checkpoints."""
    if config.retrain not in WEIGHT_REWINDING_MODES:
        return {}
    path, epoch = run.checkpoint(config.rewind_epoch), config.rewind_epoch
    if not path.exists():
        there = ", ".join(map(str, run.checkpoint_files())) or "none"
        raise CheckpointError(
            f"{path}: no such checkpoint to rewind to (there are those of epochs {there}): train with --save-epochs {epoch}"
        )
    early = load_checkpoint(path).model
    if {name: tensor.shape for name, tensor in early.items()} != {name: tensor.shape for name, tensor in now.model.items()}:
        raise CheckpointError(f"{path} is of a larger network: a run that has been cut can only rewind to epochs after the cut")
    return early


def create_pruned_run(
    source: PruningSource,
    config: TrainConfig,
    run: RunPaths,
    data: DataSource,
    environment: Environment,
    *,
    say: Callable[[str], object],
    claim: Claim,
) -> Path:
    """Write the first files of a run that prunes another's checkpoint; return the new checkpoint's path. See `new_state`.

    Raises:
        ConfigError: if the method does not work on this network, or the data has other classes.
        OutputError: if the files cannot be written.
    """
    check_names(source.checkpoint.class_names, data, source.path)
    epoch = source.checkpoint.progress.epoch
    free = claim(run)
    named = replace(source.checkpoint, config=replace(config, name=free.name).to_dict())
    pruned = starting_checkpoint(config, source.graph, named, source.early)
    dense = parse(source.dense, source.checkpoint.network)
    if epoch == 0 and pruned.graph != dense:
        raise CheckpointError(f"{source.path} was never trained, and its network is the dense one, which is kept: train an epoch first")
    if epoch > 0:
        write_text(free.network(0), source.dense)
    if pruned.changed:
        say(f"{config.method}: {pruned.summary()} stay")
    return write_pair(free, pruned.graph, dense, pruned.checkpoint)


def prune_in_training(state: TrainState, data: DataSource, val_top1: float) -> tuple[TrainState, Reconfiguration]:
    """Prune a run with its method, write the network and its checkpoint, and load them.

    Args:
        state: the run at the end of an epoch; unchanged.
        data: validates the pruned network.
        val_top1: validation accuracy before, a fraction.

    Returns:
        The run to continue with, and what was done.
    """
    timer = PhaseTimer()
    checkpoint = state.checkpoint()
    path, change = state.environment.ranks.on_rank_zero(lambda: _prune_and_write(state, checkpoint, timer))
    after = load_state(read_pair(path), state.config, data, state.environment)
    restart_peak(after)
    timer.end_phase("load")
    top1 = evaluate(after, data).top1
    timer.end_phase("validate")
    change = replace(change, seconds={**change.seconds, **timer.seconds})
    nonzero = (count_nonzero(state.model), count_nonzero(after.model))
    return after, Reconfiguration(state.progress.epoch, change, after.network, (val_top1, top1), nonzero=nonzero)


def _prune_and_write(state: TrainState, checkpoint: Checkpoint, timer: PhaseTimer) -> tuple[Path, Change]:
    pruned = prune_checkpoint(state.graph, checkpoint, state.config)
    timer.end_phase("prune")
    path = write_pair(state.run, pruned.graph, state.dense, pruned.checkpoint)
    timer.end_phase("write")
    removed = pruned.cut.removed_layers if pruned.cut else ()
    before, after = state.costs, costs(pruned.graph)
    counts = ((before.channels, after.channels), (before.macs, after.macs), (before.params, after.params))
    return path, Change(*counts, state.config.granularity or 1, removed, (), dict(timer.seconds))
