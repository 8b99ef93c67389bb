"""Dense and pruned training side by side on a small CIFAR-10, with a schedule short enough for a CPU.

    python benchmarks/small_cifar10.py cifar10.npz cifar10-small.npz
    python benchmarks/small_cifar10.py cifar10.npz cifar10-10k.npz --pixels 32
    python benchmarks/cifar10.py runs/cifar10 cifar10-small.npz
    python benchmarks/cifar10.py runs/cifar10 cifar10-10k.npz --networks vgg16,timm:convnext_atto

In: a folder for the runs, an .npz of images. Out: a Markdown table, one row per network and way to prune. A run's time is the CPU time of
its single thread from start to exit, relative to the dense run of the same seed, if neither was interrupted. Runs are kept in the folder,
so that an interrupted grid resumes where it was. For the time of a step, run `prunetrain bench` on the first and last network of a run.
"""

import argparse
import math
import statistics
from pathlib import Path

from runs import Result, cpu_seconds, machine, removed, top1_spread, train

COMMON = "--dataset npz --batch-size 64 --schedule cosine --warmup-epochs 1 --amp --channels-last"
SCHEDULES = {  # each network's own
    "resnet20": "--epochs 16 --lr 0.05",
    "resnet32": "--epochs 16 --lr 0.05",
    "resnet56": "--epochs 16 --lr 0.05",
    "resnet50-cifar": "--epochs 16 --lr 0.05",
    "vgg16": "--epochs 8 --lr 0.02",
    "timm:convnext_atto": "--epochs 12 --optimizer adamw --lr 0.001 --weight-decay 0.05",
}
DENSE = "dense"
WAYS = {
    DENSE: "--penalty-ratio 0",
    "half the MACs (default)": "",
    "0.3 of the MACs": "--target-macs 0.3",
}


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", default="resnet20,resnet32,resnet56,resnet50-cifar")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    print(f"{machine()}, one thread; seeds {arguments.seeds}; {COMMON}\n")
    print("| network | way | top-1 | MACs removed | parameters removed | training MACs removed | run's time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for network in arguments.networks.split(","):
        found: dict[str, list[Result]] = {way: [] for way in WAYS}
        for seed in arguments.seeds.split(","):  # all ways of a seed before the next seed
            for number, (way, own) in enumerate(WAYS.items()):
                flags = f"{COMMON} {SCHEDULES[network]} --model {network} --seed {seed} {own}".split()
                name = f"{network.rpartition(':')[2]}-{number}-s{seed}"
                found[way].append(train(arguments.folder, name, [*flags, "--data-dir", str(arguments.data)], threads=1))
        dense = [cpu_seconds(arguments.folder, result.name) for result in found[DENSE]]
        for way in WAYS:
            ratios = [cpu_seconds(arguments.folder, result.name) / of for result, of in zip(found[way], dense, strict=True)]
            ratios = [ratio for ratio in ratios if not math.isnan(ratio)]
            time = f"{statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
            shares = " | ".join(removed(found[way], share) for share in ("macs_left", "params_left", "train_macs_left"))
            print(f"| {network} | {way} | {top1_spread(found[way])} | {shares} | {time} |", flush=True)


if __name__ == "__main__":
    main()
