"""Tables for the terminal, with bars, in colour where the terminal supports it. In: the dictionaries that `describe` makes."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunetrain.errors import abbreviate_names
from prunetrain.foreign.refusal import printable

BAR_WIDTH = 10
UNKNOWN = "\N{EN DASH}"  # for values that a run's files do not hold


def print_network(console: Console, described: dict[str, Any]) -> None:
    """Print a network's layers and totals, and what can be cut."""
    shape = "x".join(map(str, described["input_shape"]))
    table = new_table(f"{described['network']}, input {shape}", "layer", "output", "channels", "", "MACs", "params")
    for row in described["layers"]:
        kept = f"{row['channels']}" if row["channels"] == row["was"] else f"{row['channels']} of {row['was']}"
        output = "x".join(map(str, row["output_shape"]))
        table.add_row(
            row["layer"], output, kept, _coloured(row["channels"], row["was"]), format_count(row["macs"]), format_count(row["params"])
        )
    total, dense = described["totals"], described.get("dense_totals")
    table.add_section()
    table.add_row("total", "", f"{total['channels']:,}", "", format_count(total["macs"]), format_count(total["params"]))
    if dense:
        shares = [f"{share(total[key], dense[key]):.1%}" for key in ("channels", "macs", "params")]
        table.add_row("of the dense network", "", shares[0], "", shares[1], shares[2])
    console.print(table)
    console.print()
    _print_cuttable_share(console, described["cuttable"], described["frozen"])


def _print_cuttable_share(console: Console, cuttable: dict[str, Any], frozen: list[dict[str, Any]]) -> None:
    """Print the share of the MACs that can be cut, the least that can be left, and the channel spaces that stay, by reason."""
    least = f", down to {100 * cuttable['least_share']:.3g}% of the MACs" if cuttable["share"] else ""
    stays = "; these stay:" if frozen else ""
    console.print(f"{cuttable['share']:.1%} of the MACs are in channels that can be cut{least}{stays}", soft_wrap=True)
    reasons: dict[str, list[dict[str, Any]]] = {}
    for space in frozen:
        reasons.setdefault(space["why"], []).append(space)
    for why, spaces in reasons.items():
        channels = sum(space["channels"] for space in spaces)
        channels_of = f"{channels:,} channel{'s' if channels > 1 else ''} of"
        console.print(f"  {why}: {channels_of} {abbreviate_names([space['space'] for space in spaces])}", soft_wrap=True, markup=False)


def print_change(console: Console, described: dict[str, Any]) -> None:
    """Print what differs between two networks; for two runs, also their results."""
    if described["layers"]:
        _print_layers(console, described)
    else:
        console.print("no layer differs")
    if "runs" in described:
        console.print()
        _print_results(console, described["runs"])


def _print_results(console: Console, runs: list[dict[str, Any]]) -> None:
    """Print the results of two runs, one line per figure; a dash for what their files do not hold."""
    for label, key, form in (
        ("top-1", "val_top1", "{:.2%}".format),
        ("MACs", "macs", format_count),
        ("not zero", "nonzero_params", format_count),
    ):
        before, after = (UNKNOWN if run[key] is None else form(run[key]) for run in runs)
        console.print(f"{label:8}  {before} -> {after}", highlight=False)


def _print_layers(console: Console, described: dict[str, Any]) -> None:
    """Print the layers that differ, and the sums."""
    table = new_table("", "layer", "channels", "", "MACs saved", "params saved")
    for row in described["layers"]:
        (old, new), macs, params = row["channels"], row["macs"], row["params"]
        label = Text(f"{old} -> {new}") if new else Text(f"{old} -> gone", style="red")
        table.add_row(
            row["layer"], label, _coloured(new, max(old, new)), format_count(macs[0] - macs[1]), format_count(params[0] - params[1])
        )
    total = described["totals"]
    table.add_section()
    saved = [f"{format_count(total[key][0] - total[key][1])} ({1 - share(total[key][1], total[key][0]):.1%})" for key in ("macs", "params")]
    table.add_row("total", f"{total['channels'][0]:,} -> {total['channels'][1]:,}", "", *saved)
    console.print(table)


def print_run(console: Console, described: dict[str, Any]) -> None:
    """Print a run's history: its networks, then its epochs."""
    networks = described["networks"]
    table = new_table(f"run {described['run']}", "file", "channels", "", "MACs", "", "params", "")
    for row in networks:
        table.add_row(
            Path(row["file"]).name,
            f"{row['channels']:,}",
            _coloured(row["channels"], networks[0]["channels"]),
            format_count(row["macs"]),
            f"{share(row['macs'], networks[0]['macs']):.1%}",
            format_count(row["params"]),
            f"{share(row['params'], networks[0]['params']):.1%}",
        )
    console.print(table)
    if not described["metrics"]:
        return
    console.print()
    epochs = new_table("", "epoch", "loss", "lasso", "train", "val top-1", "lr", "MACs", "seconds", "images/s")
    for line in described["metrics"]:
        epochs.add_row(
            str(line["epoch"]),
            f"{line['train_loss']:.4f}",
            f"{line['lasso']:.3f}",
            f"{line['train_top1']:.1%}",
            f"{line['val_top1']:.2%}",
            f"{line['lr']:.4g}",
            format_count(line["macs"]),
            f"{line['epoch_seconds']:.1f}",
            f"{line['images_per_second']:,.0f}",
        )
    console.print(epochs)


def print_classes(console: Console, classes: list[dict[str, Any]]) -> None:
    """Print the classes of a network, with each one's number of images, correct predictions and accuracy."""
    table = new_table("", "class", "images", "right", "accuracy")
    for one in classes:
        accuracy = "" if one["accuracy"] is None else f"{one['accuracy']:.2%}"
        table.add_row(printable(one["name"]), f"{one['images']:,}", f"{one['correct']:,}", accuracy)
    console.print(table)


def share(part: float, whole: float) -> float:
    """Part over whole; 1 if whole is zero."""
    return part / whole if whole else 1.0


def bar(part: float, whole: float) -> str:
    """A bar whose filled length is part over whole; any part above zero is visible."""
    filled = max(round(BAR_WIDTH * part / whole), part > 0) if whole else 0
    return "█" * filled + "░" * (BAR_WIDTH - filled)


def profile(shares: list[float]) -> str:
    """A column for each share, from 0 to 1: " ▁▄█". Only 1 is full, and only 0 is empty."""
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, max(int(8 * kept), kept > 0))] for kept in shares)


def _coloured(part: float, whole: float) -> Text:
    """A bar with its filled part highlighted; in a warning colour below a quarter."""
    text = Text(bar(part, whole), style="dim")
    text.highlight_regex("█+", "yellow not dim" if part < whole / 4 else "cyan not dim")
    return text


def format_count(number: float) -> str:
    """A large number in readable form: 41.2 M, 272 K, 950."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= 0.9995 * size:  # three digits round to one of this unit
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def format_duration(seconds: float) -> str:
    """Seconds in readable form: 42s, 3m10s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def plain_table(rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()) -> str:
    """Aligned columns, as wide as needed, so that no name is cut short.

    Args:
        rows: the texts of each row.
        numbers: the columns that are flush right; the others are flush left.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        spaces = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        cells = [space + text if number in numbers else text + space for number, (text, space) in enumerate(zip(row, spaces, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def new_table(title: str, *columns: str) -> Table:
    """A table without lines; columns of words are left-aligned, those of numbers right-aligned. The widest fold if they do not fit."""
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    words = {"layer", "output", "file", "of a network", "class", "image"}
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", overflow="fold")
    return table
