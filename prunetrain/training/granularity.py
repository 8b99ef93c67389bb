"""`--round-to auto`: which multiple to keep channel counts to, found by timing the networks that each would lead to, on this machine.

The fastest training step wins; among steps that are within a few percent of it, the network with the fewest MACs. Timings are kept
beside the run's checkpoints, so that a network is timed once a run and a resumed run decides as it did before.
"""

import hashlib
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from prunetrain.channels.slicing import Proposal
from prunetrain.errors import OutputError
from prunetrain.files import write_text
from prunetrain.foreign.opening import read_text
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.foreign.texts import read_json
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.render import render
from prunetrain.training.state import TrainState
from prunetrain.training.trial import TrialStep

CHOICES = (1, 2, 4, 8, 16, 32, 64)
_TOLERANCE = 1.03  # steps this close count as equally fast
_ROUNDS = 5
_MOST_BYTES = 2**20  # of the file of timings, which has 40 for each network


@dataclass(frozen=True)
class Timing:
    """A granularity, what a training step takes with it (seconds, median), and the MACs of the network it leads to."""

    granularity: int
    seconds: float
    macs: int


def choose_granularity(state: TrainState, proposal: Proposal, budget_seconds: float) -> int:
    """The granularity for a cut.

    Args:
        state: the run, for its settings and device.
        proposal: what can be cut.
        budget_seconds: about how long the timing may take; the batch is made smaller to keep to it.
    """
    if state.config.granularity is not None:
        return state.config.granularity
    graphs: dict[LayerGraph, int] = {}
    for granularity in CHOICES:
        graphs.setdefault(proposal.graph_for(proposal.plan(granularity)), granularity)
    if len(graphs) == 1:
        return 1
    timings = _time_all(state, graphs, budget_seconds)
    return pick(timings)


def pick(timings: list[Timing]) -> int:
    """The granularity of the fastest step; of those about as fast, the one with the fewest MACs."""
    fastest = min(timing.seconds for timing in timings)
    return min((t for t in timings if t.seconds <= fastest * _TOLERANCE), key=lambda t: t.macs).granularity


def _time_all(state: TrainState, graphs: dict[LayerGraph, int], budget_seconds: float) -> list[Timing]:
    cache_path = state.run.checkpoints / "timings.json"
    cache = _read(cache_path)
    keys = {graph: _key(state, graph) for graph in graphs}
    if not all(key in cache for key in keys.values()):
        with torch.random.fork_rng([state.device] if state.device.type == "cuda" else []):  # drawn from or not, a run is the same
            measured = _measure(state, list(graphs), budget_seconds)
        cache |= dict(zip(keys.values(), measured, strict=True))
        try:
            write_text(cache_path, json.dumps(cache, indent=0))
        except OutputError:
            pass  # a cache that cannot be written costs time, nothing else
    return [Timing(granularity, cache[keys[graph]], costs(graph).macs) for graph, granularity in graphs.items()]


def _measure(state: TrainState, graphs: list[LayerGraph], budget_seconds: float) -> list[float]:
    """Median seconds of a training step of each network, all of them measured in turn so that a busy machine slows all alike."""
    batch_size = state.environment.images_each(state.batch_size)
    steps = [TrialStep(state, graph) for graph in graphs]
    probe = _seconds(steps[0], min(8, batch_size), state.device)
    affordable = int(min(8, batch_size) * budget_seconds / (probe * len(graphs) * (_ROUNDS + 1)))
    batch_size = max(min(batch_size, affordable), min(batch_size, 16))
    seconds: list[list[float]] = [[] for _ in graphs]
    for round_number in range(_ROUNDS + 1):
        for step, times in zip(steps, seconds, strict=True):
            elapsed = _seconds(step, batch_size, state.device)
            if round_number:  # the first round warms up
                times.append(elapsed)
    return [statistics.median(times) for times in seconds]


def _seconds(step: TrialStep, batch_size: int, device: torch.device) -> float:
    """Seconds of one step."""
    _wait(device)
    start = time.perf_counter()
    step.run(batch_size)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _key(state: TrainState, graph: LayerGraph) -> str:
    config = state.config
    machine = (state.device.type, torch.get_num_threads(), config.amp, config.channels_last, state.batch_size)
    return hashlib.sha256(f"{render(graph)}{machine}".encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, float]:
    try:
        content = read_json(read_text(path, _MOST_BYTES))
    except (OSError, ValueError, RefusedFileError):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, float) and value > 0} if isinstance(content, dict) else {}
