"""One reconfiguration of a run: select, cut, write, load. What comes back is the state that `--resume` would give."""

import time
from dataclasses import replace
from pathlib import Path

from prunetrain.channels.slicing import Cut, propose_cut, slice_optimizer_state
from prunetrain.graph.costs import costs
from prunetrain.training.checkpoints import Checkpoint
from prunetrain.training.data import DataSource
from prunetrain.training.events import Reconfiguration
from prunetrain.training.granularity import choose_granularity
from prunetrain.training.loop import evaluate
from prunetrain.training.state import TrainState, load_state, write_pair

_TIMING_SHARE = 0.01  # of an interval's time may go to timing candidates
_TIMING_LEAST = 1.0  # seconds


class _Watch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now


def reconfigure(state: TrainState, data: DataSource, val_top1: float) -> tuple[TrainState, Reconfiguration]:
    """Cut what is dead, write the smaller network and its checkpoint, and load the two.

    Args:
        state: the run at the end of an epoch; unchanged.
        data: validates the smaller network.
        val_top1: validation accuracy before the cut, a fraction.

    Returns:
        The run as it goes on, and what was done.
    """
    config, watch = state.config, _Watch()
    proposal = propose_cut(state.graph, state.model.state_dict(), threshold=config.threshold, criterion=config.criterion)
    watch.lap("select")
    granularity = choose_granularity(state, proposal, _timing_budget(state))
    watch.lap("time")
    cut = proposal.apply(proposal.plan(granularity))
    smaller = cut_checkpoint(state.checkpoint(), cut, dict(state.model.named_parameters()))
    watch.lap("slice")
    path = write_pair(state.run, cut.graph, state.dense, smaller)
    watch.lap("write")
    after = load_state(path, config, data.steps_per_epoch(config.batch_size), state.device)
    watch.lap("load")
    top1 = evaluate(after, data).top1
    watch.lap("validate")
    return after, describe(state, cut, path, (val_top1, top1), granularity, watch.seconds)


def describe(
    state: TrainState, cut: Cut, path: Path, val_top1: tuple[float, float], granularity: int, seconds: dict[str, float]
) -> Reconfiguration:
    """The report of a cut."""
    now = costs(cut.graph)
    return Reconfiguration(
        epoch=state.progress.epoch,
        channels=(state.costs.channels, now.channels),
        macs=(state.costs.macs, now.macs),
        params=(state.costs.params, now.params),
        val_top1=val_top1,
        granularity=granularity,
        removed_layers=cut.removed_layers,
        rescued_spaces=cut.rescued_spaces,
        network=str(state.run.network(state.progress.epoch)),
        seconds=seconds,
    )


def cut_checkpoint(checkpoint: Checkpoint, cut: Cut, parameters: dict[str, object]) -> Checkpoint:
    """A checkpoint of the smaller network: weights and optimizer state cut, everything else as it was.

    Args:
        checkpoint: of the larger network.
        cut: what was cut.
        parameters: the larger network's parameters by name, for their shapes.
    """
    names = [name for name in _parameter_order(cut) if cut.sources[name].name in parameters]
    optimizer = slice_optimizer_state(
        checkpoint.optimizer,
        checkpoint.parameters,
        names,
        cut.sources,
        {name: parameter.shape for name, parameter in parameters.items()},  # type: ignore[attr-defined]
    )
    return replace(checkpoint, model=cut.state, optimizer=optimizer, parameters=names)


def _parameter_order(cut: Cut) -> list[str]:
    """Names in the order in which the generated network's `parameters()` gives them: its own first, then layer by layer."""
    declared = [tensor.name for tensor in cut.graph.declared]
    layered = [f"{layer.name}.{tensor}" for layer in cut.graph.layers for tensor in layer.signature.axes]
    return [name for name in (*declared, *layered) if name in cut.state]


def _timing_budget(state: TrainState) -> float:
    seconds = sum(line["epoch_seconds"] for line in state.progress.history[-state.config.prune_interval :])
    return max(_TIMING_LEAST, _TIMING_SHARE * seconds)
