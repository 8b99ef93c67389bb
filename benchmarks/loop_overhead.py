"""The training loop compared with a minimal hand-written one of the same recipe: same network, batch, precision and optimizer.

    python benchmarks/loop_overhead.py --rounds 3 --steps 24

Out: a Markdown table. By hand: batches ready in memory, normalised and in the right memory format; autocast, cross-entropy, backward,
fused SGD. Ours: `train_one_epoch`, with shuffling, crops and flips, the schedule, metrics and an observer; and the same with the coupled
lasso and its proximal step. All take turns, step by step, in one process. Each figure is the median of (by hand) / (ours) over eight steps
each (one with the proximal step), with quartiles: our throughput relative to that of the hand-written loop. On a CPU the process's own CPU
time counts, with one thread, so that other processes are not measured. On a GPU both loops wait for the device after every step, so work
that either could have prepared in the meantime is not seen.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from runs import machine
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.config import LASSO_INTERVAL, TrainConfig
from prunetrain.graph.load import load_network
from prunetrain.paths import RunPaths
from prunetrain.training.benchmarking.rounds import Spread
from prunetrain.training.creation import new_state
from prunetrain.training.data import DataSource, fake, load_data
from prunetrain.training.environment import Environment
from prunetrain.training.events import Observer
from prunetrain.training.loop import train_one_epoch
from prunetrain.training.precision import autocast
from prunetrain.training.state import TrainState
from prunetrain.training.stopping import Action

BATCH = 128


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20,lenet5")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8, help="steps per epoch, a multiple of eight; CIFAR-10 has 390")
    parser.add_argument("--amp", default="bfloat16", choices=("off", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    conditions = f"{machine()}; device {device}; batch {BATCH}, {arguments.amp}, channels-last"
    print(f"{conditions}; {arguments.rounds} rounds of {arguments.steps} steps\n")
    print("| network | loop | throughput in that of the loop by hand, median (quartiles) |\n| --- | --- | --- |")
    fake.MAX_TRAIN = BATCH * arguments.steps
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            _compare(model, arguments.amp, device, Path(folder), arguments.rounds)


def _compare(model: str, amp: str, device: torch.device, folder: Path, rounds: int) -> None:
    config = TrainConfig(
        model=model,
        dataset="fake",
        image_size=32,
        batch_size=BATCH,
        amp=amp,
        channels_last=True,
        target_macs=0.0,
        lasso_interval=LASSO_INTERVAL,
        lr=1e-3,
        device=str(device),
    )
    data, unmoved = load_data(config, device), load_data(replace(config, augment=False), device)
    plain, lasso = (_state(replace(config, penalty_ratio=ratio), data, folder / str(ratio)) for ratio in (0.0, 0.25))
    hand = _Hand(plain, data)
    loops = {"ours, without crops and flips": (plain, unmoved), "ours": (plain, data), "ours, with lasso": (lasso, data)}
    shares: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        for name, (state, source) in loops.items():
            turns = _Turns(hand, device)
            _epoch(state, source, turns)
            if number:  # the first round warms up
                shares[name] += turns.shares
    for name, found in shares.items():
        spread = Spread.of(found)
        print(f"| {model} | {name} | {spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f}) |", flush=True)


def _state(config: TrainConfig, data: DataSource, folder: Path) -> TrainState:
    return new_state(config, RunPaths(folder, "run"), data, Environment(torch.device(config.device)))


def _epoch(state: TrainState, data: DataSource, observer: Observer) -> None:
    state.progress = replace(state.progress, step=0, running={})
    train_one_epoch(state, data, observer, lambda: Action.GO_ON)


class _Hand:
    """The steps of the hand-written loop."""

    def __init__(self, state: TrainState, data: DataSource) -> None:
        self._config = state.config
        self._device = state.device
        self._model: nn.Module = load_network(state.network).to(state.device).to(memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
        self._scaler = torch.amp.GradScaler(state.device.type, enabled=state.config.amp == "float16")
        self._batches: list[tuple[Tensor, Tensor]] = [
            (images.contiguous(memory_format=torch.channels_last), labels) for images, labels in data.train_batches(0, BATCH)
        ]

    def step(self, number: int) -> None:
        """Run the step with a number, from 0, on its batch."""
        images, labels = self._batches[number % len(self._batches)]
        with autocast(self._device, self._config.amp):
            loss = F.cross_entropy(self._model(images), labels)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)


class _Turns(Observer):
    """An observer that runs a step by hand after every step of ours, and compares the two.

    `shares`: the ratio of the time by hand to ours, over every group of steps from one proximal step to the next. Ours includes data and
    metrics.
    """

    def __init__(self, hand: _Hand, device: torch.device) -> None:
        self.shares: list[float] = []
        self._hand, self._device = hand, device
        self._by_hand = self._ours = 0.0
        self._end = _now(device)

    def stepped(self, epoch: int, step: int) -> None:
        before = _now(self._device)
        self._hand.step(step)
        end = _now(self._device)
        self._by_hand += end - before
        self._ours += before - self._end
        if step % LASSO_INTERVAL == 0:
            self.shares.append(self._by_hand / self._ours)
            self._by_hand = self._ours = 0.0
        self._end = end


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
