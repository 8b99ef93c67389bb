"""`prunetrain inspect`: a network's layers, what changed between two, or a run's history."""

import json
from pathlib import Path
from typing import Any

import click

from prunetrain.errors import ConfigError
from prunetrain.foreign.opening import read_bytes
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import read_graph
from prunetrain.paths import CHECKPOINTS, NETWORKS, RunPaths, existing_run

METRICS = ("epoch", "train_loss", "lasso", "train_top1", "val_top1", "lr", "macs", "epoch_seconds", "images_per_second")
MOST_METRICS = 2**28  # bytes, of half a million epochs


@click.command("inspect")
@click.argument("what", metavar="NET|CKPT|RUN")
@click.argument("other", required=False, metavar="[OTHER]")
@click.option(
    "--output-dir", default=".", show_default=True, help="Folder that holds generated_nets/ and checkpoints/, to find a run by its name."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def command(what: str, other: str | None, output_dir: str, as_json: bool) -> None:
    """Show a network file or checkpoint layer by layer; with OTHER, what changed between the two; or a run's history.

    NET is a network file, CKPT a checkpoint, RUN a run's name or one of its two folders.
    """
    from prunetrain.report import describe, tables

    run = find_run(what, Path(output_dir))
    if other is not None:
        described = describe.change(_graph(what, Path(output_dir)), _graph(other, Path(output_dir)))
        printer = tables.print_change
    elif run is not None:
        described = describe.run(run, read_metrics(run))
        printer = tables.print_run
    else:
        path = network_of(Path(what))
        described = describe.network(read_graph(path), _dense_beside(path))
        printer = tables.print_network
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    from prunetrain.report.terminal import console

    printer(console(), described)


def find_run(what: str, output_dir: Path) -> RunPaths | None:
    """The run of a name or folder, if it is one."""
    path = Path(what)
    folder = path.resolve()
    if path.is_dir() and folder.parent.name in (NETWORKS, CHECKPOINTS):
        return RunPaths(folder.parent.parent, folder.name)
    return None if path.is_file() else existing_run(output_dir, what)


def network_of(path: Path) -> Path:
    """The network file of a path that names one, or names a checkpoint.

    Raises:
        ConfigError: if the path is neither.
        CheckpointError: if the checkpoint cannot be read.
        NetworkFileError: if its network file is missing or was changed.
    """
    if path.suffix == ".py":
        return path
    if path.suffix == ".pt":
        from prunetrain.training.checkpoints import load_checkpoint, read_network_of

        return read_network_of(path, load_checkpoint(path))[0]
    raise ConfigError(f"{path} is no network file (.py), checkpoint (.pt) or run: name one of these, or --output-dir where the run is")


def _graph(what: str, output_dir: Path) -> LayerGraph:
    run = find_run(what, output_dir)
    return read_graph(run.newest_network() if run else network_of(Path(what)))


def _dense_beside(path: Path) -> LayerGraph | None:
    """The run's dense network, if the file lies in a run."""
    dense = path.parent / "epoch_000.py"
    return read_graph(dense) if dense.exists() else None


def read_metrics(run: RunPaths) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none if there is no such file.

    Raises:
        ConfigError: for a line that is no table in JSON with such numbers.
    """
    if not run.metrics.exists():
        return []
    lines = []
    try:
        content = read_bytes(run.metrics, MOST_METRICS)
    except RefusedFileError as refused:
        raise ConfigError(f"{run.metrics}: not a file of metrics: {refused}") from None
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not _is_metrics(values):
            raise ConfigError(f"{run.metrics}:{number}: not a line of metrics")
        lines.append(values)
    return lines


def _is_metrics(values: object) -> bool:
    """Whether a line has all that the table shows, and nothing but plain values."""
    if not isinstance(values, dict) or not all(isinstance(value, float | str | None) or _is_count(value) for value in values.values()):
        return False
    return all(isinstance(values.get(name), float) or _is_count(values.get(name)) for name in METRICS)


def _is_count(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63
