"""Is pruning worth it? Pruned networks beside the same architectures trained from scratch, and beside uniformly narrower ones.

    python benchmarks/small_cifar10.py cifar10.npz cifar10-small.npz
    python benchmarks/from_scratch.py runs/cifar10 cifar10-small.npz

In: a folder for the runs, an .npz of images. Out: a Markdown table, one row per way to get a ResNet-20 with few MACs. The comparisons are
those of Liu et al., "Rethinking the value of network pruning" (arXiv 1810.05270): the pruned architecture from scratch, for as many epochs
and for as many training MACs as the pruned run took. A pruned run with as many training MACs as the dense one has more epochs than that.
The schedule is that of `cifar10.py`, whose runs are used if they are in the folder. Run it again to continue.
"""

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cifar10 import COMMON
from runs import Result, machine, top1_spread, train

from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths

NUMBER_BY_TARGET = {"0.5": 1, "0.3": 2}  # the number of each target in the names of the runs of `cifar10.py`
CIFAR10_EPOCHS = 16  # epochs of the runs that `cifar10.py` makes, whose names have no number of epochs
NETWORKS = Path(__file__).with_name("scratch_networks.py")


@dataclass(frozen=True)
class Trained:
    """A finished run; the MACs of its last network and of its whole training, relative to the dense network's in the dense run."""

    result: Result
    macs: float
    train_macs: float


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=CIFAR10_EPOCHS)
    parser.add_argument("--targets", default="0.5,0.3", help=f"out of {', '.join(NUMBER_BY_TARGET)}")
    arguments = parser.parse_args()
    rows: dict[str, list[Trained]] = {}
    for seed in arguments.seeds.split(","):
        for way, trained in ways(arguments.folder, arguments.data, seed, arguments.epochs, arguments.targets.split(",")):
            rows.setdefault(way, []).append(trained)
            print(way, trained, flush=True)
    print(f"\n{machine()}, one thread; seeds {arguments.seeds}; {arguments.epochs} epochs\n")
    print("| ResNet-20 | top-1 | MACs | training MACs |")
    print("| --- | --- | --- | --- |")
    for way, found in rows.items():
        macs, train_macs = (statistics.mean(getattr(trained, share) for trained in found) for share in ("macs", "train_macs"))
        print(f"| {way} | {top1_spread([trained.result for trained in found])} | {macs:.1%} | {train_macs:.1%} |")


def ways(folder: Path, data: Path, seed: str, epochs: int, targets: list[str]) -> Iterator[tuple[str, Trained]]:
    """Train one seed of every row, one after the other; the dense network comes first."""
    dense_macs = 0
    schedule = "" if epochs == CIFAR10_EPOCHS else f"-{epochs}"

    def run(name: str, model: str, flags: str, longer: int = epochs) -> Trained:
        nonlocal dense_macs
        words = f"{COMMON} --lr 0.05 --epochs {longer} --seed {seed} --data-dir {data} --model {model} {flags}".split()
        result = train(folder, f"{name}{schedule}-s{seed}", words, threads=1)
        first = costs(read_graph(RunPaths(folder, result.name).network(0))).macs
        dense_macs = dense_macs or first
        return Trained(result, result.macs_left * first / dense_macs, result.train_macs_left * first / dense_macs * longer / epochs)

    yield "dense", run("resnet20-0", "resnet20", "--penalty-ratio 0")
    for target in targets:
        number = NUMBER_BY_TARGET[target]
        pruned = run(f"resnet20-{number}", "resnet20", f"--target-macs {target}")
        yield f"pruned, `--target-macs {target}`", pruned
        last = RunPaths(folder, pruned.result.name).newest_network()
        scratch = f"{NETWORKS}:reinitialised", f"--model-arg file={last} --penalty-ratio 0"
        yield f"the architecture of {target} from scratch, as many epochs", run(f"scratch-{number}", *scratch)
        longer = round(epochs * pruned.train_macs / pruned.macs)
        yield f"the architecture of {target} from scratch, as many training MACs", run(f"scratch-longer-{number}", *scratch, longer=longer)
        most = round(epochs / pruned.train_macs)
        yield (
            f"pruned, `--target-macs {target}`, for the dense run's training MACs",
            run(f"pruned-longer-{number}", "resnet20", f"--target-macs {target}", longer=most),
        )
        factor = f"{math.sqrt(float(target)):.3f}"
        narrow = f"{NETWORKS}:NarrowResNet20", f"--model-arg factor={factor} --penalty-ratio 0"
        narrower = run(f"narrow-{number}", *narrow)
        yield f"all widths times {factor}, from scratch, as many epochs", narrower
        longer = round(epochs * pruned.train_macs / narrower.macs)
        yield f"all widths times {factor}, from scratch, as many training MACs", run(f"narrow-longer-{number}", *narrow, longer=longer)


if __name__ == "__main__":
    main()
