"""The results of finished runs side by side, as a Markdown table; wall-clock time is relative to the first run.

    python benchmarks/results_table.py runs/vgg8 dense-s0 pruned-s0

Out: one row per run. Wall-clock time is that of training alone; it is meaningful only for runs that had the machine to themselves or shared
it evenly.
"""

import argparse
from pathlib import Path

from runs import machine, read_result

from prunetrain.paths import RunPaths


def main() -> None:
    """Read the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="--output-dir of the runs")
    parser.add_argument("names", nargs="+")
    arguments = parser.parse_args()
    results = [read_result(RunPaths(arguments.folder, name)) for name in arguments.names]
    print(f"{machine()}\n")
    print("| run | epochs | top-1 | MACs removed | parameters removed | training MACs removed | training time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for result in results:
        removed = " | ".join(f"{1 - share:.1%}" for share in (result.macs_left, result.params_left, result.train_macs_left))
        print(f"| {result.name} | {result.epochs} | {result.top1:.2%} | {removed} | {result.seconds / results[0].seconds:.2f} |")


if __name__ == "__main__":
    main()
