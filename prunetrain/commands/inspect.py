"""`prunetrain inspect`: a network's layers, what changed between two, or a run's history."""

import json
from pathlib import Path

import click

from prunetrain.commands.options import output_dir_option
from prunetrain.errors import ConfigError, suggest
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import read_graph
from prunetrain.paths import DENSE, find_run, nearest_runs
from prunetrain.report.history import read_history, read_metrics


@click.command("inspect")
@click.argument("what", metavar="NET|CKPT|RUN")
@click.argument("other", required=False, metavar="[OTHER]")
@output_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of tables: one row per layer; for a run, one row per epoch.")
def command(what: str, other: str | None, output_dir: str, as_json: bool, as_csv: bool) -> None:
    """Show a network file or checkpoint layer by layer, and what can be cut; or a run's history; with OTHER, what differs between the two.

    For two runs, also compare their results. NET is a network file, CKPT a checkpoint, RUN a run's name or one of its two folders.
    """
    from prunetrain.report import describe, tables

    if as_json and as_csv:
        raise ConfigError("--json and --csv are two formats of the same output: give only one of them")
    run = find_run(what, Path(output_dir))
    if other is not None:
        described = describe.change(_graph(what, Path(output_dir)), _graph(other, Path(output_dir)))
        beside = find_run(other, Path(output_dir))
        if run is not None and beside is not None:
            described["runs"] = [describe.run_results(read_history(one, one.name)) for one in (run, beside)]
        printer = tables.print_change
    elif run is not None:
        described = describe.run(run, read_metrics(run))
        printer = tables.print_run
    else:
        path = find_network_file(Path(what), Path(output_dir))
        described = describe.network(read_graph(path), _dense_network_of_run(path))
        printer = tables.print_network
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    if as_csv:
        from prunetrain.studies.records import csv_of

        click.echo(csv_of(describe.table_rows(described)), nl=False)
        return
    from prunetrain.report.terminal import console

    printer(console(), described)


def find_network_file(path: Path, output_dir: Path) -> Path:
    """The network file that a path names, directly or by its checkpoint. A message suggests runs of `output_dir`.

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
    advice = suggest(nearest_runs(str(path), output_dir), "name one of these, or give --output-dir if the run is elsewhere")
    raise ConfigError(f"{path} is not a network file (.py), checkpoint (.pt) or run: {advice}")


def _graph(what: str, output_dir: Path) -> LayerGraph:
    run = find_run(what, output_dir)
    return read_graph(run.newest_network() if run else find_network_file(Path(what), output_dir))


def _dense_network_of_run(path: Path) -> LayerGraph | None:
    """The run's dense network, if the file belongs to a run."""
    dense = path.with_name(DENSE)
    return read_graph(dense) if dense.exists() else None
