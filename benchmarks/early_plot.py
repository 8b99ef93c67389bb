"""Plot of top-1 against training MACs removed: a mark per run, a cross per option's mean. Needs matplotlib (the extra `plot`).

    python benchmarks/early_plot.py early.csv docs/images/early.svg

In: the CSV of `early.py`. Out: an .svg or .png.
"""

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "early"  # so that equal results give equal files
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with arguments.source.open(newline="") as file:
        for line in csv.DictReader(file):
            points[line["option"]].append((100 * (1 - float(line["train_macs_left"])), 100 * float(line["top1"])))
    draw(points).savefig(arguments.target, metadata={"Date": None} if arguments.target.suffix == ".svg" else None, dpi=120)


def draw(points: dict[str, list[tuple[float, float]]]) -> Figure:
    """Draw the figure; points are (training MACs removed, top-1) in percent, by option."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (option, found) in enumerate(points.items()):
        removed, top1 = zip(*found, strict=True)
        colour = f"C{number}"
        axes.scatter(removed, top1, s=18, color=colour, alpha=0.5)
        axes.scatter(statistics.mean(removed), statistics.mean(top1), s=90, marker="P", color=colour, label=option)
    axes.set_xlabel("training MACs removed, %")
    axes.set_ylabel("top-1 after the last epoch, %")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    main()
