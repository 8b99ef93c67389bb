"""Writes docs/coverage.md from the results of `coverage.py` and `beside_torch_pruning.py`. In: their folder. Out: the page."""

import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coverage_models import TIMM, TORCHVISION, timm_cases, timm_family, torchvision_cases

Results = Mapping[str, dict[str, Any]]
EXACT = 1e-10
_SOME_LAYER = "LAYER"
_HEAD = """# Which networks prunetrain flattens and cuts

Every line was measured with

    python benchmarks/coverage.py runs/coverage
    python benchmarks/coverage.py runs/coverage --timm
    python benchmarks/beside_torch_pruning.py runs/coverage
    python benchmarks/coverage.py runs/coverage --table docs/coverage.md

on {date}: {versions}; 2 shared CPU cores, one thread.
**Seconds were measured while the machine was under other load**: compare them roughly with each other, not with yours.
Weights are random, including those that new networks initialise to 0 or 1.
"""
_COLUMNS = {
    "px": "image side in the checks, pixels; widths and depths are the constructor's defaults",
    "file": "the network file parses back to the same graph and imports only torch",
    "eval": "in eval mode its outputs equal the model's bit for bit, with batches of 1 and of 2",
    "other size": "the same with images of another side; *file*: this network's file is for one image size; "
    "*model*: the model itself takes only one",
    "train": "outputs, gradients, running statistics and the random generator's state after a training step equal the model's bit for bit",
    "cuttable": "share of the MACs of conv and linear layers in channels that may be cut: for a layer, "
    "1 - (frozen share of its inputs) * (frozen share of its outputs). So a layer of which only one side may be cut counts in full",
    "convs": "convs of which some outputs must stay, out of all convs; the reasons are below the table. Linear layers are not counted",
    "cut": "a random third of all channels that may go is set to zero, then cut: largest difference between the outputs before and after, "
    "relative to the largest output, in float64",
    "MACs left": "after that cut",
    "trace, spaces, cut s": "seconds to trace, to find the channel spaces, and to find and cut what is dead: median of 3; "
    "for images of 224 pixels where the network takes any size",
}


def write(results: Path, page: Path) -> None:
    """Write the page from a folder of results."""
    from coverage import read

    torchvision, timm = (read(results / f"{source}.jsonl") for source in (TORCHVISION, TIMM))
    parts = [_head(results), _torchvision(torchvision)]
    if timm:
        parts.append(_timm(timm))
    beside = results / "torch_pruning.json"
    if beside.exists():
        from torch_pruning_table import section

        parts.append(section(json.loads(beside.read_text(encoding="utf-8"))))
    page.write_text("\n".join(parts), encoding="utf-8")


def _head(results: Path) -> str:
    from datetime import UTC, datetime

    newest = max(path.stat().st_mtime for path in results.iterdir())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    date = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d")
    columns = "".join(f"| {column} | {meaning} |\n" for column, meaning in _COLUMNS.items())
    head = _HEAD.format(date=date, versions=f"Python {platform.python_version()}, {versions}")
    return f"{head}\n| column | what it says |\n| --- | --- |\n{columns}"


def _torchvision(found: Results) -> str:
    specs = [case.spec for case in torchvision_cases()]
    rows = [found[spec] for spec in sorted(specs) if spec in found]
    text = "ViTs are built for small images (56 or 64 pixels): their widths and depths are the usual ones, but they have fewer tokens."
    return (
        f"## torchvision: all {len(specs)} classification networks\n\n{_tally(rows, len(specs))} {text}\n\n{_table(rows)}\n{_reasons(rows)}"
    )


def _timm(found: Results) -> str:
    specs = [case.spec for case in timm_cases()]
    rows = [found[spec] for spec in specs if spec in found]
    families = {row["spec"]: timm_family(_name(row)) for row in rows}
    good = {families[row["spec"]] for row in rows if _works(row)}
    text = f"They belong to {len(set(families.values()))} families (modules of timm), and in {len(good)} of these at least one passes "
    text += "every check. They are built with timm's defaults."
    title = f"## timm: {len(specs)} convolutional networks and hybrids"
    return f"{title}\n\n{_tally(rows, len(specs))} {text}\n\n{_table(rows, families)}\n{_failures(rows)}\n{_reasons(rows)}"


def _tally(rows: list[dict[str, Any]], total: int) -> str:
    measured = f"{len(rows)} of {total} were measured" if len(rows) < total else f"All {total} were measured"
    return f"{measured}; {sum(map(_works, rows))} pass every check."


def _works(row: dict[str, Any]) -> bool:
    """Whether a network passes everything: file, both modes, another size unless it is refused, and the cut."""
    return (
        "failed" not in row
        and row["parses_back"]
        and row["imports"] == ["torch"]
        and row["identical_in_eval"]
        and row["other_size"] != "different"
        and not row["different_in_training"]
        and row["asked"] > 0
        and row["error"] <= EXACT
    )


def _table(rows: Iterable[dict[str, Any]], families: Mapping[str, str] | None = None) -> str:
    names = ["network", *(["family"] if families else []), "px", "file", "eval", "other size", "train"]
    names += ["cuttable", "convs", "cut", "MACs left", "trace s", "spaces s", "cut s"]
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] * len(names))} |"]
    for row in rows:
        cells = [_name(row), *([families[row["spec"]]] if families else [])]
        if "failed" in row:
            cells += [str(row.get("side", "")), "**not done**" if row["failed"] == "process" else f"**fails at {row['failed']}**"]
            cells += [""] * (len(names) - len(cells))
        else:
            cells += _cells(row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    other = {
        "identical": f"yes ({row['second_side']})",
        "different": "**no**",
        "refused by the file": "file",
        "refused by the model": "model",
    }
    times = row["seconds"]
    return [
        str(row["side"]),
        _yes(row["parses_back"] and row["imports"] == ["torch"]),
        _yes(row["identical_in_eval"]),
        other[row["other_size"]],
        _yes(not row["different_in_training"]),
        f"{row['cuttable_share']:.1%}",
        f"{len(row['stuck'])} of {row['convs']}",
        "nothing" if not row["asked"] else f"{row['error']:.0e}" if row["error"] <= EXACT else f"**{row['error']:.0e}**",
        f"{row['macs_left']:.0%}",
        *(f"{times[phase]:.2f}" for phase in ("trace", "spaces", "cut")),
    ]


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _name(row: dict[str, Any]) -> str:
    return str(row["spec"]).partition(":")[2]


def _failures(rows: list[dict[str, Any]]) -> str:
    lines = [f"* `{_name(row)}`: {_without_paths(row['why'])}" for row in rows if "failed" in row]
    lines += [f"* `{_name(row)}`: {_what_differs(row)}" for row in rows if "failed" not in row and not _works(row)]
    return "What fails, and why:\n\n" + "\n".join(lines) + "\n" if lines else "Nothing fails.\n"


def _what_differs(row: dict[str, Any]) -> str:
    words = [] if row["identical_in_eval"] else ["eval mode differs"]
    if row["different_in_training"]:
        words.append(f"a training step differs in {', '.join(row['different_in_training'])}")
    if row["other_size"] == "different":
        words.append(f"differs for images of {row['second_side']} pixels")
    if not row["asked"]:
        words.append("none of its channels can be cut")
    if row["error"] > EXACT:
        words.append(f"the cut network differs by {row['error']:.0e}")
    return "; ".join(words) or "the file does not parse back, or imports more than torch"


def _without_paths(why: str) -> str:
    """Remove the installation path from the source line that a message names."""
    return " ".join(word.rpartition("site-packages/")[2] for word in why.split())


def _reasons(rows: list[dict[str, Any]]) -> str:
    """The reasons why convs must keep outputs, with the number of convs and the networks for each."""
    convs: Counter[str] = Counter()
    networks: dict[str, list[str]] = {}
    for row in rows:
        for layer, _, _, why in row.get("stuck", ()):
            reason = f"`{_general(why.replace(layer, _SOME_LAYER))}`"
            convs[reason] += 1
            if _name(row) not in networks.setdefault(reason, []):
                networks[reason].append(_name(row))
    if not convs:
        return "No conv must keep an output.\n"
    lines = [f"* {reason}: {number} convs of {', '.join(networks[reason])}" for reason, number in convs.most_common()]
    return "Why some convs must keep outputs:\n\n" + "\n".join(lines) + "\n"


def _general(reason: str) -> str:
    """A reason without the names of layers, which are words with an underscore."""
    return " ".join(_SOME_LAYER if "_" in word and "." not in word and "(" not in word else word for word in reason.split())
