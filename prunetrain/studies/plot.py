"""Plots of a study: accuracy against sparsity, and against MACs. Needs matplotlib, the extra `plot`.

In: the points of a study. Out: image files; equal points give equal bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Final

from prunetrain.extras import require
from prunetrain.files import write_atomically
from prunetrain.studies.records import DENSE
from prunetrain.studies.summary import Point, methods_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#000000",
)  # Okabe and Ito's, safe for colour blindness
_MARKERS: Final = "osD^vP*X"
_LEFT_TICKS: Final = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_NOTE_WIDTH: Final = 100  # on a line of a note


def plot_sparsity(path: Path, found: Sequence[Point], title: str) -> None:
    """Plot top-1 against the share of nonzero parameters, on a logarithmic axis; the dense networks are a dotted line.

    Args:
        path: an .svg or .png file.
        found: the points of all methods, in the order in which methods get colours.
        title: of the plot.

    Raises:
        ConfigError: if matplotlib is not installed.
        OutputError: if the file cannot be written.
    """
    _plot(path, found, title, _PlotContent("parameters removed", lambda point: point.params, methods_of(found)))


def plot_macs(path: Path, found: Sequence[Point], title: str) -> None:
    """Plot top-1 against the share of multiply-accumulates left, on a logarithmic axis; see `plot_sparsity`.

    Methods that only set weights to zero, and so leave all of them, are named in a note below the plot.
    """
    smaller = methods_that_cut(found)
    stay = [method for method in methods_of(found) if method not in smaller]
    note = f"Not in this plot: {', '.join(stay)}. Setting weights to zero removes no multiply-accumulates." if stay else ""
    _plot(path, found, title, _PlotContent("multiply-accumulates removed", lambda point: point.macs, smaller, note))


def methods_that_cut(found: Sequence[Point]) -> list[str]:
    """The methods that make networks with fewer multiply-accumulates."""
    smaller = {point.method for point in found if point.macs < 1}
    return [method for method in methods_of(found) if method in smaller]


@dataclass(frozen=True)
class _PlotContent:
    """A plot's horizontal axis (its label, and the share left), the methods to show, and a note below the plot."""

    label: str
    share: Callable[[Point], float]
    methods: Sequence[str]
    note: str = ""


def _plot(path: Path, found: Sequence[Point], title: str, view: _PlotContent) -> None:
    require("matplotlib", "a plot")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "prunetrain", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, method in enumerate(methods_of(found)):
            if method in view.methods:
                line = sorted((point for point in found if point.method == method), key=lambda point: -view.share(point))
                _draw(axes, line, [view.share(point) for point in line], number)
        for point in found:
            if point.is_dense:
                axes.axhline(point.top1, color="#404040", linestyle=":", linewidth=1.4, label=DENSE, zorder=1.5)
        _format_axes(axes, min(view.share(point) for point in found if point.method in view.methods))
        seeds = {point.seeds for point in found}
        several = f", mean and range of {'up to ' if len(seeds) > 1 else ''}{max(seeds)} seeds"
        axes.set_xlabel(view.label)
        axes.set_ylabel("validation top-1" + (several if max(seeds) > 1 else ""))
        axes.set_title(title, fontsize=11)
        axes.legend(frameon=False)
        if view.note:
            figure.supxlabel(fill(view.note, _NOTE_WIDTH), x=0.01, ha="left", fontsize=8, color="#404040")
        form = path.suffix[1:]
        metadata = {"Date": None} if form == "svg" else {}
        write_atomically(path, lambda file: figure.savefig(file, format=form, metadata=metadata, dpi=150))


def _draw(axes: "Axes", line: Sequence[Point], places: Sequence[float], number: int) -> None:
    """Draw a method's means, and the range over the seeds around them."""
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    axes.fill_between(places, [point.low for point in line], [point.high for point in line], color=colour, alpha=0.18, linewidth=0)
    means = [point.top1 for point in line]
    axes.plot(places, means, color=colour, marker=marker, markersize=5, linewidth=1.6, label=line[0].method)


def _format_axes(axes: "Axes", smallest: float) -> None:
    """Set the axes and their ticks; from left to right, less and less is left."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

    axes.set_xscale("log")
    axes.set_xlim(1.08, smallest * 0.92)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _LEFT_TICKS if tick >= smallest * 0.92]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda left, _: f"{100 * (1 - left):.4g}%"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.grid(color="#cccccc", linewidth=0.6)
