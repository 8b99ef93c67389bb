"""Plots of a study: accuracy against sparsity, and against MACs. Needs matplotlib, the extra `plot`.

In: the points of a study. Out: files; equal points give equal bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from prunetrain.files import write_atomically
from prunetrain.models.constructing import require
from prunetrain.studies.summary import Point

INSTALL: Final = "pip install 'prunetrain[plot]'"
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")  # Okabe and Ito's, for all eyes
_MARKERS: Final = "osD^vP*X"
_LEFT_TICKS: Final = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


def check_plots() -> None:
    """Check that plots can be made.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    require("matplotlib", "a plot", INSTALL)


def plot_sparsity(path: Path, found: Sequence[Point], title: str) -> None:
    """Top-1 against the share of parameters that are not zero, on a logarithmic axis.

    Raises:
        ConfigError: if matplotlib is not installed.
        OutputError: if the file cannot be written.
    """
    _plot(path, found, title, "parameters removed", lambda point: point.params)


def plot_macs(path: Path, found: Sequence[Point], title: str) -> None:
    """Top-1 against the share of multiply-accumulates that are left, on a logarithmic axis; see `plot_sparsity`."""
    _plot(path, found, title, "multiply-accumulates removed", lambda point: point.macs)


def _plot(path: Path, found: Sequence[Point], title: str, label: str, share: Callable[[Point], float]) -> None:
    check_plots()
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

    with matplotlib.rc_context({"svg.hashsalt": "prunetrain", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, method in enumerate(dict.fromkeys(point.method for point in found)):
            line = sorted((point for point in found if point.method == method), key=lambda point: -share(point))
            places, colour = [share(point) for point in line], _COLOURS[number % len(_COLOURS)]
            axes.fill_between(places, [point.low for point in line], [point.high for point in line], color=colour, alpha=0.18, linewidth=0)
            means = [point.top1 for point in line]
            axes.plot(places, means, color=colour, marker=_MARKERS[number % len(_MARKERS)], markersize=5, linewidth=1.6, label=method)
        smallest = min(map(share, found))
        axes.set_xscale("log")
        axes.set_xlim(1.08, smallest * 0.92)
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in _LEFT_TICKS if tick >= smallest * 0.92]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda left, _: f"{100 * (1 - left):.4g}%"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        seeds = max(point.seeds for point in found)
        axes.set_xlabel(label)
        axes.set_ylabel("validation top-1" + (f", mean and range of {seeds} seeds" if seeds > 1 else ""))
        axes.set_title(title, fontsize=11)
        axes.grid(color="#cccccc", linewidth=0.6)
        axes.legend(frameon=False)
        form = path.suffix[1:]
        metadata = {"Date": None} if form == "svg" else {}
        write_atomically(path, lambda file: figure.savefig(file, format=form, metadata=metadata, dpi=150))
