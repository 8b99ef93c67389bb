"""How a run begins: its network is built, or taken from a checkpoint, and its first pair of files is written.

In: settings, data. Out: the first network file and checkpoint on disk, and the `TrainState` that is read back from them.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import nn

from prunetrain.config import TrainConfig, parse_arguments
from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.shapes import infer_shapes
from prunetrain.graph.trace import Traced
from prunetrain.method_settings import GROUP_LASSO
from prunetrain.methods.training_method import empty_method_state
from prunetrain.models import PRETRAINED, build_with_weights, pretrained
from prunetrain.models.checked_tracing import trace_and_check, with_own_storage
from prunetrain.models.freezing import find_partly_frozen, frozen_parameters
from prunetrain.paths import RunPaths, new_run, run_of_checkpoint
from prunetrain.training.checkpoints import Checkpoint, Progress, rng_state
from prunetrain.training.class_names import names_of
from prunetrain.training.data import DataSource
from prunetrain.training.data.base import Statistics
from prunetrain.training.environment import Environment
from prunetrain.training.pairs import read_pair, write_pair
from prunetrain.training.pruning import starting_checkpoint
from prunetrain.training.state import TrainState, load_state

Claim: TypeAlias = Callable[[RunPaths], RunPaths]
"""Claims a run's name, or the next free one if it is taken; the run's files are removed again if it fails to start."""


class RunCreator(Protocol):
    """Writes the first pair of files of a run, under the name that `claim` returns for it; returns the checkpoint's path."""

    def __call__(
        self,
        config: TrainConfig,
        run: RunPaths,
        data: DataSource,
        environment: Environment,
        *,
        say: Callable[[str], object],
        claim: Claim,
    ) -> Path:
        """See `new_state`."""
        ...


def create_dense_run(
    config: TrainConfig, run: RunPaths, data: DataSource, environment: Environment, *, say: Callable[[str], object], claim: Claim
) -> Path:
    """Create a run of a flattened network with random weights, or the weights that the settings name; a `RunCreator`."""
    _check_method(config)
    known = pretrained(config.model, data.input_shape) if config.weights == PRETRAINED else None
    if known and len(known.statistics["mean"]) == data.input_shape[0]:
        data.normalize_by(Statistics.from_dict(known.statistics))
    model = build_with_weights(
        config.model,
        known or config.weights,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        model_args=parse_arguments(config.model_args),
        seed=config.seed,
        say=say,
    )
    traced = with_own_storage(trace_and_check(model, torch.zeros(2, *data.input_shape)))
    _check_training(model, traced, config)
    _check_outputs(traced.graph, config, data)
    if last := _last_step_before_loss(traced.graph):
        say(f"{config.model} ends in {last}, but the loss expects logits, which may be any numbers: leave this last step out")
    _check_batch(traced.graph, config, environment)
    free = claim(run)
    first = Checkpoint(
        network="",
        network_sha256="",
        model=traced.state,
        optimizer={},
        parameters=[],
        scaler={},
        rng=rng_state(environment.device),
        config=replace(config, name=free.name).to_dict(),
        progress=Progress(),
        method=empty_method_state(),
        class_names=names_of(data),
        statistics=data.statistics.to_dict(),
    )
    pruned = starting_checkpoint(config, traced.graph, first, traced.state)
    if pruned.graph != traced.graph:
        raise ConfigError(
            f"{config.method} cuts the network, which must be trained for at least one epoch first: give --prune-at 1 or more"
        )
    return write_pair(free, traced.graph, traced.graph, pruned.checkpoint)


def new_state(
    config: TrainConfig,
    run: RunPaths,
    data: DataSource,
    environment: Environment,
    *,
    say: Callable[[str], object] = lambda line: None,
    create: RunCreator = create_dense_run,
    created: Callable[[], object] = lambda: None,
    held: ExitStack | None = None,
) -> TrainState:
    """Start a run: rank 0 writes its first network file and checkpoint, and all ranks read them back.

    Args:
        config: the settings; the run's name is added to them.
        run: where to put it; if another run is there, the next free name is taken.
        data: determines the network's input and output.
        environment: where to train.
        say: called with each line worth telling, such as what was left out of a file of weights.
        create: writes the first files.
        created: called once the run is complete; if anything is raised before that, its files are removed.
        held: keeps the run locked until it is closed; by default the lock ends when this returns.

    Raises:
        ConfigError: for a network that cannot be built or does not fit the data, or weights that do not fit the network.
        OutputError: if the files cannot be written.
    """
    environment.images_each(config.batch_size)
    with ExitStack() as files:

        def claim(wanted: RunPaths) -> RunPaths:
            return files.enter_context(new_run(wanted.output_dir, wanted.name, held))

        path = environment.ranks.on_rank_zero(lambda: create(config, run, data, environment, say=say, claim=claim))
        state = load_state(read_pair(path), replace(config, name=run_of_checkpoint(path).name), data, environment)
        created()
    return state


def _check_method(config: TrainConfig) -> None:
    """Refuse a method that removes nothing, and a number of epochs that does not match the rounds of retraining that rewind."""
    if config.method != GROUP_LASSO and not config.rate and not config.rates:
        raise ConfigError(f"{config.method} removes nothing at rate 0: say how much with --rate")
    if config.rewinds and config.prune_at != config.schedule_epochs:
        again = config.prune_at - config.rewind_epoch
        raise ConfigError(
            f"{config.retrain} repeats the {config.prune_at} epochs before --prune-at from epoch {config.rewind_epoch} on, {again} in "
            f"every round, which makes {config.prune_at + config.rounds * again} epochs, not {config.epochs}: change --epochs or --prune-at"
        )


def _check_training(model: nn.Module, traced: Traced, config: TrainConfig) -> None:
    """Refuse a network that is partly frozen in a way that a run cannot keep, or frozen as a whole."""
    mixed = find_partly_frozen(model, traced)
    if mixed is not None:
        raise ConfigError(f"{config.model}: {mixed} is frozen, but not all of its layer: freeze whole layers, or make it a buffer")
    if len(frozen_parameters(model, traced)) == len([name for name, _ in model.named_parameters() if name in traced.names]):
        raise ConfigError(f"{config.model} has no parameters to train: all of them are frozen")


def _last_step_before_loss(graph: LayerGraph) -> str | None:
    """The function that a network ends in, if cross-entropy, which applies softmax itself, should come before it; else None."""
    last = graph.steps[graph.output.index - 1].target
    return last if last in ("F.softmax", "torch.sigmoid", "torch.tanh", "F.relu") else None


def _check_outputs(graph: LayerGraph, config: TrainConfig, data: DataSource) -> None:
    """Refuse a network that was not built for the data's number of classes, as may happen with a user's own file."""
    shape = infer_shapes(graph)[graph.output.index][1:]
    if shape != (data.num_classes,):
        raise ConfigError(
            f"{config.model} returns {'x'.join(map(str, shape))} numbers per image, but the data has {data.num_classes} classes: "
            "it must return one logit per class, so let the class or function that builds it take num_classes, "
            f"or give the number under its own name for it, as in --model-arg classes={data.num_classes}"
        )


def _check_batch(graph: LayerGraph, config: TrainConfig, environment: Environment) -> None:
    together = config.batch_size if config.sync_batch_norm else environment.images_each(config.batch_size)
    check_batch(graph, together, config.model, workers=config.batch_size // together)


def check_batch(graph: LayerGraph, images: int, name: str, *, workers: int = 1) -> None:
    """Refuse batches of one image where BatchNorm would see one value per channel, which has no variance.

    Args:
        graph: the network.
        images: images per step that each BatchNorm sees together.
        name: how the message names the network.
        workers: number of workers that share a batch.

    Raises:
        ConfigError: if a BatchNorm would.
    """
    if images > 1:
        return
    shapes = infer_shapes(graph)
    kinds = {f"self.{layer.name}": layer.kind for layer in graph.layers}
    for value, step in graph.results():
        if "BatchNorm" in kinds.get(step.target, "") and prod(shapes[value.index][2:]) == 1:
            shared = f" of {workers} workers" if workers > 1 else ""
            raise ConfigError(
                f"--batch-size {workers}{shared} is too small for {name}, whose BatchNorm sees one value per channel: "
                f"use {2 * workers} or more"
            )
