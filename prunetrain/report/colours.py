"""The colours of a report, by what they mean. In: nothing. Out: `Ink`: for files plain colours, for a page placeholders that CSS replaces.

A page is read in light and in dark. matplotlib knows only fixed colours, so a figure for a page is drawn in placeholders (#01...), each
of which `vector.py` replaces with a CSS expression of variables; templates/report.css.jinja sets these from `LIGHT` and `DARK`.
"""

from dataclasses import dataclass

HEAT_STEPS = 50
"""How many shares of kept channels have a colour of their own."""


@dataclass(frozen=True)
class Ink:
    """Colours as #rrggbb: paper, text, lines in the background, the runs in turn, and shares of channels from the least kept to all."""

    paper: str
    text: str
    faint: str
    series: tuple[str, ...]
    heat: tuple[str, ...]

    def of_run(self, index: int) -> str:
        """The colour of a run; after the last the first comes again."""
        return self.series[index % len(self.series)]

    def of_share(self, kept: float) -> str:
        """The colour of a layer that kept a share of its channels, over 0 and up to 1."""
        return self.heat[max(0, min(HEAT_STEPS, round(kept * HEAT_STEPS)))]


LIGHT = {"paper": "#ffffff", "text": "#1f2328", "faint": "#d5d9de", "heat": "#0b5cad"}
DARK = {"paper": "#14181d", "text": "#e4e8ec", "faint": "#3a424b", "heat": "#58b0ff"}
LIGHT_SERIES = ("#0b6bcb", "#c2410c", "#15803d", "#9333ea", "#be185d", "#0f766e", "#854d0e", "#475569")
DARK_SERIES = ("#6cb2ff", "#ff9d5c", "#5fd38a", "#c99bff", "#ff8fbf", "#4fd1c5", "#e0b457", "#a8b5c7")


def percent_of_heat(step: int) -> float:
    """How much of the strongest colour a step of shares has; even the least is seen beside a layer that is gone."""
    return 15 + 85 * step / HEAT_STEPS


def _mixed(step: int) -> str:
    part = percent_of_heat(step) / 100
    colours = [[int(LIGHT[name][i : i + 2], 16) for i in (1, 3, 5)] for name in ("heat", "paper")]
    return "#" + "".join(f"{round(part * strong + (1 - part) * weak):02x}" for strong, weak in zip(*colours, strict=True))


FILE = Ink(LIGHT["paper"], LIGHT["text"], LIGHT["faint"], LIGHT_SERIES, tuple(map(_mixed, range(HEAT_STEPS + 1))))

PAGE = Ink(
    "#010000",
    "#010001",
    "#010002",
    tuple(f"#0101{index:02x}" for index in range(len(LIGHT_SERIES))),
    tuple(f"#0102{step:02x}" for step in range(HEAT_STEPS + 1)),
)

CSS_OF = {
    PAGE.paper: "var(--paper)",
    PAGE.text: "var(--text)",
    PAGE.faint: "var(--faint)",
    **{colour: f"var(--run-{index})" for index, colour in enumerate(PAGE.series)},
    **{colour: f"color-mix(in srgb, var(--heat) {percent_of_heat(step):.1f}%, var(--paper))" for step, colour in enumerate(PAGE.heat)},
}
"""What stands for each placeholder in a page."""
