"""The section of docs/coverage.md with the measurements of `beside_torch_pruning.py`. In: its results. Out: Markdown."""

from typing import Any

_TEXT = """## Beside Torch-Pruning {version}

Both cut 30% of the channels of every group that may be cut, on copies of one network (1000 classes, one image of 3x224x224, for
inception_v3 of 3x299x299), and take turns; the class scores stay. Times are medians of {repeats}, with the lowest and the highest in
brackets; the ratio is prunetrain's median to Torch-Pruning's.

* **analyse**: Torch-Pruning's `DependencyGraph().build_dependency`, prunetrain's `trace_with_state` and `find_spaces`. The first runs the
  network once on the image; the second runs its code four times (five if it asks for sizes) on tensors without memory, and covers train
  mode too.
* **cut**: Torch-Pruning's `BasePruner.step` with `MagnitudeImportance`, prunetrain's `propose_cut`, `plan` and `apply`, with zeros in the
  30% of every space that are weakest by the norm of all weights of the channel. The first ranks channels by weights and changes the network
  in place; the second finds what is dead and which constants it leaves, and makes a new graph and new weights.
* **slice**: the part of this in the groups' `prune()`, or in `apply`.
* Each removes the same share of each space, but not always the same channels: the norms differ, and a group in Torch-Pruning need not be
  a space in prunetrain. So the table gives what each leaves, as counted by prunetrain.
"""


def section(found: dict[str, Any]) -> str:
    """The section."""
    from beside_torch_pruning import LIMIT, REPEATS

    lines = [_TEXT.format(version=found["versions"]["torch-pruning"], repeats=REPEATS)]
    lines += ["| network | phase | Torch-Pruning, s | prunetrain, s | ratio |", "| --- | --- | --- | --- | --- |"]
    for name, row in sorted(found["timed"].items()):
        theirs, ours = row["torch_pruning"], row["prunetrain"]
        for phase in ("analyse", "cut", "slice"):
            lines.append(
                f"| {name} | {phase} | {_spread(theirs[phase])} | {_spread(ours[phase])} | {ours[phase][0] / theirs[phase][0]:.2f} |"
            )
        left = [f"{tool['macs'] / row['dense']['macs']:.1%} / {tool['params'] / row['dense']['params']:.1%}" for tool in (theirs, ours)]
        lines.append(f"| {name} | MACs / parameters left | {left[0]} | {left[1]} | |")
    lines += ["", f"Networks that are hard to analyse: is the cut network ready within {LIMIT} s, and does it run in the same mode?", ""]
    lines += ["| network | mode | Torch-Pruning | prunetrain |", "| --- | --- | --- | --- |"]
    for name, row in found["hard"].items():
        mode = "train" if row["training"] else "eval"
        lines.append(f"| {name} | {mode} | {_said(row['torch_pruning'])} | {_said(row['prunetrain'])} |")
        if "torch_pruning_with_help" in row:
            help = "with `num_heads` given and the model's `hidden_dim` set by hand after the cut"
            lines.append(f"| {name} | {mode}, {help} | {_said(row['torch_pruning_with_help'])} | |")
    return "\n".join(lines) + "\n"


def _spread(seconds: list[float]) -> str:
    median, least, most = seconds
    return f"{median:.2f} ({least:.2f} to {most:.2f})"


def _said(outcome: dict[str, Any]) -> str:
    if "why" in outcome:
        return str(outcome["why"])
    took = outcome["analyse"] + outcome["cut"]
    return f"runs; {outcome['macs_left']:.1%} of the MACs left; {took:.1f} s"
