"""Training steps on a CPU with the allocator as training sets it (`training/allocator.py`), over those with glibc's own settings.

    python benchmarks/allocator.py --networks resnet20:128,lenet5:128,resnet18-cifar:16 --rounds 5

In: networks of the zoo and images a step, at 3x32x32. Out: a Markdown table. The two take turns, each in a fresh process, since what an
allocator did cannot be undone; a figure is the median over rounds of the ratio of the processes' median steps, with the quartiles. One
thread, bfloat16, channels-last, the process's own processor time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from runs import machine

from prunetrain.graph.trace import trace
from prunetrain.training.allocator import keep_freed_memory
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.rounds import Spread
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.zoo import build


def main() -> None:
    """Measure and print; or, as a child, measure one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20:128,lenet5:128,resnet18-cifar:16,vgg16:64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--child", choices=("keep", "leave"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        network, batch = arguments.networks.split(":")
        print(json.dumps(_seconds(network, int(batch), arguments.steps, keep=arguments.child == "keep")))
        return
    print(f"{machine()}, one thread, bfloat16, channels-last; {arguments.rounds} rounds of {arguments.steps} steps\n")
    print("| network | batch | step, over that with glibc's settings |\n| --- | --- | --- |")
    for what in arguments.networks.split(","):
        ratios = []
        for _ in range(arguments.rounds):
            keep, leave = (_in_a_process(what, arguments.steps, child) for child in ("keep", "leave"))
            ratios.append(keep / leave)
        spread = Spread.of(ratios)
        network, batch = what.split(":")
        print(f"| {network} | {batch} | {spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f}) |", flush=True)


def _in_a_process(what: str, steps: int, child: str) -> float:
    command = [sys.executable, __file__, "--networks", what, "--steps", str(steps), "--child", child]
    seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return statistics.median(seconds[2:])  # the first steps warm up


def _seconds(network: str, batch: int, steps: int, *, keep: bool) -> list[float]:
    """Of each step of this process."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    graph = trace(build(network, input_shape=(3, 32, 32), num_classes=10), torch.zeros(2, 3, 32, 32))
    step = TrainingStep(graph, Conditions(torch.device("cpu"), batch, "bfloat16", channels_last=True))
    found = []
    for _ in range(steps):
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return found


if __name__ == "__main__":
    main()
