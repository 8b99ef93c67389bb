"""`prunetrain sweep`: one run for every config file in a folder."""

from pathlib import Path

import click

from prunetrain.commands.options import explicit_settings, resolve_config
from prunetrain.commands.result_printer import ResultPrinter, print_how_to_continue
from prunetrain.config import TrainConfig, check_ignored_settings
from prunetrain.errors import ConfigError, PruneTrainError
from prunetrain.training.recipes import CONFIG_SUFFIXES


@click.command("sweep")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for the runs and the summary.  [default: DIR/runs]")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Runs at once, each in its own process."
)
@click.pass_context
def command(ctx: click.Context, /, *, folder: Path, output: Path | None, jobs: int) -> None:
    """Train once for every TOML and JSON config in DIR, in a run named after the file; write summary.csv, summary.json and summary.md.

    Finished runs are kept and interrupted ones resumed: run the same command again to continue. The exit code is 1 if a config fails; the
    others are still run.
    """
    from prunetrain.files import write_text
    from prunetrain.studies.records import markdown, write_csv, write_json
    from prunetrain.studies.sweep import COLUMNS, run_sweep
    from prunetrain.studies.tasks import TaskResult

    output = output or folder / "runs"
    printer = ResultPrinter()
    configs: dict[str, TrainConfig] = {}
    for path in _config_files(folder):
        try:
            if path.stem in configs:
                raise ConfigError("another config has the same name with another ending")
            config = resolve_config({"config": str(path)})
            check_ignored_settings(explicit_settings({"config": str(path)}), config)
            configs[path.stem] = config
        except PruneTrainError as error:
            printer.report(TaskResult(path.name, failure=str(error).removeprefix(f"{path}: ")))
    with print_how_to_continue():
        records = run_sweep(output, configs, jobs, printer.report)
    if records:
        text = markdown(records, COLUMNS)
        write_csv(output / "summary.csv", records)
        write_json(output / "summary.json", records)
        write_text(output / "summary.md", text)
        click.echo(text, nl=False)
        click.echo(f"written: {output / 'summary.csv'}, {output / 'summary.json'}, {output / 'summary.md'}")
    if printer.failed:
        ctx.exit(1)


def _config_files(folder: Path) -> list[Path]:
    """The configs in a folder, sorted by name.

    Raises:
        ConfigError: if there are none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: name one with .toml or .json configs in it")
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    found = sorted(path for path in visible if path.suffix.lower() in CONFIG_SUFFIXES and path.is_file())
    if not found:
        raise ConfigError(f"{folder} has no .toml or .json config in it")
    return found
