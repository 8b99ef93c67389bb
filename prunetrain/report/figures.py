"""The figures of a report. In: `History`s. Out: matplotlib figures, as SVG or PNG bytes.

matplotlib draws them (the extra `plot`): it places ticks and labels better than a few hundred lines of our own would, and gives SVG and
PNG from one drawing. `page_svg.py` then adds what it lacks: colours that follow the reader's light or dark setting, and the page's own
font. The heat map, which a phone would shrink until it is illegible, is drawn at two widths, and the page shows the one that fits.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby, pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from prunetrain.report.charts import AXES, PRUNED, Chart, Curve, horizontal_positions
from prunetrain.report.colours import FILE_PALETTE, Palette
from prunetrain.report.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 7.2, 3.7  # inches of a heat map
CHART_SIZE = (3.7, 2.45)  # inches
ROW_HEIGHT = 0.19  # height of a layer in a heat map, in inches
MIN_LAST_WIDTH = 0.04  # least width of the last network in a heat map, as a share of the epochs
DOTS_PER_LINE = 5  # on the line of each of several runs, roughly
DASH_LENGTH = 3.0  # length in line widths
FONT_SIZE = 8.5
DOTS_PER_INCH = 200  # of PNG files
TOOLTIP_PREFIX = "tip: "
"""Prefix of an element's id; the rest of the id is the text to show on hover."""


@dataclass(frozen=True)
class Style:
    """How a figure is drawn: its colours, and whether it is a file by itself (title, legend, letters as outlines) or part of a page."""

    palette: Palette = FILE_PALETTE
    standalone: bool = True


def draw_chart(chart: Chart, runs: Sequence[History], style: Style, form: str) -> bytes:
    """Draw a chart of all runs, as a file in the format `form`: "svg" or "png".

    Where lines of several runs overlap, their dots alternate between the runs, and so do the dashes of vertical lines.
    """
    marks = _legend(chart, runs, style) if style.standalone else []
    width, height = CHART_SIZE
    with _figure((width, height + 0.19 * len(marks)), style) as figure:
        axes = figure.add_subplot()
        _draw_prunings(axes, chart, runs, style)
        for index, run in enumerate(runs):
            for curve in chart.curves:
                _draw(axes, horizontal_positions(chart, run), curve, run, RunStyle(style.palette.run_colour(index), index, len(runs)))
        _format_axes(axes, chart, style)
        if style.standalone:
            axes.set_title(chart.title, loc="left", fontsize=FONT_SIZE + 1)
            if marks:
                figure.legend(handles=marks, loc="outside lower left", frameon=False, ncols=1)
        return _file_content(figure, chart.name, form)


@dataclass(frozen=True)
class RunStyle:
    """One of the runs in a chart: its colour, its index, and the number of runs."""

    colour: str
    index: int
    runs: int

    def marked_points(self, points: int) -> list[int]:
        """The points of a line that get a dot: the last, and earlier ones where no other run has one."""
        every = max(1, points // (DOTS_PER_LINE * self.runs))
        return [*range(self.index * every, points - 1, self.runs * every), points - 1]


def _draw_prunings(axes: "Axes", chart: Chart, runs: Sequence[History], style: Style) -> None:
    """Draw a vertical line wherever a method pruned a run; several in one place have dashes that leave room for each other."""
    places: dict[float, list[str]] = {}
    for index, run in enumerate(runs):
        for place in chart.pruning_positions(run):
            places.setdefault(place, []).append(style.palette.run_colour(index))
    for place, colours in places.items():
        for number, colour in enumerate(colours):
            dashes: Any = (-DASH_LENGTH * number, (DASH_LENGTH, DASH_LENGTH * (len(colours) - 1))) if len(colours) > 1 else "solid"
            axes.axvline(place, color=colour, linestyle=dashes, linewidth=1.0)


def _draw(axes: "Axes", across: list[float], curve: Curve, run: History, line: RunStyle) -> None:
    values = curve.read(run)
    if all(map(math.isnan, values)):
        return
    marks: dict[str, Any] = {}
    if len(values) == 1:
        marks = {"marker": "o", "markersize": 4}
    elif line.runs > 1 and not curve.dashed:
        marks = {"marker": "o", "markersize": 3.2, "markevery": line.marked_points(len(values))}
    axes.plot(across, values, color=line.colour, linestyle=_dashes(curve), linewidth=1.0 if curve.dashed else 1.6, **marks)


def _dashes(curve: Curve) -> Any:
    return (0, (3, 2)) if curve.dashed else "solid"


def _legend(chart: Chart, runs: Sequence[History], style: Style) -> list[Any]:
    """The legend's marks for runs and for kinds of line; a single run or kind gets none."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=style.palette.run_colour(index), linewidth=1.6, label=run.label) for index, run in enumerate(runs)]
    kinds = [Line2D([], [], color=style.palette.text, linestyle=_dashes(curve), label=curve.label) for curve in chart.kinds(runs)]
    pruned = [Line2D([], [], color=style.palette.text, linestyle="none", marker="|", markersize=8, label=PRUNED)]
    return (marks if len(marks) > 1 else []) + kinds + (pruned if any(map(chart.pruning_positions, runs)) else [])


def _format_axes(axes: "Axes", chart: Chart, style: Style) -> None:
    """Set the axes' labels, limits and number formats."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

    axes.set_ylabel(chart.unit)
    axes.set_xlabel(AXES[chart.against])
    if chart.against == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    else:
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if chart.kind == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    elif chart.kind == "number":
        axes.yaxis.set_major_formatter(EngFormatter())
    if chart.zero:
        axes.set_ylim(0, 1.06 * axes.dataLim.y1)
    axes.grid(axis="y", color=style.palette.faint, linewidth=0.6)
    _hide_frame(axes, style)


def draw_channels(run: History, style: Style, form: str, width: float = WIDE) -> bytes:
    """Draw the channels of every layer over the epochs: one row per layer, coloured by the share that is kept.

    Args:
        run: has at least one network file.
        style: colours.
        form: "svg" or "png".
        width: inches.
    """
    from matplotlib.ticker import MaxNLocator

    layers, edges = run.layers, edges_of(run)
    with _figure((width, ROW_HEIGHT * len(layers) + (1.15 if style.standalone else 0.95)), style) as figure:
        axes = figure.add_subplot()
        for row, layer in enumerate(layers):
            spans = [(count, edges[place], edges[place + 1]) for place, count in enumerate(layer.channels)]
            for count, same in groupby(spans, key=lambda span: span[0]):
                held = list(same)
                left, right = held[0][1], held[-1][2]
                tip = f"{layer.name}: {count} of {layer.dense} channels from epoch {left:g}"
                colour = style.palette.share_colour(count / layer.dense) if count else "none"
                axes.barh(row, right - left, 0.84, left, color=colour, gid=TOOLTIP_PREFIX + tip, antialiased=False)
                if not count:
                    axes.plot([left, right], [row, row], color=style.palette.faint, linewidth=1)
        axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
        axes.set(xlim=(edges[0], edges[-1]), ylim=(len(layers) - 0.4, -0.6), xlabel="network after epoch")
        axes.set_xticks([tick for tick in MaxNLocator(steps=[1, 2, 5, 10], integer=True).tick_values(0, run.epochs) if tick <= run.epochs])
        _label_ends(axes, run)
        _hide_frame(axes, style)
        axes.tick_params(axis="y", length=0)
        if style.standalone:
            axes.set_title(f"{run.label}: channels kept, layer by layer", loc="left", fontsize=FONT_SIZE + 1)
        _heat_legend(figure, style)
        return _file_content(figure, f"channels-{run.label}-{width}", form)


def edges_of(run: History) -> list[float]:
    """The epochs between which each network of a run is drawn: up to the next one's, and for the last up to the end of the run.

    A network written at or shortly before the end gets a narrow stripe, so that it is visible.
    """
    starts = [float(network.epoch) for network in run.networks]
    steps = [later - earlier for earlier, later in pairwise(starts)]
    least = min(median(steps), MIN_LAST_WIDTH * starts[-1]) if steps else 1.0
    return [*starts, max(float(run.epochs), starts[-1] + least)]


def _label_ends(axes: "Axes", run: History) -> None:
    """Write each layer's final channels at the right: `5 of 16`."""
    right = axes.secondary_yaxis("right")
    texts = [f"{layer.channels[-1]} of {layer.dense}" if layer.channels[-1] else f"gone, was {layer.dense}" for layer in run.layers]
    right.set_yticks(range(len(run.layers)), texts)
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)


def _heat_legend(figure: "Figure", style: Style) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = [Patch(color=style.palette.share_colour(share), label=f"{share:.0%}") for share in (1.0, 0.75, 0.5, 0.25, 0.02)]
    gone = Line2D([], [], color=style.palette.faint, linewidth=1, label="gone")
    figure.legend(handles=[*marks, gone], loc="outside lower left", ncols=6, frameon=False, handlelength=1.1, columnspacing=1.0)


def _hide_frame(axes: "Axes", style: Style) -> None:
    """Remove the frame at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(style.palette.faint)
    axes.tick_params(color=style.palette.faint)


@contextmanager
def _figure(size: tuple[float, float], style: Style) -> Iterator["Figure"]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    background = style.palette.paper if style.standalone else "none"
    settings: dict[Any, Any] = {
        "font.family": "sans-serif",
        "font.size": FONT_SIZE,
        "text.color": style.palette.text,
        "text.parse_math": False,
        "axes.labelcolor": style.palette.text,
        "axes.facecolor": background,
        "xtick.labelcolor": style.palette.text,
        "ytick.labelcolor": style.palette.text,
        "svg.fonttype": "path" if style.standalone else "none",
        "path.simplify": False,
    }
    with rc_context(settings):
        yield Figure(figsize=size, facecolor=background, layout="constrained")


def _file_content(figure: "Figure", name: str, form: str) -> bytes:
    """The content of a figure's file; equal figures give equal bytes."""
    from matplotlib import rc_context

    buffer = BytesIO()
    with rc_context({"svg.hashsalt": name}):
        if form == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "prunetrain"})
        else:
            figure.savefig(buffer, format=form, dpi=DOTS_PER_INCH, metadata={"Software": "prunetrain"})
    return buffer.getvalue()
