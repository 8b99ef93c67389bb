"""How long the cuts of a run take, compared with its epochs: ResNet-20 to half of its MACs, with a chance to cut after every epoch.

    python benchmarks/cuts_in_a_run.py cifar10-small.npz

In: an .npz of images. Out: a Markdown table of wall-clock seconds, one row per cut: the phases; the cut, which is their sum without `time`
(the timing by `--round-to auto`, which has its own share of the run); and the epoch of training before it. `validate` compares logits.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from runs import machine

from prunetrain.config import TrainConfig
from prunetrain.training.events import Metrics, Observer, Reconfiguration
from prunetrain.training.run import start_run

PHASES = ("select", "slice", "write", "load", "validate")


class _Cuts(Observer):
    """Prints a row after every cut."""

    def __init__(self) -> None:
        self._epoch_seconds = 0.0

    def epoch_ended(self, metrics: Metrics) -> None:
        self._epoch_seconds = float(metrics["epoch_seconds"])

    def reconfigured(self, event: Reconfiguration) -> None:
        if event.change.channels[0] == event.change.channels[1]:
            return
        seconds = event.change.seconds
        cut = sum(seconds.values()) - seconds["time"]
        numbers = [*(seconds[phase] for phase in PHASES), cut, seconds["time"], self._epoch_seconds]
        shares = f"{cut / self._epoch_seconds:.2%} | {seconds['time'] / self._epoch_seconds:.2%}"
        print(f"| {event.epoch} | {' | '.join(f'{number:.3f}' for number in numbers)} | {shares} |", flush=True)


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, one thread, bfloat16, channels-last, batch 64; seed {arguments.seed}\n")
    columns = ["epoch", *PHASES, "cut", "time", "training", "cut, of training", "time, of training"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model="resnet20",
            dataset="npz",
            data_dir=str(arguments.data),
            batch_size=64,
            lr=0.05,
            schedule="cosine",
            epochs=arguments.epochs,
            amp="bfloat16",
            channels_last=True,
            device="cpu",
            seed=arguments.seed,
            output_dir=folder,
        )
        start_run(config, _Cuts())


if __name__ == "__main__":
    main()
