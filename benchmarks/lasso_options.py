"""Which lasso removes the most training MACs at equal accuracy? Groups x step x ratio x seed, each a whole run of `prunetrain train`.

    python benchmarks/lasso_options.py runs/digits --seeds 0,1,2 --ratios 0.6,0.7,0.8 -- --recipe digits --round-to 1

Out: a Markdown table. Runs are kept in the folder, so that an interrupted grid resumes where it was.
"""

import argparse
import itertools
import sys
from pathlib import Path

from runs import Result, machine, removed, top1_spread, train

OPTIONS = "slices-subgradient,slices-proximal,coupled-subgradient,coupled-proximal"


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ratios", default="0.7,0.8")
    parser.add_argument("--options", default=OPTIONS, help="groups-step,groups-step,...")
    parser.add_argument("--threads", type=int, default=1)
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    arguments = parser.parse_args(own.split())
    seeds = arguments.seeds.split(",")
    cells = [("dense-none", "0"), *itertools.product(arguments.options.split(","), arguments.ratios.split(","))]
    results: dict[tuple[str, str], list[Result]] = {cell: [] for cell in cells}
    for seed, cell in itertools.product(seeds, cells):  # all options of a seed before the next seed
        option, ratio = cell
        groups, step = option.split("-")
        options = [] if groups == "dense" else ["--lasso-groups", groups, "--lasso-step", step]
        name = f"{option}-r{ratio}-s{seed}"
        cell_flags = [*flags.split(), "--seed", seed, "--penalty-ratio", ratio, *options]
        results[cell].append(train(arguments.folder, name, cell_flags, arguments.threads))
        print(results[cell][-1], flush=True)
    print(f"\n{machine()}; seeds {arguments.seeds}; flags {flags}\n")
    print("| groups, step | ratio | top-1, mean (lowest to highest) | MACs removed | training MACs removed |")
    print("| --- | --- | --- | --- | --- |")
    for (option, ratio), found in results.items():
        print(f"| {option} | {ratio} | {top1_spread(found)} | {removed(found, 'macs_left')} | {removed(found, 'train_macs_left')} |")


if __name__ == "__main__":
    main()
