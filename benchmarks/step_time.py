"""Training-step time of networks against the first of them, in one run: where the MACs that were cut show as time, and where they do not.

    python benchmarks/step_time.py generated_nets/RUN/epoch_000.py generated_nets/RUN/epoch_030.py --batch-size 128 --bfloat16

Out: a Markdown table. Forward, backward and a fused SGD step, on random images; the networks take turns, round after round, and each figure
is the median over rounds of (its step) / (the first network's step), with quartiles.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from runs import machine
from torch.nn import functional as F

from prunetrain.graph.costs import costs
from prunetrain.graph.load import load_network, read_graph


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=Path)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 autocast and channels-last instead of float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = [_Step(path, arguments.batch_size, arguments.bfloat16) for path in arguments.networks]
    seconds: list[list[float]] = [[] for _ in steps]
    for round_number in range(arguments.rounds + 2):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step.run()
            if round_number > 1:  # the first rounds warm up
                times.append(time.perf_counter() - start)
    precision = "bfloat16, channels-last" if arguments.bfloat16 else "float32"
    print(f"{machine()}, {arguments.threads} threads, {precision}, batch {arguments.batch_size}; {arguments.rounds} rounds\n")
    print("| network | MACs | step time, median (quartiles) | time saved / MACs saved |\n| --- | --- | --- | --- |")
    dense = costs(read_graph(arguments.networks[0])).macs
    for path, times in zip(arguments.networks, seconds, strict=True):
        macs = costs(read_graph(path)).macs / dense
        low, middle, high = statistics.quantiles((t / base for t, base in zip(times, seconds[0], strict=True)), n=4)
        gain = f"{(1 - middle) / (1 - macs):.2f}" if macs < 1 else ""
        print(f"| {path.parent.name}/{path.name} | {macs:.1%} | {middle:.2f} ({low:.2f} to {high:.2f}) | {gain} |")


class _Step:
    def __init__(self, path: Path, batch_size: int, bfloat16: bool) -> None:
        torch.manual_seed(0)
        graph = read_graph(path)
        self._network = load_network(path)
        self._images = torch.randn(batch_size, *graph.input_shape)
        self._bfloat16 = bfloat16
        if bfloat16:
            self._network = self._network.to(memory_format=torch.channels_last)
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.zeros(batch_size, dtype=torch.int64)
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=1e-6, momentum=0.9, fused=True)

    def run(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            loss = F.cross_entropy(self._network(self._images), self._labels)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
