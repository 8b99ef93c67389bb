"""`--dynamic-batch`: memory of a training step after every cut, gain in images per second by the larger batch, and its cost in accuracy.

    python benchmarks/dynamic_batch.py runs/dynamic --seeds 0,1,2 -- --recipe digits --round-to 1

Out: two Markdown tables. The first follows the run with `--dynamic-batch` of the first seed, network by network. "Needed" is what the
decision was based on: estimated on a CPU, measured on a GPU. "Peak" is what a fresh process actually took for training steps of that
network and batch: on a CPU the growth of its resident memory's high-water mark (Linux only), on a GPU its allocator's peak. Images per
second are measured on the same network with the old and the new batch in turn, median over rounds. The second table compares runs with and
without the flag. Runs are kept in the folder, so that an interrupted benchmark resumes where it was.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from runs import Result, cpu_seconds, machine, train

from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.memory import step_memory
from prunetrain.training.pairs import read_pair
from prunetrain.training.state import TrainState, load_state
from prunetrain.training.stored_config import stored_config

VARIANTS = {"fixed": "--no-dynamic-batch", "dynamic": "--dynamic-batch"}
MIB = 2**20

_Answer = TypeVar("_Answer")


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    arguments = parser.parse_args(own.split())
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # in the measuring processes, memory that is freed goes back to the system
    seeds = arguments.seeds.split(",")
    results: dict[str, list[Result]] = {variant: [] for variant in VARIANTS}
    for seed in seeds:
        for variant, flag in VARIANTS.items():  # both variants of a seed before the next seed, so that other load slows both alike
            name = f"{variant}-s{seed}"
            results[variant].append(train(arguments.folder, name, [*flags.split(), "--seed", seed, flag], arguments.threads))
            print(results[variant][-1], flush=True)
    print(f"\n{machine()}, {arguments.threads} threads; seeds {arguments.seeds}; flags {flags}\n")
    print_networks(RunPaths(arguments.folder, f"dynamic-s{seeds[0]}"), arguments.threads, arguments.rounds)
    print_comparison(arguments.folder, results)


def print_networks(run: RunPaths, threads: int, rounds: int) -> None:
    """One line for every network of a run with `--dynamic-batch`."""
    print("| network | MACs | batch | needed, MiB | peak, MiB | peak / needed | images/s, old batch | new batch |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    dense, before = costs(read_graph(run.network(0))).macs, 0
    for epoch, path in run.network_files().items():
        checkpoint = load_checkpoint(run.checkpoint(epoch))
        batch = checkpoint.progress.batch_size or int(checkpoint.config["batch_size"])
        needed = step_memory(load_run(run, epoch), read_graph(path), batch)
        peak = in_new_process(peak_memory, run, epoch, batch, threads)
        speeds = in_new_process(throughput, run, epoch, [before or batch, batch], rounds, threads)
        gained = f"{speeds[0]:,.0f} | {speeds[1]:,.0f} ({speeds[1] / speeds[0] - 1:+.0%})" if batch > before > 0 else f"{speeds[1]:,.0f} |"
        change = f"{before} -> {batch}" if batch > before > 0 else f"{batch}"
        share = costs(read_graph(path)).macs / dense
        print(
            f"| {path.name} | {share:.1%} | {change} | {needed / MIB:.1f} | {peak / MIB:.1f} | {peak / needed:.2f} | {gained} |",
            flush=True,
        )
        before = batch
    print()


def print_comparison(folder: Path, results: dict[str, list[Result]]) -> None:
    """One line per variant: means over seeds, with lowest and highest; CPU time relative to the fixed batch of the same seed."""
    print("| batch | top-1 | MACs removed | last batch | CPU time of the run |\n| --- | --- | --- | --- | --- |")
    for variant, found in results.items():
        tops = [result.top1 for result in found]
        seconds = [cpu_seconds(folder, result.name) for result in found]
        fixed = [cpu_seconds(folder, result.name) for result in results["fixed"]]
        times = [one / other for one, other in zip(seconds, fixed, strict=True)]
        removed = 1 - statistics.mean(result.macs_left for result in found)
        print(
            f"| {variant} | {statistics.mean(tops):.2%} ({min(tops):.2%} to {max(tops):.2%}) | {removed:.1%} | {last_batches(found)} "
            f"| {statistics.mean(times):.2f} ({min(times):.2f} to {max(times):.2f}) |"
        )


def last_batches(results: list[Result]) -> str:
    """The batches of the last epochs, seed by seed."""
    return ", ".join(str(result.last_batch) for result in results)


def load_run(run: RunPaths, epoch: int) -> TrainState:
    """A run as it stood after a reconfiguration."""
    path = run.checkpoint(epoch)
    config = stored_config(path, load_checkpoint(path))
    environment = Environment.of(config)
    return load_state(read_pair(path), config, load_data(config, environment.device), environment)


def in_new_process(measure: Callable[..., _Answer], *arguments: object) -> _Answer:
    """Return the result of a function called in a fresh process, in which nothing was allocated before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def peak_memory(run: RunPaths, epoch: int, batch: int, threads: int) -> float:
    """Bytes by which three training steps increase this process."""
    torch.set_num_threads(threads)
    state = load_run(run, epoch)
    if state.device.type == "cuda":
        return step_memory(state, state.graph, batch)
    training_step(state, 2)()  # memory that the libraries take once
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_memory("VmRSS")
    step = training_step(state, batch)
    for _ in range(3):
        step()
    return resident_memory("VmHWM") - before


def training_step(state: TrainState, batch: int) -> TrainingStep:
    """A training step of a run's network with a batch size."""
    return TrainingStep(state.graph, Conditions.of(state.config, state.device).with_batch(batch))


def resident_memory(which: str) -> float:
    """Bytes of this process: VmRSS is the current value, VmHWM the peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def throughput(run: RunPaths, epoch: int, batches: list[int], rounds: int, threads: int) -> list[float]:
    """Images per second of training steps, for each batch size."""
    torch.set_num_threads(threads)
    state = load_run(run, epoch)
    trials = [training_step(state, batch) for batch in batches]
    seconds: list[list[float]] = [[] for _ in batches]
    for round_number in range(rounds + 1):
        for batch, step, times in zip(batches, trials, seconds, strict=True):
            steps = -(-4 * max(batches) // batch)  # as many images for each
            start = time.perf_counter()
            for _ in range(steps):
                step()
            if state.device.type == "cuda":
                torch.cuda.synchronize(state.device)
            if round_number:  # the first round warms up
                times.append((time.perf_counter() - start) / steps)
    return [batch / statistics.median(times) for batch, times in zip(batches, seconds, strict=True)]


if __name__ == "__main__":
    main()
