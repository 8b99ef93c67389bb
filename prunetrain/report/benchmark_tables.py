"""Tables of measurements for the terminal. In: the dictionaries that `benchmarks` makes."""

from pathlib import Path
from typing import Any

from rich.console import Console

from prunetrain.report.benchmarks import MIN_SAVED
from prunetrain.report.tables import format_count, new_table

_ROWS = (  # key of a network, key of a comparison, label
    ("train_step_seconds", "train_step_ratio", "training step"),
    ("inference_seconds", "inference_ratio", "inference, a batch"),
    ("inference_one_image_seconds", "inference_one_image_ratio", "inference, one image"),
)


def print_benchmark(console: Console, described: dict[str, Any]) -> None:
    """Print the measurements of one or two networks: times with quartiles, memory, and how the two compare."""
    machine, networks, compared = described["machine"], described["networks"], described.get("comparison")
    console.print(machine_line(machine), soft_wrap=True)
    console.print()
    ratio = ["ratio"] if compared else []
    grid = new_table("", "of a network", *(_short(network["network"]) for network in networks), *ratio)
    for key, ratio_key, label in _ROWS:
        grid.add_row(label, *(_seconds(network[key]) for network in networks), *([_ratio(compared[ratio_key])] if compared else []))
    lasso = [f"{network['lasso_share_of_train_step']['median']:.2%}" for network in networks]
    grid.add_row("group lasso, share of a step", *lasso, *[""] * len(ratio))
    for key, unit, label in (
        ("train_peak_memory_bytes", "B", "peak memory of training"),
        ("macs", "", "MACs"),
        ("params", "", "parameters"),
    ):
        ratio_key = key.removesuffix("_bytes") + "_ratio"
        grid.add_row(
            label, *(format_count(network[key]) + unit for network in networks), *([f"{compared[ratio_key]:.3f}"] if compared else [])
        )
    console.print(grid)
    if compared:
        saved = compared["time_saved_of_macs_saved"]
        text = _ratio(saved) if saved else f"left out, since the second network saves less than {MIN_SAVED:.0%} of the MACs"
        console.print()
        console.print(f"time saved / MACs saved in a training step: {text}")


def machine_line(machine: dict[str, Any]) -> str:
    """The conditions of the measurement in one line."""
    precision = "float32" if machine["amp"] == "off" else machine["amp"]
    parts = [f"{machine['device']}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, {precision}"]
    parts += ["channels-last"] if machine["channels_last"] else []
    parts += [f"compiled ({machine['compile']})"] if machine["compile"] != "off" else []
    parts.append(f"batch {machine['batch_size']}; torch {machine['torch']}, Python {machine['python']}")
    rounds = f"median of {machine['rounds']} rounds (quartiles)" if machine["rounds"] > 1 else "one round"
    clock = ", CPU time" if machine["clock"] == "CPU time" else ""
    return f"{', '.join(parts)}; {rounds}{clock}"


def print_layers(console: Console, described: dict[str, Any]) -> None:
    """Print a network's steps in the order of the forward pass, then their sums by kind."""
    peaks = described["peaks"]
    console.print()
    best = f"{format_count(peaks['macs_per_second'])}MAC/s in a matrix product, {format_count(peaks['bytes_per_second'])}B/s in a copy"
    console.print(f"peaks of this machine: {best}", soft_wrap=True)
    for profile in described["profiles"]:
        console.print()
        grid = new_table(_short(profile["network"]), "layer", "output", "MACs", "bytes", "forward", "backward", "share", "of roofline")
        for row in profile["layers"]:
            shape = "x".join(map(str, row["output_shape"]))
            times = [_duration(row[f"{way}_seconds"]["median"]) for way in ("forward", "backward")]
            grid.add_row(row["layer"], shape, format_count(row["train_macs"]), format_count(row["moved_bytes"]), *times, *_shares(row))
        console.print(grid)
        console.print()
        totals = new_table("by kind", "layer", "calls", "MACs", "bytes", "time", "share", "of roofline")
        for row in profile["kinds"]:
            figures = [format_count(row["train_macs"]), format_count(row["moved_bytes"]), _duration(row["seconds"])]
            totals.add_row(row["kind"], str(row["calls"]), *figures, *_shares(row))
        console.print(totals)


def _short(network: str) -> str:
    """A network file's name with that of its folder, which is its run's."""
    return "/".join(Path(network).parts[-2:])


def _shares(row: dict[str, Any]) -> list[str]:
    return [f"{row['share_of_time']:.1%}", f"{row['share_of_roofline']:.0%}"]


def _duration(seconds: float) -> str:
    """A time in readable form: 1.24 s, 37.5 ms, 8.1 µs."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _seconds(spread: dict[str, float]) -> str:
    return f"{_duration(spread['median'])} ({_duration(spread['low'])} to {_duration(spread['high'])})"


def _ratio(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"
