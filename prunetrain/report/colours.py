"""The colours of a report, by meaning. In: nothing. Out: `Palette`: plain colours for files, placeholders that CSS replaces for a page.

A page is read in light and in dark mode. matplotlib knows only fixed colours, so a figure for a page is drawn in placeholders (#01...),
each of which `page_svg.py` replaces with a CSS expression of variables; templates/report.css.jinja sets these from `LIGHT` and `DARK`.
"""

from dataclasses import dataclass

HEAT_STEPS = 50
"""Number of steps in the colour scale for the share of kept channels."""


@dataclass(frozen=True)
class Palette:
    """Colours as #rrggbb: paper, text, lines in the background, the runs in order, and shares of kept channels from the least to all."""

    paper: str
    text: str
    faint: str
    series: tuple[str, ...]
    heat: tuple[str, ...]

    def run_colour(self, index: int) -> str:
        """The colour of a run; they repeat after the last."""
        return self.series[index % len(self.series)]

    def share_colour(self, kept: float) -> str:
        """The colour of a layer that kept a share of its channels, in (0, 1]."""
        return self.heat[max(0, min(HEAT_STEPS, round(kept * HEAT_STEPS)))]


LIGHT = {"paper": "#ffffff", "text": "#1f2328", "faint": "#d5d9de", "heat": "#0b5cad"}
DARK = {"paper": "#14181d", "text": "#e4e8ec", "faint": "#3a424b", "heat": "#58b0ff"}
LIGHT_SERIES = ("#0b6bcb", "#c2410c", "#15803d", "#9333ea", "#be185d", "#0f766e", "#854d0e", "#475569")
DARK_SERIES = ("#6cb2ff", "#ff9d5c", "#5fd38a", "#c99bff", "#ff8fbf", "#4fd1c5", "#e0b457", "#a8b5c7")


def percent_of_heat(step: int) -> float:
    """The percentage of the strongest colour at a step of the scale; even the lowest differs visibly from a removed layer."""
    return 15 + 85 * step / HEAT_STEPS


def _heat_colour(step: int) -> str:
    part = percent_of_heat(step) / 100
    colours = [[int(LIGHT[name][i : i + 2], 16) for i in (1, 3, 5)] for name in ("heat", "paper")]
    return "#" + "".join(f"{round(part * strong + (1 - part) * weak):02x}" for strong, weak in zip(*colours, strict=True))


FILE_PALETTE = Palette(LIGHT["paper"], LIGHT["text"], LIGHT["faint"], LIGHT_SERIES, tuple(map(_heat_colour, range(HEAT_STEPS + 1))))

PAGE_PALETTE = Palette(
    "#010000",
    "#010001",
    "#010002",
    tuple(f"#0101{index:02x}" for index in range(len(LIGHT_SERIES))),
    tuple(f"#0102{step:02x}" for step in range(HEAT_STEPS + 1)),
)

CSS_BY_PLACEHOLDER = {
    PAGE_PALETTE.paper: "var(--paper)",
    PAGE_PALETTE.text: "var(--text)",
    PAGE_PALETTE.faint: "var(--faint)",
    **{colour: f"var(--run-{index})" for index, colour in enumerate(PAGE_PALETTE.series)},
    **{
        colour: f"color-mix(in srgb, var(--heat) {percent_of_heat(step):.1f}%, var(--paper))"
        for step, colour in enumerate(PAGE_PALETTE.heat)
    },
}
"""The CSS that replaces each placeholder in a page."""
