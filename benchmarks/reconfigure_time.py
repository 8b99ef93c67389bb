"""How long an offline reconfiguration takes with a third of the channels dead (3x224x224, 1000 classes, SGD momentum).

    python benchmarks/reconfigure_time.py --models torchvision:resnet50 torchvision:densenet201 --repeats 5

Out: a Markdown table of seconds by phase, median and range. `select` finds what is dead, spaces and constants; `slice` cuts weights,
buffers and momentum; `write` writes the network file and the checkpoint, synced to disk; `load` reads both back into a module. The last
rows are CPU time, which other processes do not add to: of all these phases, and of choosing what fades in a run on its way to half the
MACs, which is done before an interval.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from runs import machine

from prunetrain.channels.spaces import Role, find_spaces
from prunetrain.config import TrainConfig
from prunetrain.graph.parse import _parsed
from prunetrain.paths import RunPaths
from prunetrain.regularizers.fading import Ranking
from prunetrain.training.checkpoints import save_checkpoint
from prunetrain.training.creation import new_state
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.offline_reconfiguration import reconfigure_checkpoint
from prunetrain.training.state import TrainState


def main() -> None:
    """Cut each network several times, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{machine()}, {arguments.threads} threads; {arguments.repeats} repeats")
    for model in arguments.models:
        _print_table(model, *_measured(model, arguments.repeats))


Seconds = dict[str, list[float]]


def _measured(model: str, repeats: int) -> tuple[tuple[int, int], Seconds]:
    """Channels before and after, and seconds by phase, following one cut for warm-up."""
    seconds: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        state = _stepped(Path(folder), model)
        choosing: list[float] = []
        for _ in range(repeats):
            with _cpu_time(choosing):
                _choose(state)
        checkpoint = _with_dead_channels(state)
        for repeat in range(repeats + 1):
            cpu: list[float] = []
            _parsed.cache_clear()  # a command begins without
            with _cpu_time(cpu):
                change = reconfigure_checkpoint(checkpoint, {"output_dir": folder}, 1).change
            if repeat:
                for phase, time_taken in (*change.seconds.items(), ("total", sum(change.seconds.values())), ("total, CPU time", cpu[0])):
                    seconds.setdefault(phase, []).append(time_taken)
    return change.channels, seconds | {"choosing what fades, CPU time": choosing}


@contextmanager
def _cpu_time(times: list[float]) -> Iterator[None]:
    """Append the CPU seconds that this process spends inside to `times`."""
    start = time.process_time()
    yield
    times.append(time.process_time() - start)


def _print_table(model: str, channels: tuple[int, int], seconds: Seconds) -> None:
    print(f"\n{model}: channels {channels[0]:,} -> {channels[1]:,}\n")
    print("| phase | seconds, median | lowest | highest |\n| --- | --- | --- | --- |")
    for phase, found in seconds.items():
        print(f"| {phase} | {statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f} |", flush=True)


def _stepped(folder: Path, model: str) -> TrainState:
    """A run after one step of its optimizer."""
    config = TrainConfig(model=model, dataset="fake", image_size=224, batch_size=2, output_dir=str(folder), device="cpu")
    run = RunPaths(folder, model.rsplit(":", maxsplit=1)[-1])
    state = new_state(config, run, load_data(config, torch.device("cpu")), Environment(torch.device("cpu")))
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    return state


def _choose(state: TrainState) -> None:
    """Do what a run does at the start of an interval (`training/lasso_schedule.py`)."""
    ranking = Ranking(state.graph, state.model.state_dict(), criterion=state.config.criterion)
    ranking.weakest(0.75 * state.costs.macs, ranking.coarsest_blocks(0.5 * state.costs.macs, state.dense))


def _with_dead_channels(state: TrainState) -> Path:
    """A checkpoint of the run with a third of its channels dead."""
    _kill_a_third(state)
    state.progress = replace(state.progress, epoch=1)
    save_checkpoint(state.run.last, state.checkpoint())
    return state.run.last


def _kill_a_third(state: TrainState) -> None:
    spaces = find_spaces(state.graph)
    dead = np.random.default_rng(0).random(spaces.num_channels) < 1 / 3
    dead &= ~spaces.frozen_channels()
    weights = dict(state.model.named_parameters())
    with torch.no_grad():
        for name, axis in (*spaces.axes(Role.PRODUCER), *spaces.axes(Role.CONSUMER)):
            gone = torch.from_numpy(dead[spaces.ids[name, axis]])
            weight = weights[f"{name}.weight"]
            (weight if axis == "out" else weight.transpose(0, 1))[gone] = 0


if __name__ == "__main__":
    main()
