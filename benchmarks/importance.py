"""How channels are ranked when a trained network is pruned: by the norms of their weights or by Taylor importance.

    python benchmarks/small_cifar10.py cifar10.npz cifar10-small.npz
    python benchmarks/importance.py runs/importance cifar10-small.npz

In: a folder for the runs, an .npz of images. Out: a Markdown table of each target's accuracy by either ranking, and their difference, pair
by pair: both start from the same dense run. Runs are kept in the folder, so that an interrupted grid resumes where it was.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from runs import Result, machine, read_result, removed, top1_spread, train

from prunetrain.paths import RunPaths

DENSE = "--dataset npz --batch-size 64 --lr 0.05 --schedule cosine --warmup-epochs 1 --amp --channels-last --penalty-ratio 0"
RANKINGS = ("norm", "taylor")


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dense-epochs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8, help="of pruning and fine-tuning")
    parser.add_argument("--targets", default="0.5,0.3")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--flags", default="--target-by 0.5", help="further flags of `prunetrain prune`")
    arguments = parser.parse_args()
    targets = arguments.targets.split(",")
    found: dict[tuple[str, str], list[Result]] = {(target, ranking): [] for target in targets for ranking in RANKINGS}
    dense: list[Result] = []
    for seed in arguments.seeds.split(","):
        flags = f"{DENSE} --model {arguments.model} --epochs {arguments.dense_epochs} --seed {seed}".split()
        dense.append(train(arguments.folder, f"{arguments.model}-s{seed}", [*flags, "--data-dir", str(arguments.data)], threads=1))
        for (target, ranking), results in found.items():
            flags = f"--epochs {arguments.epochs} --target-macs {target} --importance {ranking} {arguments.flags}".split()
            results.append(_prune(arguments.folder, dense[-1].name, f"{dense[-1].name}-{target}-{ranking}", flags))
    print(f"{arguments.model}, {arguments.dense_epochs} epochs and {arguments.epochs} more, {arguments.flags}; {machine()}, one thread")
    print(f"seeds {arguments.seeds}; dense {top1_spread(dense)}\n")
    print("| `--target-macs` | MACs removed | by norm | by Taylor importance | difference by pairs |\n| --- | --- | --- | --- | --- |")
    for target in targets:
        norm, taylor = (found[target, ranking] for ranking in RANKINGS)
        pairs = [100 * (new.top1 - old.top1) for old, new in zip(norm, taylor, strict=True)]
        gain = f"{statistics.mean(pairs):+.2f} ({', '.join(f'{pair:+.2f}' for pair in pairs)})"
        print(f"| {target} | {removed(taylor, 'macs_left')} | {top1_spread(norm)} | {top1_spread(taylor)} | {gain} |")


def _prune(folder: Path, dense: str, name: str, flags: list[str]) -> Result:
    """Prune a finished run under a name, or read the run if it is finished."""
    run, done = RunPaths(folder, name), folder / f"{name}.done"
    if not done.exists():
        command = [sys.executable, "-m", "prunetrain", "prune", str(RunPaths(folder, dense).last), "--method", "group-lasso"]
        command += ["--output-dir", str(folder), "--name", name, "--resume", *flags]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        done.touch()
    return read_result(run)


if __name__ == "__main__":
    main()
