"""How long an offline reconfiguration of ResNet-50 (3x224x224, 1000 classes, SGD momentum) takes with a third of its channels dead.

    python benchmarks/reconfigure_time.py --repeats 5

Out: a Markdown table of seconds by phase, median and range. `select` is finding what is dead, spaces and constants; `slice` weights,
buffers and momentum; `write` the network file and the checkpoint, synced to disk; `load` reading both back into a module.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from runs import machine

from prunetrain.channels.spaces import Role, find_spaces
from prunetrain.config import TrainConfig
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import save_checkpoint
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.offline import reconfigure_checkpoint
from prunetrain.training.state import TrainState, new_state


def main() -> None:
    """Prepare the checkpoint, cut it several times, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint_with_dead_channels(Path(folder))
        done = [reconfigure_checkpoint(checkpoint, {"output_dir": folder}, 1).change for _ in range(arguments.repeats)]
    phases = {phase: [change.seconds[phase] for change in done] for phase in done[0].seconds}
    phases["total"] = [sum(change.seconds.values()) for change in done]
    print(f"{machine()}, {torch.get_num_threads()} threads; {arguments.repeats} repeats")
    print(f"channels {done[0].channels[0]:,} -> {done[0].channels[1]:,}\n")
    print("| phase | seconds, median | lowest | highest |\n| --- | --- | --- | --- |")
    for phase, seconds in phases.items():
        print(f"| {phase} | {statistics.median(seconds):.3f} | {min(seconds):.3f} | {max(seconds):.3f} |")


def _checkpoint_with_dead_channels(folder: Path) -> Path:
    config = TrainConfig(model="resnet50", dataset="fake", image_size=224, batch_size=2, output_dir=str(folder), device="cpu")
    run = RunPaths(folder, "resnet50")
    state = new_state(config, run, load_data(config, torch.device("cpu")), Environment(torch.device("cpu")))
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    _kill_a_third(state)
    state.progress = replace(state.progress, epoch=1)
    save_checkpoint(run.last, state.checkpoint())
    return run.last


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
