"""The report of runs as one HTML page. In: `History`s. Out: a page that needs no internet access and no other file. No torch.

Jinja escapes everything that comes from files (names, paths, source); only the drawings made by `page_svg.py` are inserted as they are. A
content security policy forbids the page to load anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from prunetrain import __version__
from prunetrain.paths import templates
from prunetrain.report.alignment import align_files
from prunetrain.report.charts import CHARTS, PRUNED, Chart
from prunetrain.report.colours import DARK, DARK_SERIES, LIGHT, LIGHT_SERIES, PAGE_PALETTE
from prunetrain.report.figures import NARROW, WIDE, Style, draw_channels, draw_chart
from prunetrain.report.history import History
from prunetrain.report.page_svg import prepare_svg
from prunetrain.report.run_settings import differing_settings, format_setting
from prunetrain.report.tables import UNKNOWN, format_count, format_duration

TEMPLATE = "report.html.jinja"
GENERATOR = '<meta name="generator" content="prunetrain report'
"""A tag near the start of every page, by which a report is recognised that may be overwritten."""


@dataclass(frozen=True)
class Drawing:
    """A chart in a page: its title, its legend, and the SVG."""

    title: str
    kinds: tuple[tuple[str, str], ...]  # label, and its class: solid, dashed or upright
    svg: Markup


@dataclass(frozen=True)
class RunSection:
    """One run in a page: its colour, its rows of figures and settings, its heat map at two widths, its aligned files."""

    colour: int
    run: History
    summary: dict[str, str]
    settings: dict[str, str]
    wide: Markup | None
    narrow: Markup | None
    versions: dict[str, Any] | None


def render_page(runs: Sequence[History]) -> str:
    """Render the page of one run or several side by side; a pure function of them."""
    names = differing_settings([run.settings for run in runs])
    return _template().render(
        title=", ".join(run.label for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else ""),
        version=__version__,
        generator=Markup(GENERATOR),
        parts=[_run_section(run, index, names) for index, run in enumerate(runs)],
        drawings=[_drawing(chart, runs) for chart in CHARTS if chart.has_values_for(runs)],
        colours={
            "light": LIGHT | {f"run-{index}": colour for index, colour in enumerate(LIGHT_SERIES)},
            "dark": DARK | {f"run-{index}": colour for index, colour in enumerate(DARK_SERIES)},
        },
    )


def _run_section(run: History, index: int, names: Sequence[str]) -> RunSection:
    wide = narrow = versions = None
    if len(run.networks) > 1:
        wide, narrow = (_heat_map(run, index, width) for width in (WIDE, NARROW))
        lined_up = align_files([network.source for network in run.networks])
        versions = {"files": [network.file for network in run.networks], "texts": lined_up.texts, "rows": lined_up.rows}
    settings = {name.replace("_", "-"): format_setting(run.settings.get(name)) or UNKNOWN for name in names}
    return RunSection(index % len(LIGHT_SERIES), run, _summary(run), settings, wide, narrow, versions)


def _heat_map(run: History, index: int, width: float) -> Markup:
    drawing = draw_channels(run, Style(PAGE_PALETTE, standalone=False), "svg", width)
    return Markup(prepare_svg(drawing, f"channels-{index}-{width:g}", f"{run.label}: channels of every layer over the epochs"))


def _drawing(chart: Chart, runs: Sequence[History]) -> Drawing:
    kinds = tuple((curve.label, "dashed" if curve.dashed else "solid") for curve in chart.kinds(runs))
    kinds += ((PRUNED, "upright"),) if any(map(chart.pruning_positions, runs)) else ()
    svg = prepare_svg(draw_chart(chart, runs, Style(PAGE_PALETTE, standalone=False), "svg"), chart.name, f"{chart.title}: {chart.unit}")
    return Drawing(chart.title, kinds, Markup(svg))


def _summary(run: History) -> dict[str, str]:
    """The figures of a run's row in readable form; a dash for what its files do not hold."""
    last = run.networks[-1].costs if run.networks else None
    seconds = [value for value in run.values("epoch_seconds") if not math.isnan(value)]
    return {
        "epochs": str(run.epochs),
        "top-1": _percent(run.top1, 2),
        "MACs": format_count(last.macs) if last else UNKNOWN,
        "MACs removed": _percent(1 - run.kept("macs")),
        "parameters": format_count(last.params) if last else UNKNOWN,
        "parameters removed": _percent(1 - run.kept("params")),
        "not zero": UNKNOWN if math.isnan(run.nonzero) else f"{format_count(run.nonzero)}{_share_of_dense(run)}",
        "training MACs removed": _percent(run.train_macs_removed),
        "training time": format_duration(sum(seconds)) if seconds else UNKNOWN,
    }


def _share_of_dense(run: History) -> str:
    """The nonzero share of the dense network's parameters, in parentheses; empty without network files."""
    return f" ({run.nonzero / run.dense.params:.1%})" if run.dense else ""


def _percent(share: float, digits: int = 1) -> str:
    return UNKNOWN if math.isnan(share) else f"{share:.{digits}%}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True
    )
    return environment.get_template(TEMPLATE)
