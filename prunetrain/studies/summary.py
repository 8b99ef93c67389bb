"""Summary of a study: means and ranges over the seeds, as Markdown.

In: the records of its cells and dense networks. Out: a table with one row per rate, and one for the dense networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Final

from prunetrain.studies.records import DENSE, Record

LEGEND: Final = "Top-1: mean (lowest to highest over the seeds). Left: nonzero parameters, and MACs, as shares of the dense network's."
"""Explanation of the numbers in a table's cells."""


@dataclass(frozen=True)
class Point:
    """A method at a rate: means over seeds, and the extremes of top-1. `params` and `macs` are fractions of the dense network's."""

    method: str
    rate: float
    seeds: int
    top1: float
    low: float
    high: float
    params: float
    macs: float

    @property
    def is_dense(self) -> bool:
        """Whether this is the point of the dense networks, which no method has pruned."""
        return self.method == DENSE


def points(records: Sequence[Record]) -> list[Point]:
    """The points of a study, by method in the order of the records, and by rate."""
    found: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        found.setdefault((record["method"], record["rate"]), []).append(record)
    order = list(dict.fromkeys(method for method, _ in found))
    ranked = sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    return [_point(method, rate, cells) for (method, rate), cells in ranked]


def methods_of(found: Sequence[Point]) -> list[str]:
    """The methods of a study, each once, without the dense networks."""
    return list(dict.fromkeys(point.method for point in found if not point.is_dense))


def _point(method: str, rate: float, cells: Sequence[Record]) -> Point:
    top1 = [cell["top1"] for cell in cells]
    left = mean(cell["nonzero_params"] / cell["dense_params"] for cell in cells)
    return Point(
        method, rate, len(cells), mean(top1), min(top1), max(top1), left, mean(cell["macs"] / cell["dense_macs"] for cell in cells)
    )


def table(found: Sequence[Point]) -> str:
    """A Markdown table with a row per rate and a column per method, the dense networks in the first row; `LEGEND` explains the cells."""
    methods, seeds = methods_of(found), max((point.seeds for point in found), default=0)
    cells = {(point.method, point.rate): point for point in found}
    lines = [f"| rate | {' | '.join(methods or [DENSE])} |", "| ---: |" + " --- |" * max(1, len(methods))]
    lines += [f"| {DENSE} |" + f" {_top1(point, seeds)} |" * max(1, len(methods)) for point in found if point.is_dense]
    for rate in sorted({point.rate for point in found if not point.is_dense}):
        row = (_cell(cells.get((method, rate)), seeds) for method in methods)
        lines.append(f"| {100 * rate:.10g}% | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _cell(point: Point | None, seeds: int) -> str:
    return "" if point is None else f"{_top1(point, seeds)}, {point.params:.1%} params, {point.macs:.1%} MACs left"


def _top1(point: Point, seeds: int) -> str:
    """The mean with its range; if cells have failed, also the number of seeds that it covers."""
    notes = [f"{point.low:.2%} to {point.high:.2%}"] if point.seeds > 1 else []
    notes += [f"{point.seeds} of {seeds} seeds"] if point.seeds < seeds else []
    return f"{point.top1:.2%}" + (f" ({', '.join(notes)})" if notes else "")
