"""Several workers on one machine: what they exchange, and whether the death of one changes the result.

    python benchmarks/workers.py runs/workers

Out: two Markdown tables. The first is about runs with 1, 2 and 4 workers, which share batches of the same size. (Their agreement is tested
in float64 by `tests/test_distribution.py`: in float32, differences in rounding grow with every step.) The second is about a run with 4
workers that are killed with SIGKILL at random moments; its final metrics are compared with those of an undisturbed run, except for timings
and memory.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runs import machine

from prunetrain.paths import RunPaths

FLAGS = (
    "--model resnet20 --dataset digits --epochs 8 --prune-interval 2 --penalty-ratio 0.9 --target-macs 0 --round-to 1 --device cpu"
).split()
MEASURED = {"epoch_seconds", "images_per_second", "peak_memory_bytes"}  # differ from run to run


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{machine()}; flags {' '.join(FLAGS)}; seed {arguments.seed}\n")
    print("| workers | bytes per step, first epoch | last epoch | parameters, first and last | top-1 |")
    print("| --- | --- | --- | --- | --- |")
    histories: dict[int, list[dict[str, Any]]] = {}
    for workers in (1, 2, 4):
        name = f"workers{workers}"
        start(arguments.folder, name, workers).wait()
        histories[workers] = history(arguments.folder, name)
        first, last = histories[workers][0], histories[workers][-1]
        size = f"{first['params']:,} and {last['params']:,}"
        exchanged = f"{first['gradient_bytes']:,} | {last['gradient_bytes']:,}"
        print(f"| {workers} | {exchanged} | {size} | {last['val_top1']:.2%} |", flush=True)
    print(f"\n{kill_workers(arguments.folder, arguments.kills, histories[4], random.Random(arguments.seed))}")


def start(folder: Path, name: str, workers: int, *flags: str) -> subprocess.Popen[bytes]:
    """Train with a number of workers."""
    command = [sys.executable, "-m", "prunetrain", "train", *FLAGS, "--output-dir", str(folder), "--name", name, "--resume", "auto", *flags]
    several = ["--nproc", str(workers)] if workers > 1 else []
    return subprocess.Popen([*command, *several], stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def history(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of metrics of a run, without timings and memory."""
    lines = [json.loads(line) for line in RunPaths(folder, name).metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def kill_workers(folder: Path, kills: int, undisturbed: list[dict[str, Any]], moments: random.Random) -> str:
    """Kill one of four workers again and again in one run; return a Markdown table."""
    launcher = start(folder, "killed", 4, "--max-restarts", str(kills), "--checkpoint-minutes", "0.1")
    done = 0
    while done < kills and launcher.poll() is None:
        time.sleep(moments.uniform(8, 25))
        workers = children(launcher.pid)
        if len(workers) == 4:
            os.kill(moments.choice(workers), signal.SIGKILL)
            done += 1
    code = launcher.wait()
    same = "yes" if history(folder, "killed") == undisturbed else "no"
    return f"| workers killed | exit code | lines of metrics as undisturbed |\n| --- | --- | --- |\n| {done} | {code} | {same} |"


def children(process: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


if __name__ == "__main__":
    main()
