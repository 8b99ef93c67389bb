"""`prunetrain train`: the main job."""

from pathlib import Path
from typing import Any

import click

from prunetrain.commands.options import chosen, config_options, resolve


@click.command("train")
@config_options
@click.option(
    "--resume",
    metavar="auto|PATH",
    help="Go on from a checkpoint, or from the newest whole one in a run's folder; auto: from this run's, or start it.",
)
@click.option("--list-models", is_flag=True, help="Name the networks of the zoo, and the ways to others, and exit.")
@click.pass_context
def command(ctx: click.Context, /, resume: str | None, list_models: bool, **params: Any) -> None:
    """Train a network; cut its dead channels every few epochs; write each smaller network as a Python file with a checkpoint beside it.

    Without any flag: ResNet-20 on the digits that ship with prunetrain, about a minute on two CPU cores.
    """
    if list_models:
        from prunetrain import models

        click.echo("\n".join(models.names()))
        width = max(map(len, models.SPELLINGS))
        for spelling, meaning in models.SPELLINGS.items():
            click.echo(f"{spelling:{width}}  {meaning}")
        return
    config = resolve(params)

    from prunetrain.paths import newest_run
    from prunetrain.report.progress import TrainingProgress
    from prunetrain.report.terminal import console, print_outcome
    from prunetrain.training.run import continue_run, resume_run, run_name, start_run
    from prunetrain.training.stopping import exit_code

    output = console()
    progress = TrainingProgress(output)
    run = newest_run(Path(config.output_dir), run_name(config)) if resume == "auto" else None
    try:
        if run is not None:
            outcome = continue_run(run, config, chosen(params), progress)
        elif resume is not None and resume != "auto":
            outcome = resume_run(Path(resume), chosen(params), progress)
        else:
            outcome = start_run(config, progress)
    finally:
        progress.close()
    print_outcome(output, outcome)
    if outcome.stopped_by is not None:
        ctx.exit(exit_code(outcome.stopped_by))
