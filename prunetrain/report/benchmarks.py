"""Measurements as plain values with their units in the names, ready for a table or for JSON.

In: what `training/benchmarking/` measured. Out: dictionaries of literals. With two networks, ratios are those of the second to the first,
taken round by round.
"""

import platform
from collections.abc import Sequence
from typing import Any, Final

import torch

from prunetrain.config import LASSO_INTERVAL
from prunetrain.graph.costs import Costs, costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.training.benchmarking.conditions import Conditions, device_name
from prunetrain.training.benchmarking.measuring import Measurements
from prunetrain.training.benchmarking.peaks import Peaks
from prunetrain.training.benchmarking.profiling import StepProfile
from prunetrain.training.benchmarking.rounds import Spread, ratios

MIN_SAVED: Final = 0.01
"""Share of the MACs that must be saved to compare the time saved with it: with less, the ratio is noise."""


def machine(conditions: Conditions, rounds: int) -> dict[str, Any]:
    """The machine and the conditions of the measurements."""
    return {
        "device": device_name(conditions.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "batch_size": conditions.batch_size,
        "amp": conditions.amp,
        "channels_last": conditions.channels_last,
        "compile": conditions.compile,
        "rounds": rounds,
        "clock": "CPU time" if conditions.is_single_threaded() else "time",
    }


def network(name: str, graph: LayerGraph, measured: Measurements) -> dict[str, Any]:
    """One network's costs, times and memory."""
    cost = costs(graph)
    lasso = [alone / LASSO_INTERVAL for alone in measured.lasso_step]  # seconds per training step
    lasso = [own / (own + step) for own, step in zip(lasso, measured.train_step, strict=True)]
    return {
        "network": name,
        "macs": cost.macs,
        "params": cost.params,
        "train_step_seconds": spread(measured.train_step),
        "inference_seconds": spread(measured.inference),
        "inference_one_image_seconds": spread(measured.inference_one),
        "lasso_share_of_train_step": spread(lasso),
        "train_peak_memory_bytes": measured.peak_memory,
    }


def comparison(graphs: Sequence[LayerGraph], measured: Sequence[Measurements]) -> dict[str, Any]:
    """The second network compared with the first; `time_saved_of_macs_saved` is None unless the second has noticeably fewer MACs."""
    first, second = measured
    before, after = map(costs, graphs)
    step = ratios(second.train_step, first.train_step)
    return {
        "macs_ratio": after.macs / before.macs,
        "params_ratio": after.params / before.params,
        "train_step_ratio": spread(step),
        "inference_ratio": spread(ratios(second.inference, first.inference)),
        "inference_one_image_ratio": spread(ratios(second.inference_one, first.inference_one)),
        "train_peak_memory_ratio": second.peak_memory / first.peak_memory,
        "time_saved_of_macs_saved": _saved(step, before, after),
    }


def _saved(step: list[float], before: Costs, after: Costs) -> dict[str, float] | None:
    macs_saved = 1 - after.macs / before.macs
    return spread([(1 - ratio) / macs_saved for ratio in step]) if macs_saved >= MIN_SAVED else None


def layers(profiles: Sequence[StepProfile], peaks: Peaks) -> list[dict[str, Any]]:
    """The steps of a network's forward pass, each timed on its own, forward and backward."""
    whole = sum(Spread.of(profile.seconds).median for profile in profiles)
    rows = []
    for profile in profiles:
        seconds = Spread.of(profile.seconds)
        rows.append(
            {
                "layer": profile.name,
                "kind": profile.kind,
                "output_shape": list(profile.output_shape),
                "train_macs": profile.macs,
                "moved_bytes": profile.moved,
                "forward_seconds": spread(profile.forward),
                "backward_seconds": spread(profile.backward),
                "seconds": vars(seconds),
                "share_of_time": seconds.median / whole,
                "share_of_roofline": peaks.least_seconds(profile.macs, profile.moved) / seconds.median,
            }
        )
    return rows


def kinds(rows: Sequence[dict[str, Any]], peaks: Peaks) -> list[dict[str, Any]]:
    """The rows of `layers` summed by the kind of layer or function, the longest first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        total = found.setdefault(
            row["kind"], {"kind": row["kind"], "calls": 0, "train_macs": 0, "moved_bytes": 0, "seconds": 0.0, "least": 0.0}
        )
        total["calls"] += 1
        for key in ("train_macs", "moved_bytes"):
            total[key] += row[key]
        total["seconds"] += row["seconds"]["median"]
        total["least"] += peaks.least_seconds(row["train_macs"], row["moved_bytes"])
    whole = sum(total["seconds"] for total in found.values())
    return [
        {key: total[key] for key in ("kind", "calls", "train_macs", "moved_bytes", "seconds")}
        | {"share_of_time": total["seconds"] / whole, "share_of_roofline": total["least"] / total["seconds"]}
        for total in sorted(found.values(), key=lambda total: -total["seconds"])
    ]


def spread(sample: Sequence[float]) -> dict[str, float]:
    """The median and quartiles of a sample."""
    return vars(Spread.of(sample))
