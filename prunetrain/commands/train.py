"""`prunetrain train`: the main job."""

from pathlib import Path
from typing import Any

import click

from prunetrain.commands.options import chosen, config_options, resolve


@click.command("train")
@config_options
@click.option("--resume", metavar="auto|PATH", help="Go on from a checkpoint; auto: from this run's last one, or start it.")
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
    from prunetrain.training.run import resume_run, run_name, start_run

    checkpoint = None
    if resume == "auto":
        newest = newest_run(Path(config.output_dir), run_name(config))
        checkpoint = newest.last_checkpoint() if newest else None
    elif resume is not None:
        checkpoint = Path(resume)
    output = console()
    progress = TrainingProgress(output)
    try:
        if checkpoint is None:
            outcome = start_run(config, progress)
        else:
            output.print(f"resuming from {checkpoint}", highlight=False, soft_wrap=True)
            outcome = resume_run(checkpoint, chosen(params), progress)
    finally:
        progress.close()
    print_outcome(output, outcome)
    if not outcome.finished:
        ctx.exit(130)
