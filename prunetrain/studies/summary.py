"""What a study found, for people: means and spread over the seeds, as Markdown.

In: the records of its cells. Out: one line a method and rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from prunetrain.studies.records import Record


@dataclass(frozen=True)
class Point:
    """A method at a rate: means over seeds; `low` and `high` are the extremes of top-1. Shares are fractions of the dense network's."""

    method: str
    rate: float
    seeds: int
    top1: float
    low: float
    high: float
    params: float
    macs: float


def points(records: Sequence[Record]) -> list[Point]:
    """The points of a study, by method in the order of the records, and by rate."""
    found: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        found.setdefault((record["method"], record["rate"]), []).append(record)
    order = list(dict.fromkeys(method for method, _ in found))
    ranked = sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    return [_point(method, rate, cells) for (method, rate), cells in ranked]


def _point(method: str, rate: float, cells: Sequence[Record]) -> Point:
    top1 = [cell["top1"] for cell in cells]
    left = mean(cell["nonzero_params"] / cell["dense_params"] for cell in cells)
    return Point(
        method, rate, len(cells), mean(top1), min(top1), max(top1), left, mean(cell["macs"] / cell["dense_macs"] for cell in cells)
    )


def table(found: Sequence[Point]) -> str:
    """A Markdown table: a row a rate, a column a method: mean top-1, the extremes, and the share of parameters that is left."""
    methods = list(dict.fromkeys(point.method for point in found))
    cells = {(point.method, point.rate): point for point in found}
    lines = [f"| removed | {' | '.join(methods)} |", "| ---: |" + " --- |" * len(methods)]
    for rate in sorted({point.rate for point in found}):
        row = (_cell(cells.get((method, rate))) for method in methods)
        lines.append(f"| {rate:.0%} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _cell(point: Point | None) -> str:
    if point is None:
        return ""
    spread = f" ({point.low:.2%} to {point.high:.2%})" if point.seeds > 1 else ""
    return f"{point.top1:.2%}{spread}, {point.params:.1%} left"
