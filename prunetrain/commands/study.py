"""`prunetrain study`: a grid of methods, rates and seeds on one network and data set."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from prunetrain.commands.options import config_options, flag_settings, resolve_config
from prunetrain.commands.result_printer import ResultPrinter, print_how_to_continue
from prunetrain.errors import ConfigError
from prunetrain.extras import require
from prunetrain.method_settings import FINETUNE, METHOD_SETTINGS
from prunetrain.studies import defaults

_Value = TypeVar("_Value", int, float)


def _comma_separated(values: Iterable[str | float]) -> str:
    """Values separated by commas, as a user would write them."""
    return ",".join(value if isinstance(value, str) else f"{value:g}" for value in values)


@click.command("study")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--methods", default=_comma_separated(defaults.METHODS), show_default=True, metavar="NAME,...", help="Methods to compare.")
@click.option(
    "--rates",
    default=_comma_separated(defaults.RATES),
    show_default=True,
    metavar="R,...",
    help="Shares to remove: of each layer's weights or filters; for group-lasso, of the MACs.",
)
@click.option(
    "--seeds", default=_comma_separated(defaults.SEEDS), show_default=True, metavar="N,...", help="Seeds; one network is trained for each."
)
@click.option(
    "--retrain-epochs",
    type=click.IntRange(min=0),
    metavar="N",
    help="Epochs of retraining after each pruning; group-lasso prunes in these.  "
    "[default: 0; for lr-restart 10; when rewinding, the rest of the schedule]",
)
@click.option(
    "--retrain-lr", type=float, help="Learning rate of retraining.  [default: a tenth of --lr; for lr-restart and when rewinding, --lr]"
)
@click.option(
    "--during",
    type=click.IntRange(min=0),
    metavar="N",
    help="Epochs in which admm and soft pruning act before they prune for good.  [default: 0]",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Cells to run at once, each in its own process."
)
@click.option("--keep-runs", is_flag=True, help="Keep the cells' checkpoints and network files.")
@click.option(
    "--plot", "plot_format", type=click.Choice(["svg", "png", "none"]), default="svg", show_default=True, help="Format of the plots."
)
@config_options("method", "rate", "prune_at", "name", "output_dir", "seed", *defaults.EXCLUDED_SETTINGS)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    folder: Path,
    methods: str,
    rates: str,
    seeds: str,
    retrain_epochs: int | None,
    retrain_lr: float | None,
    during: int | None,
    jobs: int,
    keep_runs: bool,
    plot_format: str,
    **params: Any,
) -> None:
    """Train a network for each seed; prune it with every method at every rate; retrain; write CSV, JSON, a table and plots to FOLDER.

    A cell is one method at one rate on the network of one seed. The training flags apply to the dense networks, which are trained without
    pruning. Finished cells are kept: run the same command again to continue, or to add methods, rates or seeds. The exit code is 1 if a
    cell fails or a method cannot prune this network; the others are still run.
    """
    from prunetrain.studies.grid import Study, run_study
    from prunetrain.studies.results import write_study

    flags = flag_settings(params)
    pruning = {name: flags[name] for name in METHOD_SETTINGS if name in flags}
    if retrain_lr is not None:
        pruning["lr"] = retrain_lr
    training = resolve_config(params | dict.fromkeys(METHOD_SETTINGS))
    study = Study(
        folder=folder,
        training=training,
        methods=[name.strip() for name in methods.split(",")],
        rates=_numbers(rates, "rates", float),
        seeds=_numbers(seeds, "seeds", int),
        pruning=pruning,
        epochs=0 if retrain_epochs is None and pruning.get("retrain", FINETUNE) == FINETUNE else retrain_epochs,
        during=during,
        keep_runs=keep_runs,
    )
    if plot_format != "none":
        require("matplotlib", "a plot")
    printer = ResultPrinter()
    with print_how_to_continue():
        records = run_study(study, jobs, printer.report)
    if records:
        title = f"{training.model} on {training.dataset}"
        files = write_study(folder, records, title, None if plot_format == "none" else plot_format)
        click.echo(files[2].read_text(), nl=False)
        click.echo(f"written: {', '.join(map(str, files))}")
    if printer.failed:
        ctx.exit(1)


def _numbers(text: str, flag: str, kind: type[_Value]) -> list[_Value]:
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{flag} must be numbers separated by commas, not {text!r}") from None
