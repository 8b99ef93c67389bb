"""The report of runs as one HTML page. In: `History`s. Out: text that needs nothing else: no network, no other file, no torch.

Jinja escapes everything that comes from files (names, paths, source); only the drawings, which `vector.py` made, go in as they are. A
policy in the page forbids it to load anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from prunetrain import __version__
from prunetrain.paths import templates
from prunetrain.report.alignment import line_up
from prunetrain.report.charts import CHARTS, Chart
from prunetrain.report.colours import DARK, DARK_SERIES, LIGHT, LIGHT_SERIES, PAGE
from prunetrain.report.figures import NARROW, WIDE, Style, draw_channels, draw_chart
from prunetrain.report.history import History
from prunetrain.report.tables import count, duration
from prunetrain.report.vector import for_page

TEMPLATE = "report.html.jinja"
UNKNOWN = "\N{EN DASH}"  # what a run's files do not tell
GENERATOR = '<meta name="generator" content="prunetrain report'
"""Stands near the start of every page, so that a report may be written over an older one, and over nothing else."""


@dataclass(frozen=True)
class Drawing:
    """A chart in a page: its words, and the SVG."""

    title: str
    kinds: tuple[tuple[str, bool], ...]  # label and whether dashed
    svg: Markup


@dataclass(frozen=True)
class Part:
    """What a page says of one run: its colour, its row of figures, its heat map at two widths, its files lined up."""

    colour: int
    run: History
    summary: dict[str, str]
    wide: Markup | None
    narrow: Markup | None
    versions: dict[str, Any] | None


def render_page(runs: Sequence[History]) -> str:
    """The page of one run or of several side by side; a pure function of them."""
    return _template().render(
        title=", ".join(run.label for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else ""),
        version=__version__,
        generator=Markup(GENERATOR),
        parts=[_part(run, index) for index, run in enumerate(runs)],
        drawings=[_drawing(chart, runs) for chart in CHARTS if chart.shown_for(runs)],
        colours={
            "light": LIGHT | {f"run-{index}": colour for index, colour in enumerate(LIGHT_SERIES)},
            "dark": DARK | {f"run-{index}": colour for index, colour in enumerate(DARK_SERIES)},
        },
    )


def _part(run: History, index: int) -> Part:
    wide = narrow = versions = None
    if len(run.networks) > 1:
        wide, narrow = (_heat_map(run, index, width) for width in (WIDE, NARROW))
        lined_up = line_up([network.source for network in run.networks])
        versions = {"files": [network.file for network in run.networks], "texts": lined_up.texts, "rows": lined_up.rows}
    return Part(index % len(LIGHT_SERIES), run, _summary(run), wide, narrow, versions)


def _heat_map(run: History, index: int, width: float) -> Markup:
    drawing = draw_channels(run, Style(PAGE, alone=False), "svg", width)
    return Markup(for_page(drawing, f"channels-{index}-{width:g}", f"{run.label}: channels of every layer over the epochs"))


def _drawing(chart: Chart, runs: Sequence[History]) -> Drawing:
    kinds = tuple((curve.label, curve.dashed) for curve in chart.kinds(runs))
    svg = for_page(draw_chart(chart, runs, Style(PAGE, alone=False), "svg"), chart.name, f"{chart.title}: {chart.unit}")
    return Drawing(chart.title, kinds, Markup(svg))


def _summary(run: History) -> dict[str, str]:
    """The figures of a run's row, for reading; a dash for what its files do not tell."""
    last = run.networks[-1].costs if run.networks else None
    seconds = [value for value in run.values("epoch_seconds") if not math.isnan(value)]
    return {
        "epochs": str(run.epochs),
        "top-1": _percent(run.last("val_top1"), 2),
        "MACs": count(last.macs) if last else UNKNOWN,
        "MACs removed": _percent(1 - run.kept("macs")),
        "parameters": count(last.params) if last else UNKNOWN,
        "parameters removed": _percent(1 - run.kept("params")),
        "training MACs removed": _percent(run.train_macs_removed),
        "training time": duration(sum(seconds)) if seconds else UNKNOWN,
    }


def _percent(share: float, digits: int = 1) -> str:
    return UNKNOWN if math.isnan(share) else f"{share:.{digits}%}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True
    )
    return environment.get_template(TEMPLATE)
