"""The charts of a report: names, titles, units and where their values come from; no drawing. In: a run's metrics. Out: `Chart`s."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prunetrain.graph.costs import TRAIN_TO_FORWARD
from prunetrain.report.history import History


@dataclass(frozen=True)
class Curve:
    """What one line shows, one number per epoch; `dashed` distinguishes a chart's second kind of line from its first."""

    label: str
    read: Callable[[History], list[float]]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """One figure with a line of each kind for every run.

    `unit` is the label of the vertical axis, and `kind` how its numbers are written: "percent", "number" (12 M) or "plain". `against` is
    what the horizontal axis counts, one of `AXES`. With `zero` the vertical axis starts at 0, with `log` it is logarithmic, and with
    `prunings` the epochs after which a method pruned are marked.
    """

    name: str
    title: str
    unit: str
    curves: tuple[Curve, ...]
    kind: str = "plain"
    zero: bool = False
    log: bool = False
    against: str = "epoch"
    prunings: bool = False

    def has_values_for(self, runs: Sequence[History]) -> bool:
        """Whether any run has a value to show here that is not zero."""
        return any(value and not math.isnan(value) for run in runs for curve in self.curves for value in curve.read(run))

    def kinds(self, runs: Sequence[History]) -> tuple[Curve, ...]:
        """The kinds of lines in the chart of these runs; empty if there is only one, which needs no name."""
        kinds = tuple(curve for curve in self.curves if any(not math.isnan(value) for run in runs for value in curve.read(run)))
        return kinds if len(kinds) > 1 else ()

    def pruning_positions(self, run: History) -> list[float]:
        """The places on the horizontal axis where a method pruned."""
        if not self.prunings:
            return []
        places = horizontal_positions(self, run)
        return [place for line, place in zip(run.metrics, places, strict=True) if line["epoch"] in run.prunings]


def _field(name: str) -> Callable[[History], list[float]]:
    return lambda run: run.values(name)


def _dense_train_macs(run: History) -> list[float]:
    """Training MACs that the dense network would have taken so far; NaN if none were removed."""
    if run.dense is None or not run.train_macs_removed > 0:
        return [math.nan] * len(run.metrics)
    return [TRAIN_TO_FORWARD * run.dense.macs * images for images in run.values("train_images_total")]


def _not_zero(run: History) -> list[float]:
    """Nonzero parameters; NaN if no method masks weights."""
    masked = not all(map(math.isnan, run.values("sparsity")))
    return run.values("nonzero_params") if masked else [math.nan] * len(run.metrics)


def _single_curve(field: str) -> tuple[Curve, ...]:
    return (Curve("", _field(field)),)


PRUNED = "a method pruned"
"""The meaning of a vertical line in a chart."""

AXES = {"epoch": "epoch", "train_macs_total": "MACs of training so far", "seconds": "seconds of training so far"}
"""What a horizontal axis may count, with its label."""

CHARTS = (
    Chart(
        "accuracy",
        "Accuracy",
        "top-1",
        (Curve("validation", _field("val_top1")), Curve("training images, augmented", _field("train_top1"), dashed=True)),
        kind="percent",
        prunings=True,
    ),
    Chart(
        "loss",
        "Loss",
        "cross-entropy (nats)",
        (Curve("validation", _field("val_loss")), Curve("training, without the lasso", _field("train_loss"), dashed=True)),
    ),
    Chart("macs", "Cost of one image", "MACs, forward", _single_curve("macs"), kind="number", zero=True),
    Chart(
        "params",
        "Size",
        "parameters",
        (Curve("parameters", _field("params")), Curve("nonzero parameters", _not_zero, dashed=True)),
        kind="number",
        zero=True,
    ),
    Chart(
        "training-macs",
        "Cost of training so far",
        "MACs",
        (Curve("trained", _field("train_macs_total")), Curve("the dense network, same images", _dense_train_macs, dashed=True)),
        kind="number",
        zero=True,
    ),
    Chart(
        "accuracy-by-training-macs",
        "Accuracy against the cost of training",
        "top-1, validation",
        _single_curve("val_top1"),
        kind="percent",
        against="train_macs_total",
        prunings=True,
    ),
    Chart(
        "accuracy-by-time",
        "Accuracy against time",
        "top-1, validation",
        _single_curve("val_top1"),
        kind="percent",
        against="seconds",
        prunings=True,
    ),
    Chart("sparsity", "Weights at zero", "share of the masked weights", _single_curve("sparsity"), kind="percent", zero=True),
    Chart("admm", "ADMM: distance of the weights from sparse ones", "|W - Z| / |W|", _single_curve("admm_relative"), zero=True),
    Chart("lasso", "Group lasso", "lambda · R (nats)", _single_curve("lasso"), zero=True),
    Chart("lambda", "Strength of the lasso", "lambda", _single_curve("lasso_strength"), zero=True),
    Chart("learning-rate", "Learning rate", "learning rate", _single_curve("lr"), log=True),
    Chart("batch-size", "Batch size", "images per step", _single_curve("batch_size"), zero=True),
    Chart("epoch-seconds", "Time of an epoch", "seconds, training alone", _single_curve("epoch_seconds"), zero=True),
    Chart("images-per-second", "Throughput", "images per second", _single_curve("images_per_second"), kind="number", zero=True),
    Chart("memory", "Peak memory", "bytes", _single_curve("peak_memory_bytes"), kind="number", zero=True),
    Chart("exchange", "Gradients exchanged", "bytes per step and worker", _single_curve("gradient_bytes"), kind="number", zero=True),
)


def horizontal_positions(chart: Chart, run: History) -> list[float]:
    """The horizontal positions of a chart's values."""
    if chart.against == "seconds":
        return list(accumulate(run.values("epoch_seconds")))
    return run.values(chart.against)
