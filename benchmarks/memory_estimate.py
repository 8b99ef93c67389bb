"""The memory of a training step as `--dynamic-batch` estimates it on a CPU, compared with what a process actually takes (Linux).

    python benchmarks/memory_estimate.py

Out: a Markdown table. "Taken" is the rise of the resident memory's high-water mark in a fresh process that trains three steps, after a step
on two images during which the libraries took memory once.
"""

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from runs import machine

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.trace import trace
from prunetrain.models import build
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.training.memory import estimated_memory

CASES = (("resnet20", 32, 128), ("resnet18-cifar", 32, 32), ("vgg16", 32, 64), ("resnet50", 224, 4))  # network, side of an image, batch
MIB = 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # in the measuring processes, memory that is freed goes back to the system
    print(f"{machine()}, one thread\n")
    print("| network | image | batch | precision | estimated, MiB | taken, MiB | taken / estimated |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model, side, batch in CASES:
        graph = network(model, side)
        for amp in ("off", "bfloat16"):
            estimated = estimated_memory(graph, conditions(amp, batch))
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                taken = pool.submit(measured, model, side, amp, batch).result()
            figures = f"{estimated / MIB:.0f} | {taken / MIB:.0f} | {taken / estimated:.2f}"
            print(f"| {model} | 3x{side}x{side} | {batch} | {'float32' if amp == 'off' else amp} | {figures} |", flush=True)


def network(model: str, side: int) -> LayerGraph:
    """A network of the zoo for 10 classes."""
    return trace(build(model, input_shape=(3, side, side), num_classes=10, model_args={}), torch.zeros(2, 3, side, side))


def conditions(amp: str, batch: int) -> Conditions:
    """On a CPU; channels-last in bfloat16."""
    return Conditions(torch.device("cpu"), batch, amp=amp, channels_last=amp != "off")


def measured(model: str, side: int, amp: str, batch: int) -> int:
    """Bytes by which three training steps increase this process."""
    torch.set_num_threads(1)
    graph = network(model, side)
    TrainingStep(graph, conditions(amp, 2))()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_memory("VmRSS")
    step = TrainingStep(graph, conditions(amp, batch))
    for _ in range(3):
        step()
    return resident_memory("VmHWM") - before


def resident_memory(which: str) -> int:
    """Bytes of this process: VmRSS is the current value, VmHWM the peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
