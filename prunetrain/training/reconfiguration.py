"""One reconfiguration of a run: select, cut, write, load. The result is the state that `--resume` would give.

Of several processes the first selects, cuts and writes; then all load the same files, and compare what they loaded. If nothing was cut,
the run continues as it is, so that neither its optimizer nor a compiled network is rebuilt.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from torch import Tensor

from prunetrain.channels.selection import most_common_granularity
from prunetrain.channels.slicing import Cut, gate, propose_cut, slice_optimizer_state
from prunetrain.graph.load import read_source, sha256_of
from prunetrain.methods.training_method import cut_state
from prunetrain.training.batch_size import choose_batch_size
from prunetrain.training.checkpoints import Checkpoint
from prunetrain.training.data import DataSource
from prunetrain.training.events import BatchChange, Change, Reconfiguration, Uncut
from prunetrain.training.granularity import choose_granularity
from prunetrain.training.lasso_schedule import uncut_meaning
from prunetrain.training.loop import evaluate, logits
from prunetrain.training.memory import restart_peak
from prunetrain.training.pairs import read_pair, write_pair
from prunetrain.training.state import TrainState, load_state, restore_generators

_ROUNDING: Final = 1e-4
"""How far a different order of summation may move logits in float32, relative to the largest."""


_COMPARED: Final = 64
"""Images whose logits show whether a cut changed the network: logits say more than guesses, so few images are enough."""


class PhaseTimer:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end_phase(self, phase: str) -> None:
        """End a phase; the next one begins."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now


def reconfigure(state: TrainState, data: DataSource, val_top1: float) -> tuple[TrainState, Reconfiguration]:
    """Cut what is dead, write the network and its checkpoint, and load them if they are new.

    Args:
        state: the run at the end of an epoch; unchanged.
        data: checks that the smaller network still gives the same outputs.
        val_top1: validation accuracy before the cut, a fraction.

    Returns:
        The run to continue with, and what was done.
    """
    timer = PhaseTimer()
    checkpoint = state.checkpoint()
    path, new, change, batch = state.environment.ranks.on_rank_zero(lambda: _cut_and_write(state, data, checkpoint, timer))
    after = load_state(read_pair(path), state.config, data, state.environment) if new else _with_new_network_file(state, checkpoint, batch)
    restart_peak(after)
    timer.end_phase("load")
    top1 = _top1_after(state, after, data, val_top1)
    timer.end_phase("validate")
    change = replace(change, seconds={**change.seconds, **timer.seconds})
    meaning = uncut_meaning(after) if after.graph == state.graph else Uncut.YET
    return after, Reconfiguration(state.progress.epoch, change, after.network, (val_top1, top1), batch, uncut=meaning)


def _with_new_network_file(state: TrainState, checkpoint: Checkpoint, batch: BatchChange | None) -> TrainState:
    """The run with the network file of this epoch, which differs from the previous one only in its header.

    Network, optimizer and method are those of `state`: nothing is rebuilt or recompiled.
    """
    ranks, network = state.environment.ranks, state.run.network(state.progress.epoch)
    sha256 = sha256_of(read_source(network))
    ranks.check_same("network file", sha256)
    progress = replace(state.progress, batch_size=batch.batch_size[1]) if batch else state.progress
    restore_generators(checkpoint.rng, state.config.seed, progress, state.environment)
    return replace(state, network=network, network_sha256=sha256, progress=progress)


def _top1_after(before: TrainState, after: TrainState, data: DataSource, val_top1: float) -> float:
    """Validation accuracy after a cut; all images are validated only if the logits of the first few differ by more than rounding.

    A cut of zeros changes nothing, and validating twice in an epoch would cost more than everything else in a cut.
    """
    if after.graph == before.graph:
        return val_top1
    images = max(_COMPARED, after.environment.ranks.world_size)
    batch = next(iter(data.val_batches(images, share=after.environment.share)), None)  # None: fewer images than processes
    same = batch is None or _close(logits(before, batch[0]), logits(after, batch[0]))
    return val_top1 if all(after.environment.ranks.gather(same)) else evaluate(after, data).top1


def _close(before: Tensor, after: Tensor) -> bool:
    return bool((after - before).abs().amax() <= _ROUNDING * before.abs().amax())


def _cut_and_write(
    state: TrainState, data: DataSource, checkpoint: Checkpoint, timer: PhaseTimer
) -> tuple[Path, bool, Change, BatchChange | None]:
    """Cut and write; return the new checkpoint's path, whether network or batch changed, what was cut, and how the batch grows."""
    config = state.config
    proposal = propose_cut(state.graph, state.model.state_dict(), threshold=config.threshold, criterion=config.criterion)
    timer.end_phase("select")
    granularity = choose_granularity(state, proposal)
    timer.end_phase("time")
    cut = proposal.apply(proposal.plan(granularity))
    if config.residual == "gating":
        cut = gate(cut, threshold=config.threshold, granularity=most_common_granularity(granularity))
    smaller = cut_checkpoint(checkpoint, cut)
    timer.end_phase("slice")
    batch = choose_batch_size(state, cut.graph, data) if config.dynamic_batch else None
    if batch is not None:
        smaller = replace(smaller, progress=replace(smaller.progress, batch_size=batch.batch_size[1]))
    timer.end_phase("batch")
    path = write_pair(state.run, cut.graph, state.dense, smaller)
    timer.end_phase("write")
    new = cut.graph != state.graph or (batch is not None and batch.batch_size[0] != batch.batch_size[1])
    return path, new, Change.of(state.costs, cut, granularity, dict(timer.seconds)), batch


def cut_checkpoint(checkpoint: Checkpoint, cut: Cut) -> Checkpoint:
    """The checkpoint of the smaller network: weights, optimizer state and method state are cut, everything else is unchanged.

    Only the list of fading channels is emptied, since channels have different numbers now.
    """
    progress = replace(checkpoint.progress, fading=[])
    checkpoint = replace(checkpoint, method=cut_state(checkpoint.method, cut.sources), progress=progress)
    if not checkpoint.optimizer:
        return replace(checkpoint, model=cut.state)
    parameters = set(checkpoint.parameters)
    names = [name for name in _parameter_order(cut) if cut.sources[name].name in parameters]
    shapes = {name: checkpoint.model[name].shape for name in parameters}
    optimizer = slice_optimizer_state(checkpoint.optimizer, checkpoint.parameters, names, cut.sources, shapes)
    return replace(checkpoint, model=cut.state, optimizer=optimizer, parameters=names)


def _parameter_order(cut: Cut) -> list[str]:
    """Names in the order of the generated network's `parameters()`: its own first, then layer by layer."""
    declared = [tensor.name for tensor in cut.graph.declared]
    layered = [f"{layer.name}.{tensor}" for layer in cut.graph.layers for tensor in layer.signature.axes]
    return [name for name in (*declared, *layered) if name in cut.state]
