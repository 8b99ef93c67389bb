"""Runs for the benchmarks: start one through the command line, and read its results.

In: flags of `prunetrain train`. Out: a `Result`. A finished run is read, not repeated; an interrupted one is resumed.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from prunetrain.graph.costs import TRAIN_TO_FORWARD, costs
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths


@dataclass(frozen=True)
class Result:
    """The results of a finished run.

    Shares are fractions of the dense network's; `top1` is measured on the validation images; `seconds` are of training alone; `last_batch`
    is the number of images per step in the last epoch.
    """

    name: str
    epochs: int
    top1: float
    macs_left: float
    params_left: float
    train_macs_left: float
    seconds: float
    last_batch: int


def train(output_dir: Path, name: str, flags: list[str], threads: int) -> Result:
    """Run `prunetrain train` under a name to its end, or read the run if it is finished.

    Args:
        output_dir: folder of all runs of a benchmark.
        name: of the run.
        flags: everything else.
        threads: CPU threads of the run.

    Raises:
        CalledProcessError: if the run fails.
    """
    run = RunPaths(output_dir, name)
    if not (output_dir / f"{name}.done").exists():
        continued = run.metrics.exists()
        command = [sys.executable, "-m", "prunetrain", "train", "--output-dir", str(output_dir), "--name", name, "--resume", "auto", *flags]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        before = _child_seconds()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = float("nan") if continued else _child_seconds() - before  # the time of only a part is meaningless
        (output_dir / f"{name}.done").write_text(f"{seconds:.1f}")
    return read_result(run)


def cpu_seconds(output_dir: Path, name: str) -> float:
    """CPU time of a run made by `train`, from start to exit; NaN if it was interrupted. Other load barely affects it."""
    return float((output_dir / f"{name}.done").read_text())


def _child_seconds() -> float:
    """CPU time of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_result(run: RunPaths) -> Result:
    """Read the result of a run from disk."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    dense, final = costs(read_graph(run.network(0))), costs(read_graph(run.newest_network()))
    last = lines[-1]
    trained_dense = TRAIN_TO_FORWARD * dense.macs * last["train_images_total"]
    return Result(
        name=run.name,
        epochs=len(lines),
        top1=last["val_top1"],
        macs_left=final.macs / dense.macs,
        params_left=final.params / dense.params,
        train_macs_left=last["train_macs_total"] / trained_dense,
        seconds=sum(line["epoch_seconds"] for line in lines),
        last_batch=last["batch_size"],
    )


def top1_spread(results: list[Result]) -> str:
    """Mean top-1 of runs that differ only in their seed, with the lowest and highest."""
    values = [result.top1 for result in results]
    return f"{statistics.mean(values):.2%} ({min(values):.2%} to {max(values):.2%})"


def removed(results: list[Result], what: str) -> str:
    """The mean share removed, compared with the dense network; `what` names one of the shares left."""
    return f"{1 - statistics.mean(getattr(result, what) for result in results):.1%}"


def machine() -> str:
    """The hardware and versions on which a figure was measured, in one line."""
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        hardware = f"{len(names)} cores of {names[0]}" if names else platform.processor()
    return f"{hardware}, torch {torch.__version__}, Python {platform.python_version()}"
