"""Two values of a setting of `prunetrain prune --method group-lasso`, compared in pairs of runs that begin with the same trained network.

    python benchmarks/small_cifar10.py cifar10.npz cifar10-small.npz
    python benchmarks/prune_pairs.py runs/retrain cifar10-small.npz --compare retrain=finetune,lr-restart
    python benchmarks/prune_pairs.py runs/importance cifar10-small.npz --compare importance=norm,taylor --flags "--retrain finetune"

In: a folder for the runs, an .npz of images. Out: a Markdown table of each target's accuracy by either value, and their difference, pair by
pair. Runs are kept in the folder, so that an interrupted grid resumes where it was.
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
UNPRUNED = "--target-macs 0 --penalty-ratio 0"


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--compare", required=True, metavar="SETTING=OLD,NEW")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dense-epochs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8, help="of pruning and retraining")
    parser.add_argument("--targets", default="0.5,0.3", help="shares of the MACs; 1: the dense network is trained on, without a lasso")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--flags", default="", help="further flags of `prunetrain prune`, beside --target-by 0.5")
    arguments = parser.parse_args()
    setting, _, values = arguments.compare.partition("=")
    pair, targets = values.split(","), arguments.targets.split(",")
    found: dict[tuple[str, str], list[Result]] = {(target, value): [] for target in targets for value in pair}
    dense: list[Result] = []
    for seed in arguments.seeds.split(","):
        flags = f"{DENSE} --model {arguments.model} --epochs {arguments.dense_epochs} --seed {seed}".split()
        dense.append(train(arguments.folder, f"{arguments.model}-s{seed}", [*flags, "--data-dir", str(arguments.data)], threads=1))
        for (target, value), results in found.items():
            aim = UNPRUNED if float(target) == 1 else f"--target-macs {target} --target-by 0.5"
            flags = f"--epochs {arguments.epochs} {aim} --{setting} {value} {arguments.flags}".split()
            results.append(_prune(arguments.folder, dense[-1].name, f"{dense[-1].name}-{target}-{value}", flags))
    print(f"{arguments.model}, {arguments.dense_epochs} epochs and {arguments.epochs} more, {arguments.flags}; {machine()}, one thread")
    print(f"seeds {arguments.seeds}; dense {top1_spread(dense)}\n")
    print(f"| `--target-macs` | MACs removed | {pair[0]} | {pair[1]} | difference by pairs |\n| --- | --- | --- | --- | --- |")
    for target in targets:
        old, new = (found[target, value] for value in pair)
        gains = [100 * (after.top1 - before.top1) for before, after in zip(old, new, strict=True)]
        gain = f"{statistics.mean(gains):+.2f} ({', '.join(f'{gain:+.2f}' for gain in gains)})"
        print(f"| {target} | {removed(new, 'macs_left')} | {top1_spread(old)} | {top1_spread(new)} | {gain} |")


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
