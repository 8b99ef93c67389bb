"""`--round-to auto`: how many channels each space keeps, found by timing this network's layers and steps on this machine.

In: a run, and what can be cut. Out: a `Granularity`. Two stages:

1. the times of single layers, forward and backward, at the counts in question give every channel space its own multiple
   (`layer_choice.py`);
2. whole training steps are timed in turn: of the resulting network, of networks with the same multiple throughout, and of the network
   without the cut. The fastest wins; among those within a few percent of it, the one with the fewest MACs. So a cut does not make a run
   slower.

A MACs target takes precedence: only networks with no more MACs than the schedule of the run allows are considered, and if there is just
one, nothing is timed.

All of this takes at most 1% of the run's training time. If that is too little for the layers, only whole steps are timed, on smaller
batches if need be. If it is too little for these, or a GPU's memory is, the run's last choice holds; before the first choice, nothing is
rounded.
Choices are saved beside the run's checkpoints before the resulting network is written, so that a resumed run makes the same cuts.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prunetrain.channels.selection import KEEP_ALL, Granularity
from prunetrain.channels.slicing import Proposal
from prunetrain.errors import OutputError, is_out_of_memory
from prunetrain.files import write_text
from prunetrain.foreign.opening import read_text
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.foreign.toml_json import read_json
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.render import render
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.layer_times import LayerTimer
from prunetrain.training.benchmarking.rounds import time_in_turn
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.training.compilation import OFF
from prunetrain.training.lasso_schedule import most_macs
from prunetrain.training.layer_choice import choose_by_layer
from prunetrain.training.state import TrainState

_SHARE = 0.01  # of the run's training time may go to timing
_AT_ONCE = 0.5  # of what is left of that may go to one reconfiguration
_TOLERANCE = 1.03  # steps this close count as equally fast
_ROUNDS = 3
_WARMUP = {"cpu": 1, "cuda": 3}  # rounds before these: a GPU's libraries load and choose kernels in the first ones
_UNIFORM = (1, 16, 8, 32)  # multiples tried throughout a network, the most promising first
_STEPS_FOR_LAYERS = 24  # about what timing the layers takes, in training steps
_SMALLEST_PART = 0.25  # of a batch; less would not represent the run
_SMALLEST_BATCH = 16
_MAX_BYTES = 2**20  # of the file of timings


@dataclass(frozen=True)
class Timing:
    """A granularity, the seconds that a training step takes with it, and the MACs of the resulting network."""

    granularity: Granularity
    seconds: float
    macs: int


@dataclass(frozen=True)
class Effort:
    """What there is time for: whether to time single layers, how many whole networks to time, and at which batch size."""

    layers: bool
    networks: int
    batch_size: int


@dataclass
class TimingNotes:
    """What a run remembers: the seconds that timing has taken, and its choices by the key of what they were made for, the latest last."""

    spent_seconds: float = 0.0
    choices: dict[str, Granularity] = field(default_factory=dict)


def choose_granularity(state: TrainState, proposal: Proposal) -> Granularity:
    """Choose the granularity for a cut.

    Args:
        state: the run; its settings decide whether there is anything to choose, its history how much time there is.
        proposal: what can be cut.
    """
    if state.config.granularity is not None:
        return state.config.granularity
    if proposal.plan(1).keep.all():  # nothing can be cut
        return 1
    path = state.run.timings
    notes, key = _read(path), _key(state, proposal)
    if key not in notes.choices:
        start = time.perf_counter()
        last = next(reversed(notes.choices.values()), 1)
        seconds = _AT_ONCE * (_SHARE * _run_seconds(state) - notes.spent_seconds)
        effort = _effort(seconds / _step_seconds(state), state.environment.images_each(state.batch_size), _WARMUP[state.device.type])
        conditions = Conditions.of(state.config, state.device)
        most = most_macs(state)
        choice = last if _macs(proposal, last) <= most else 1
        if effort is not None:
            try:
                choice = measured_choice(proposal, conditions, effort, layers_until=start + seconds / 2, most_macs=most)
            except RuntimeError as error:  # the timed networks take memory beside the run's own
                if not is_out_of_memory(error):
                    raise
            torch.cuda.empty_cache()  # free their memory, now that nothing refers to it
        notes.choices[key] = choice
        notes.spent_seconds += time.perf_counter() - start
        _write(path, notes)
    return notes.choices[key]


def pick_fastest(timings: list[Timing]) -> Granularity:
    """The granularity of the fastest step; of those about as fast, the one with the fewest MACs."""
    fastest = min(timing.seconds for timing in timings)
    return min((t for t in timings if t.seconds <= fastest * _TOLERANCE), key=lambda t: t.macs).granularity


def _run_seconds(state: TrainState) -> float:
    """The run's total training time, estimated from its epochs so far."""
    seconds = [float(line["epoch_seconds"]) for line in state.progress.history]
    return sum(seconds) + (state.config.epochs - len(seconds)) * seconds[-1] if seconds else 0.0


def _step_seconds(state: TrainState) -> float:
    """The seconds that a training step takes at present; any number for a run without history."""
    return state.batch_size / float(state.progress.history[-1]["images_per_second"]) if state.progress.history else 1.0


def _effort(steps: float, batch_size: int, warmup: int) -> Effort | None:
    """What can be timed in the time of `steps` training steps, warm-up rounds included; None if nothing can.

    The timed networks always include the one without a cut, the one with the whole cut, and a rounded one.
    """
    smallest = max(_SMALLEST_PART, min(1.0, _SMALLEST_BATCH / batch_size))
    for layers, networks in ((True, 2 + len(_UNIFORM)), (True, 4), (False, 4), (False, 3)):
        wanted = networks * (_ROUNDS + warmup) + layers * _STEPS_FOR_LAYERS
        if steps >= wanted * smallest:
            return Effort(layers, networks, int(batch_size * min(1.0, steps / wanted)))
    return None


def measured_choice(
    proposal: Proposal, conditions: Conditions, effort: Effort, *, layers_until: float = math.inf, most_macs: float = math.inf
) -> Granularity:
    """Time layers and networks, and pick a granularity.

    Args:
        proposal: what can be cut.
        conditions: how the network runs; the batch size is that of `effort`, and nothing is compiled.
        effort: how much to time.
        layers_until: when to stop timing layers, on the clock of `time.perf_counter`.
        most_macs: networks with more MACs per image are left out, except the one with the whole cut.
    """
    conditions = replace(conditions, batch_size=effort.batch_size, compile=OFF)
    graphs: dict[LayerGraph, Granularity] = {}
    for granularity in (_UNIFORM[0], KEEP_ALL, *_UNIFORM[1:]):
        graph = proposal.graph_for(proposal.plan(granularity))
        if granularity == 1 or costs(graph).macs <= most_macs:
            graphs.setdefault(graph, granularity)
    if len(graphs) == 1:
        return next(iter(graphs.values()))
    if effort.layers:
        by_layer = choose_by_layer(proposal, LayerTimer(conditions), should_stop=lambda: time.perf_counter() > layers_until)
        graph = proposal.graph_for(proposal.plan(by_layer))
        if costs(graph).macs <= most_macs:
            graphs.pop(graph, None)
            graphs = {graph: by_layer} | graphs  # to be timed first
    chosen = list(graphs)[: effort.networks]
    seconds = _time_steps(chosen, conditions)
    return pick_fastest([Timing(graphs[graph], time, costs(graph).macs) for graph, time in zip(chosen, seconds, strict=True)])


def _macs(proposal: Proposal, granularity: Granularity) -> int:
    return costs(proposal.graph_for(proposal.plan(granularity))).macs


def _time_steps(graphs: list[LayerGraph], conditions: Conditions) -> list[float]:
    """Seconds of a training step of each network, the fastest of several rounds: whatever else the machine does only adds to it."""
    steps: list[Callable[[], None]] = [TrainingStep(graph, conditions) for graph in graphs]
    warmup = _WARMUP[conditions.device.type]
    return [min(times) for times in time_in_turn(steps, rounds=_ROUNDS, wait=conditions.wait, clock=conditions.clock, warmup=warmup)]


def _key(state: TrainState, proposal: Proposal) -> str:
    """The key of what a choice is made for: the network, what of it is dead, how it runs, and the MACs that may be left."""
    conditions = Conditions.of(state.config, state.device).with_batch(state.batch_size)
    parts = [render(proposal.graph), proposal.candidates.removable.tobytes().hex(), repr(conditions), repr(most_macs(state))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read(path: Path) -> TimingNotes:
    """Read the notes; empty ones if the file is absent or damaged, which costs only time."""
    try:
        content: Any = read_json(read_text(path, _MAX_BYTES))
        return TimingNotes(float(content["spent_seconds"]), {str(key): _checked(choice) for key, choice in content["choices"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RefusedFileError):
        return TimingNotes()


def _checked(choice: Any) -> Granularity:
    """Check a choice from the file, and return it as a granularity.

    Raises:
        TypeError, ValueError: if it is not one.
    """
    multiples = list(choice.values()) if isinstance(choice, Mapping) else [choice]
    if not all(type(multiple) is int and multiple >= 1 for multiple in multiples):
        raise ValueError("not a granularity")
    return dict(choice) if isinstance(choice, Mapping) else int(choice)


def _write(path: Path, notes: TimingNotes) -> None:
    try:
        write_text(path, json.dumps(vars(notes), indent=1) + "\n")
    except OutputError:
        pass  # notes that cannot be kept cost only time
