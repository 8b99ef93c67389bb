"""A run in memory: network, optimizer and progress; built fresh from the settings, or loaded from a network file and a checkpoint.

`load_state` is the one way back from disk: `--resume` and every reconfiguration go through it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig, parse_arguments
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.files import write_text
from prunetrain.graph.costs import Costs, costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import read_graph, sha256_of
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.graph.shapes import infer_shapes
from prunetrain.graph.trace import trace_with_state
from prunetrain.models import build, weights
from prunetrain.models.assembling import assemble
from prunetrain.paths import RunPaths, new_run
from prunetrain.regularizers.group_lasso import GroupLasso
from prunetrain.training.checkpoints import Checkpoint, Progress, load_checkpoint, read_network_of, restore_rng, rng_state, save_checkpoint
from prunetrain.training.data import DataSource
from prunetrain.training.environment import Environment
from prunetrain.training.optimizers import build_optimizer, build_scheduler
from prunetrain.training.outputs import Outputs
from prunetrain.training.precision import autocast


@dataclass
class TrainState:
    """What training works on. `forward` is the network as it is called: the module itself, or its compiled form."""

    config: TrainConfig
    run: RunPaths
    environment: Environment
    graph: LayerGraph
    dense: LayerGraph
    network: Path
    network_sha256: str
    model: nn.Module
    forward: Callable[[Tensor], Outputs]
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: GradScaler
    lasso: GroupLasso | None
    progress: Progress
    costs: Costs

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.environment.device

    @property
    def batch_size(self) -> int:
        """Images a step, over all processes, as of now."""
        return self.progress.batch_size or self.config.batch_size

    def check_fits(self, data: DataSource) -> None:
        """Check that the network is for such images and classes.

        Raises:
            ConfigError: if it is not.
        """
        classes = infer_shapes(self.graph)[self.graph.output.index][1]
        if self.graph.input_shape != data.input_shape or classes != data.num_classes:
            wanted, got = ("x".join(map(str, shape)) for shape in (self.graph.input_shape, data.input_shape))
            raise ConfigError(f"{self.network} takes {wanted} images of {classes} classes, and the data has {got} of {data.num_classes}")

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision as the settings say."""
        return autocast(self.device, self.config.amp)

    def to_memory_format(self, images: Tensor) -> Tensor:
        """A batch in the memory format of the settings."""
        return images.contiguous(memory_format=torch.channels_last) if self.config.channels_last else images

    def checkpoint(self) -> Checkpoint:
        """The state as it is written to disk."""
        return Checkpoint(
            network=self.network.name,
            network_sha256=self.network_sha256,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            parameters=[name for name, _ in self.model.named_parameters()],
            scaler=self.scaler.state_dict(),
            rng=rng_state(),
            config=self.config.to_dict(),
            progress=self.progress,
        )


def new_state(
    config: TrainConfig, run: RunPaths, data: DataSource, environment: Environment, say: Callable[[str], object] = lambda line: None
) -> TrainState:
    """A run at its start: the network built and flattened, its file and first checkpoint written, and read back.

    Args:
        config: the settings; the run's name goes into them.
        run: where it is to be; if another run is there, the next free name is taken.
        data: decides the network's input and output.
        environment: where to train.
        say: is told what was left out of a file of weights.

    Raises:
        ConfigError: for a network that cannot be built or does not fit the data, and weights that do not fit it.
        OutputError: if the files cannot be written.
    """
    torch.manual_seed(config.seed)
    arguments = parse_arguments(config.model_args)
    model = build(config.model, input_shape=data.input_shape, num_classes=data.num_classes, model_args=arguments)
    if config.weights:
        for line in weights.load_weights(model, Path(config.weights)).lines():
            say(line)
    traced = trace_with_state(model, torch.zeros(2, *data.input_shape))
    _check_outputs(traced.graph, config, data)
    check_batch(traced.graph, config.batch_size, config.model)
    with new_run(run.output_dir, run.name) as free:
        config = replace(config, name=free.name)
        first = Checkpoint(
            network="",
            network_sha256="",
            model=traced.state,
            optimizer={},
            parameters=[],
            scaler={},
            rng=rng_state(),
            config=config.to_dict(),
            progress=Progress(),
        )
        path = write_pair(free, traced.graph, traced.graph, first)
        return load_state(path, config, data, environment)


def _check_outputs(graph: LayerGraph, config: TrainConfig, data: DataSource) -> None:
    """Refuse a network that was not built for the data's number of classes, as a person's own file may be."""
    shape = infer_shapes(graph)[graph.output.index][1:]
    if shape != (data.num_classes,):
        raise ConfigError(
            f"{config.model} gives {'x'.join(map(str, shape))} numbers an image, and the data has {data.num_classes} classes: "
            "it must return one logit a class, so let what makes it take num_classes"
        )


def check_batch(graph: LayerGraph, batch_size: int, name: str) -> None:
    """Refuse batches of one image where BatchNorm would see one value a channel, which has no variance.

    Raises:
        ConfigError: if it would; `name` says of which network.
    """
    shapes = infer_shapes(graph)
    kinds = {f"self.{layer.name}": layer.kind for layer in graph.layers}
    for value, step in graph.results():
        if batch_size == 1 and "BatchNorm" in kinds.get(step.target, "") and prod(shapes[value.index][2:]) == 1:
            raise ConfigError(f"--batch-size 1 is too small for {name}, whose BatchNorm sees one value a channel: use 2 or more")


def write_pair(run: RunPaths, graph: LayerGraph, dense: LayerGraph, checkpoint: Checkpoint) -> Path:
    """Write the network file of an epoch, then the checkpoint that belongs to it; returns the checkpoint's path.

    Raises:
        OutputError: if one of the files cannot be written.
    """
    epoch = checkpoint.progress.epoch
    source = render(graph, dense=dense, epoch=epoch)
    write_text(run.network(epoch), source)
    network = run.network(epoch)
    save_checkpoint(run.checkpoint(epoch), _belonging_to(checkpoint, network, source))
    return run.checkpoint(epoch)


def _belonging_to(checkpoint: Checkpoint, network: Path, source: str) -> Checkpoint:
    values = vars(checkpoint) | {"network": network.name, "network_sha256": sha256_of(source)}
    return Checkpoint(**values)


def load_state(path: Path, config: TrainConfig, data: DataSource, environment: Environment) -> TrainState:
    """A run as a checkpoint and its network file left it.

    Args:
        path: the checkpoint.
        config: the settings to go on with.
        data: what training goes on with.
        environment: where.

    Raises:
        CheckpointError: if the checkpoint is damaged or does not fit its network.
        NetworkFileError: if its network file is missing or was changed.
    """
    checkpoint, device = load_checkpoint(path), environment.device
    progress = checkpoint.progress
    network, source = read_network_of(path, checkpoint)
    graph = parse(source, str(network))
    run = RunPaths(network.parent.parent.parent, network.parent.name)
    model = load_weights(source, graph, network, checkpoint, path).to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model.parameters(), config)
    steps_per_epoch = data.steps_per_epoch(progress.batch_size or config.batch_size)
    scheduler = build_scheduler(optimizer, config, steps_per_epoch)
    scaler = GradScaler(device.type, enabled=config.amp == "float16")
    try:
        if checkpoint.optimizer:
            optimizer.load_state_dict(checkpoint.optimizer)
            _match_formats(optimizer)
        scheduler.last_epoch = progress.epoch * steps_per_epoch + progress.step
        for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * scheduler.lr_lambdas[0](scheduler.last_epoch)
        if checkpoint.scaler:
            scaler.load_state_dict(checkpoint.scaler)
        restore_rng(checkpoint.rng)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its optimizer state does not fit its network ({str(error).splitlines()[0]})") from None
    lasso = None
    if config.penalty_ratio > 0:
        lasso = GroupLasso(graph, find_spaces(graph), dict(model.named_parameters()), groups=config.lasso_groups)
    return TrainState(
        config=config,
        run=run,
        environment=environment,
        graph=graph,
        dense=read_graph(run.network(0)),
        network=network,
        network_sha256=checkpoint.network_sha256,
        model=model,
        forward=torch.compile(model) if config.compile else model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        lasso=lasso,
        progress=progress,
        costs=costs(graph),
    )


def _match_formats(optimizer: Optimizer) -> None:
    """Give what the optimizer keeps for a parameter the parameter's memory format, which fused optimizers count on."""
    for parameter, entries in optimizer.state.items():
        for key, entry in entries.items():
            if isinstance(entry, Tensor) and entry.shape == parameter.shape and entry.stride() != parameter.stride():
                entries[key] = torch.empty_like(parameter, dtype=entry.dtype).copy_(entry)


def load_weights(source: str, graph: LayerGraph, network: Path, checkpoint: Checkpoint, path: Path) -> nn.Module:
    """The network of a file with the weights of its checkpoint, on the CPU.

    Raises:
        CheckpointError: if the weights do not fit the network.
    """
    try:
        return assemble(source, str(network), graph, checkpoint.model)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(f"{path}: its weights do not fit {network}: {lines[min(1, len(lines) - 1)]}") from None
