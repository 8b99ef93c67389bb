"""A run in memory: network, optimizer and progress, as stored in a network file and a checkpoint (`creation.py` writes the first two).

`load_state` is the only way back from disk: `--resume` and every reconfiguration that cuts go through it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig
from prunetrain.errors import CheckpointError, ConfigError, is_out_of_memory
from prunetrain.graph.costs import Costs, costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import read_graph
from prunetrain.graph.memory import check_results_fit
from prunetrain.graph.shapes import infer_shapes
from prunetrain.methods.rewinding import WEIGHT_REWINDING_MODES
from prunetrain.paths import RunPaths
from prunetrain.regularizers.group_lasso import GroupLasso
from prunetrain.training.checkpoints import Checkpoint, Progress, restore_rng, rng_state, save_checkpoint
from prunetrain.training.class_names import check_names, differences
from prunetrain.training.compilation import OFF, compiled
from prunetrain.training.data import DataSource
from prunetrain.training.data.base import Statistics
from prunetrain.training.distribution import Ranks
from prunetrain.training.environment import Environment
from prunetrain.training.fingerprint import fingerprint
from prunetrain.training.narrow_batch_norm import speed_up_batch_norm_
from prunetrain.training.optimizer_state import load_optimizer
from prunetrain.training.optimizers import build_optimizer, build_scheduler
from prunetrain.training.outputs import Outputs
from prunetrain.training.pairs import Pair
from prunetrain.training.precision import autocast
from prunetrain.training.run_method import RunMethod, build_run_method, copy_state_dict
from prunetrain.training.sync_batch_norm import synchronise

_MACHINE_SETTINGS = ("data_dir", "download", "cache", "workers", "device", "output_dir")  # settings that may differ from machine to machine


@dataclass
class TrainState:
    """What training works on.

    `forward` is the network as a training step calls it: the module itself, compiled, in DistributedDataParallel, or both; `predict` is
    the network as validation calls it, without communication between processes.
    """

    config: TrainConfig
    run: RunPaths
    environment: Environment
    graph: LayerGraph
    dense: LayerGraph
    network: Path
    network_sha256: str
    model: nn.Module
    forward: Callable[[Tensor], Outputs]
    predict: Callable[[Tensor], Outputs]
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: GradScaler
    lasso: GroupLasso | None
    run_method: RunMethod
    progress: Progress
    costs: Costs
    class_names: list[str]
    statistics: Statistics

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.environment.device

    @property
    def batch_size(self) -> int:
        """Images per step at present, over all processes."""
        return self.progress.batch_size or self.config.batch_size

    def check_fits(self, data: DataSource) -> None:
        """Check that the network takes images of this shape and has the data's classes, in the same order.

        Raises:
            ConfigError: if it does not.
            NetworkFileError: if it does not fit into memory with them.
        """
        classes = infer_shapes(self.graph)[self.graph.output.index][1]
        if self.graph.input_shape != data.input_shape or classes != data.num_classes:
            wanted, got = ("x".join(map(str, shape)) for shape in (self.graph.input_shape, data.input_shape))
            raise ConfigError(
                f"{self.network} takes {wanted} images of {classes} classes, and the data has {got} of {data.num_classes}"
                + differences(self.class_names, data)
            )
        check_names(self.class_names, data, self.network)
        if self.device.type == "cpu":
            check_results_fit(self.graph, str(self.network), min(self.config.batch_size, data.num_train))

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision as the settings say."""
        return autocast(self.device, self.config.amp)

    def to_memory_format(self, images: Tensor) -> Tensor:
        """A batch in the memory format of the settings."""
        return images.contiguous(memory_format=torch.channels_last) if self.config.channels_last else images

    @property
    def gradient_bytes(self) -> int:
        """Bytes of gradients that each process exchanges in a step; 0 for a single process."""
        if self.environment.ranks.world_size == 1:
            return 0
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.parameters() if tensor.requires_grad)

    def checkpoint(self) -> Checkpoint:
        """The state as written to disk; all processes must call this, since it includes the state of each one's generators."""
        first, *others = self.environment.ranks.gather(rng_state(self.device))
        return Checkpoint(
            network=self.network.name,
            network_sha256=self.network_sha256,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            parameters=[name for name, _ in self.model.named_parameters()],
            scaler=self.scaler.state_dict(),
            rng=first | {"others": others},
            config=self.config.to_dict(),
            progress=self.progress,
            method=self.run_method.state_dict(),
            class_names=self.class_names,
            statistics=self.statistics.to_dict(),
        )

    def keep_rewind_weights(self) -> None:
        """Keep the present weights to rewind to, if the run will."""
        if self.run_method.rounds == 0 and self.config.rewinds and self.config.retrain in WEIGHT_REWINDING_MODES:
            self.run_method.early = copy_state_dict(self.model)

    def save(self, path: Path) -> None:
        """Write a checkpoint: called by all processes, written by the first.

        Raises:
            OutputError: if it cannot be written.
        """
        checkpoint = self.checkpoint()
        self.environment.ranks.on_rank_zero(lambda: save_checkpoint(path, checkpoint))


def load_state(pair: Pair, config: TrainConfig, data: DataSource, environment: Environment) -> TrainState:
    """Load a run from a checkpoint and its network file.

    Args:
        pair: the two; on a CPU the run trains the checkpoint's own tensors, so the pair is of no other use afterwards.
        config: the settings to continue with.
        data: the data to train on; from now on normalised like the images that the network was trained on.
        environment: where to train.

    Raises:
        CheckpointError: if the checkpoint does not fit its network.
        NetworkFileError: if the dense network's file is missing or damaged.
        ConfigError: if its batch cannot be shared by the processes.
        WorkerError: if the processes did not all load the same.
    """
    checkpoint, network, graph, device = pair.checkpoint, pair.network, pair.graph, environment.device
    progress = checkpoint.progress
    batch_size = progress.batch_size or config.batch_size
    environment.images_each(batch_size)
    spaces = find_spaces(graph)
    if any(channel >= spaces.num_channels for channel in progress.fading):
        raise CheckpointError(f"{pair.path}: damaged, it fades channels that {network.name} does not have")
    pair.check_data()
    statistics = Statistics.from_dict(checkpoint.statistics)
    data.normalize_by(statistics)
    model = _prepare_model(pair.build(), config, environment)
    optimizer = build_optimizer(model.parameters(), config)
    steps_per_epoch = max(1, data.steps_per_epoch(batch_size))  # data to evaluate on may have too few images for a batch of the run
    scheduler = build_scheduler(optimizer, config, steps_per_epoch, batch_size)
    scaler = GradScaler(device.type, enabled=config.amp == "float16")
    with _checking_state_fits(pair.path):
        if checkpoint.optimizer:
            load_optimizer(optimizer, checkpoint.optimizer)
        _set_scheduler_step(scheduler, progress.epoch * steps_per_epoch + progress.step)
        if checkpoint.scaler:
            scaler.load_state_dict(checkpoint.scaler)
        run_method = build_run_method(config, graph, model, progress.epoch, checkpoint.method)
        restore_generators(checkpoint.rng, config.seed, progress, environment)
    _check_same(environment.ranks, checkpoint, model, config)
    run = RunPaths(network.parent.parent.parent, network.parent.name)
    forward = compiled(environment.ranks.parallel(model, static_graph=device.type == "cuda" and config.compile == OFF), config.compile)
    return TrainState(
        config=config,
        run=run,
        environment=environment,
        graph=graph,
        dense=read_graph(run.network(0)),
        network=network,
        network_sha256=checkpoint.network_sha256,
        model=model,
        forward=forward,
        predict=forward if environment.ranks.world_size == 1 else compiled(model, config.compile),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        lasso=GroupLasso(graph, spaces, trained_parameters(model), groups=config.lasso_groups) if config.uses_group_lasso else None,
        run_method=run_method,
        progress=progress,
        costs=costs(graph),
        class_names=checkpoint.class_names,
        statistics=statistics,
    )


def _prepare_model(model: nn.Module, config: TrainConfig, environment: Environment) -> nn.Module:
    """Put a network on its device, in the form in which it is trained."""
    model = model.to(environment.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.sync_batch_norm:
        model = synchronise(model, environment.ranks)
    speed_up_batch_norm_(model, environment.device, compiled=config.compile != OFF)
    return model


def _set_scheduler_step(scheduler: LambdaLR, step: int) -> None:
    """Set a new scheduler, and the learning rates of its optimizer, to a step of the run."""
    scheduler.last_epoch = step
    for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = base * scheduler.lr_lambdas[0](step)


@contextmanager
def _checking_state_fits(path: Path) -> Iterator[None]:
    """Blame the checkpoint for errors raised inside, where its parts are loaded.

    Raises:
        CheckpointError: if a part does not fit.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):  # the device's fault
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: its optimizer's or method's state does not fit its network ({reason})") from None


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that gradients change, by name; the others are frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def mixed_seed(seed: int, epoch: int, rank: int, step: int = 0) -> int:
    """A seed for what draws from torch's global generator (dropout), different for every epoch and process."""
    return (seed * 1_000_003 + epoch * 7_919 + rank * 15_485_863 + step * 32_452_843 + 1) % 2**63


def restore_generators(states: Mapping[str, Any], seed: int, progress: Progress, environment: Environment) -> None:
    """Restore this process's generators. If the number of processes has changed, those after the first are seeded anew."""
    ranks, others = environment.ranks, states.get("others", [])
    if ranks.rank == 0:
        restore_rng(states, environment.device)
    elif len(others) == ranks.world_size - 1:
        restore_rng(others[ranks.rank - 1], environment.device)
    else:
        torch.manual_seed(mixed_seed(seed, progress.epoch, ranks.rank, progress.step))


def _check_same(ranks: Ranks, checkpoint: Checkpoint, model: nn.Module, config: TrainConfig) -> None:
    """Check that all processes continue with the same network file, weights, optimizer state and settings.

    Raises:
        WorkerError: if they do not.
    """
    if ranks.world_size == 1:
        return
    ranks.check_same("network file", checkpoint.network_sha256)
    of_the_data = [checkpoint.class_names, checkpoint.statistics]
    held = [model.state_dict(), checkpoint.optimizer, vars(checkpoint.progress), checkpoint.method, *of_the_data]
    ranks.check_same("checkpoint", fingerprint(held))
    ranks.check_same("settings", fingerprint({key: value for key, value in config.to_dict().items() if key not in _MACHINE_SETTINGS}))
