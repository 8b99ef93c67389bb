"""`prunetrain report`: one HTML page with plots of one or more runs."""

from pathlib import Path

import click

from prunetrain.commands.options import output_dir_option
from prunetrain.errors import ConfigError, OutputError, suggest
from prunetrain.extras import require
from prunetrain.files import write_bytes, write_text
from prunetrain.paths import RunPaths, find_run, nearest_runs
from prunetrain.report.history import History, labels, read_history

FORMATS = ("svg", "png")


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("-o", "--output", default="report.html", show_default=True, type=click.Path(path_type=Path), help="Page to write.")
@click.option(
    "--figures", metavar="DIR", type=click.Path(path_type=Path), help="Also write each figure as a file, to this folder.  [default: none]"
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="svg", show_default=True, help="Format of --figures.")
@output_dir_option
@click.option("--force", is_flag=True, help="Overwrite the output file even if it is not a report.")
def command(*, runs: tuple[str, ...], output: Path, figures: Path | None, form: str, output_dir: str, force: bool) -> None:
    """Write one HTML page about a RUN, or several side by side: accuracy, costs, the channels of every layer, the network files.

    RUN is a run's name or one of its two folders. The page needs no internet access and no other file.
    """
    _check_output(output, force)
    require("matplotlib", "a report")
    found = list(dict.fromkeys(_find(run, Path(output_dir)) for run in runs))
    histories = [read_history(run, label) for run, label in zip(found, labels(found), strict=True)]

    from prunetrain.report.page import render_page

    write_text(output, render_page(histories))
    click.echo(f"page     {output}")
    if figures is not None:
        for path in _write_figures(figures, form, histories):
            click.echo(f"figure   {path}")


def _find(what: str, output_dir: Path) -> RunPaths:
    run = find_run(what, output_dir)
    if run is None or not (run.network_files() or run.metrics.exists()):
        elsewhere = f"name a run in {output_dir} or one of its folders, or give --output-dir if the run is elsewhere"
        raise ConfigError(f"no run {what}: {suggest(nearest_runs(what, output_dir), elsewhere)}")
    return run


def _check_output(path: Path, force: bool) -> None:
    """Refuse a name that is not that of a page, and to overwrite anything but an older report."""
    from prunetrain.report.page import GENERATOR

    if path.suffix.lower() not in (".html", ".htm") and not path.is_dir():
        raise ConfigError(f"{path}: a report is a page and ends in .html; --figures writes each plot as an image")
    if force or not path.exists():
        return
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file with -o")
    with path.open("rb") as file:
        if GENERATOR.encode() not in file.read(1000):
            raise ConfigError(f"{path} already exists and is not a report: choose another name, or pass --force")


def _write_figures(folder: Path, form: str, runs: list[History]) -> list[Path]:
    from prunetrain.report.charts import CHARTS
    from prunetrain.report.figures import Style, draw_channels, draw_chart

    drawn = {f"channels-{run.label.replace('/', '_')}": draw_channels(run, Style(), form) for run in runs if len(run.networks) > 1}
    drawn |= {chart.name: draw_chart(chart, runs, Style(), form) for chart in CHARTS if chart.has_values_for(runs)}
    written = [folder / f"{name}.{form}" for name in drawn]
    for path, content in zip(written, drawn.values(), strict=True):
        write_bytes(path, content)
    return written
