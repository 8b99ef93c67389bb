"""Which options make cuts early, where they save the most training? Options times seeds, each a whole run of `prunetrain train`.

    python benchmarks/small_cifar10.py cifar10.npz cifar10-small.npz
    python benchmarks/early.py runs/early cifar10-small.npz --csv early.csv
    python benchmarks/early_plot.py early.csv docs/images/early.svg

In: a folder for the runs, an .npz of images. Out: a Markdown table, and a CSV with one line per run. Runs are kept in the folder, so that
an interrupted grid resumes where it was.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

from runs import Result, machine, removed, top1_spread, train

PAPER = "--criterion union --lasso-groups slices --lasso-step subgradient"
COMMON = (
    "--dataset npz --batch-size 64 --lr 0.1 --epochs 16 --prune-interval 1 --round-to 1 --amp --channels-last "
    f"--model {Path(__file__).with_name('small_resnet.py')}:ResNet8"
)


@dataclass(frozen=True)
class Option:
    """A way to prune: its name in run names and in tables, and its flags."""

    name: str
    label: str
    flags: str


OPTIONS = (
    Option("dense", "dense", "--penalty-ratio 0"),
    Option("paper-r0.65", "lasso as in the paper, ratio 0.65", f"{PAPER} --penalty-ratio 0.65 --target-macs 0"),
    Option("lasso-r0.5", "lasso, ratio 0.5", "--penalty-ratio 0.5 --target-macs 0"),
    Option("lasso-r0.65", "lasso, ratio 0.65", "--penalty-ratio 0.65 --target-macs 0"),
    Option("fade-0.5", "fading to half the MACs by 1/4 (the default)", "--target-macs 0.5"),
    Option("fade-0.3", "fading to 0.3 of the MACs by 1/4", "--target-macs 0.3"),
)


def main() -> None:
    """Run the grid, write the CSV and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--options", default=",".join(option.name for option in OPTIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    options = {option.name: option for option in OPTIONS}
    chosen = [options[name] for name in arguments.options.split(",")]
    results: dict[Option, list[Result]] = {option: [] for option in chosen}
    for seed in arguments.seeds.split(","):  # all options of a seed before the next seed
        for option in chosen:
            flags = [*COMMON.split(), "--data-dir", str(arguments.data), "--seed", seed, *option.flags.split()]
            results[option].append(train(arguments.folder, f"{option.name}-s{seed}", flags, arguments.threads))
            print(results[option][-1], flush=True)
    print(f"\n{machine()}; seeds {arguments.seeds}; {COMMON}\n")
    print("| option | top-1, mean (lowest to highest) | MACs removed | training MACs removed |")
    print("| --- | --- | --- | --- |")
    for option, found in results.items():
        print(f"| {option.label} | {top1_spread(found)} | {removed(found, 'macs_left')} | {removed(found, 'train_macs_left')} |")
    if arguments.csv:
        write_csv(arguments.csv, results)


def write_csv(path: Path, results: dict[Option, list[Result]]) -> None:
    """Write one line per run: option, name of the run, top-1 and what is left, as fractions."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["option", "run", "top1", "macs_left", "params_left", "train_macs_left"])
        for option, found in results.items():
            for result in found:
                shares = (result.top1, result.macs_left, result.params_left, result.train_macs_left)
                writer.writerow([option.label, result.name, *(f"{share:.4f}" for share in shares)])


if __name__ == "__main__":
    main()
