"""Dense and pruned trainings side by side on a small CIFAR-10, with a schedule short enough for a CPU.

    python benchmarks/small_cifar10.py cifar10.npz cifar10-small.npz
    python benchmarks/cifar10.py runs/cifar10 cifar10-small.npz

In: a folder for the runs, an .npz of images. Out: a Markdown table, a row for each network and way to prune. Runs are kept in the folder,
so that an interrupted grid goes on where it was. What a step takes then: `prunetrain bench` of the first and last network of a run.
"""

import argparse
from pathlib import Path

from runs import machine, removed, top1_spread, train

COMMON = "--dataset npz --batch-size 64 --lr 0.1 --schedule cosine --epochs 12 --amp --channels-last"
DENSE = "dense"
PAPER = "the paper's lasso, ratio 0.65"
WAYS = {
    DENSE: "--penalty-ratio 0",
    "half the MACs (default)": "",
    "0.3 of the MACs": "--target-macs 0.3",
    PAPER: "--target-macs 0 --criterion union --lasso-groups slices --lasso-step subgradient --penalty-ratio 0.65",
}
NETWORKS = {"resnet20": "0,1,2", "resnet32": "0", "resnet56": "0,1", "resnet50-cifar": "0"}  # and the seeds of each


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--ways", type=int, default=len(WAYS), help="only the first so many ways to prune")
    arguments = parser.parse_args()
    ways = dict(list(WAYS.items())[: arguments.ways])
    print(f"{machine()}, one thread; {COMMON}\n")
    print("| network | way | seeds | top-1 | MACs removed | parameters removed | training MACs removed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for network in arguments.networks.split(","):
        for number, (way, flags) in enumerate(ways.items()):
            found = []
            for seed in NETWORKS[network].split(","):
                own = [*COMMON.split(), "--model", network, "--data-dir", str(arguments.data), "--seed", seed, *flags.split()]
                found.append(train(arguments.folder, f"{network}-{number}-s{seed}", own, threads=1))
            shares = " | ".join(removed(found, share) for share in ("macs_left", "params_left", "train_macs_left"))
            print(f"| {network} | {way} | {NETWORKS[network]} | {top1_spread(found)} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
