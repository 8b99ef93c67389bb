"""`prunetrain train`: the main job."""

from pathlib import Path
from signal import Signals
from typing import Any

import click

from prunetrain.commands import ARGUMENTS
from prunetrain.commands.options import config_options, explicit_settings, resolve_config, settings_with_recipe
from prunetrain.config import TrainConfig, check_ignored_settings
from prunetrain.errors import ConfigError
from prunetrain.extras import require
from prunetrain.paths import LAST, RunPaths, find_run, newest_run, run_of_checkpoint
from prunetrain.training.stopping import exit_code


@click.command("train")
@config_options()
@click.option(
    "--resume",
    metavar="auto|RUN|CKPT",
    help="Resume from the newest intact checkpoint of a run, given by name or folder; or from a certain checkpoint, and remove what "
    "the run wrote after it; auto: resume this run, or start it.",
)
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="Train on N GPUs of this machine, one worker each.  [default: one]")
@click.option("--nproc", type=click.IntRange(min=1), metavar="N", help="Train with N workers on this machine.  [default: one process]")
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --gpus or --nproc: how often to restart all workers from the last checkpoint after one died.  [default: 3]",
)
@click.option(
    "--tensorboard", is_flag=True, help="Also write an event file for TensorBoard, into tensorboard/ in the run's checkpoints folder."
)
@click.option("--list-models", is_flag=True, help="List the networks of the zoo and how to name others, and exit.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    resume: str | None,
    gpus: int | None,
    nproc: int | None,
    max_restarts: int | None,
    tensorboard: bool,
    list_models: bool,
    **params: Any,
) -> None:
    """Train a network, cut its dead channels every few epochs, and write each smaller network as a Python file with a checkpoint.

    Without flags: ResNet-20 on the digits that ship with prunetrain, about a minute on two CPU cores.
    """
    if list_models:
        from prunetrain import models

        known = models.described()
        width = max(map(len, known))
        for spelling, meaning in known.items():
            click.echo(f"{spelling:{width}}  {meaning}")
        return
    if tensorboard:
        require("tensorboard", "--tensorboard")
    from prunetrain.training.joining import EXIT_PEER_LOST, EXIT_USER_ERROR, PeerFailed, PeerLost, is_launched_worker, report_failure_once

    if (gpus is not None or nproc is not None or max_restarts is not None) and not is_launched_worker():
        ctx.exit(_launch(ctx, gpus, nproc, max_restarts, resolve_config(params | _device(gpus))))
    try:
        with report_failure_once():
            stopped_by = _train(resume, params | _device(gpus), gpus or nproc, tensorboard)
    except PeerFailed:
        ctx.exit(EXIT_USER_ERROR)
    except PeerLost:
        ctx.exit(EXIT_PEER_LOST)
    if stopped_by is not None:
        ctx.exit(exit_code(stopped_by))


def _device(gpus: int | None) -> dict[str, str]:
    """The device setting that `--gpus` implies."""
    return {} if gpus is None else {"device": "cuda"}


def _launch(ctx: click.Context, gpus: int | None, nproc: int | None, max_restarts: int | None, config: TrainConfig) -> int:
    """Start the workers, wait for them and return their exit code."""
    if gpus is not None and nproc is not None:
        raise ConfigError("--gpus and --nproc both set the number of workers: give only one of them")
    workers = gpus or nproc
    if workers is None:
        raise ConfigError("--max-restarts needs several workers: give --gpus or --nproc as well")

    from prunetrain.training.environment import check_devices
    from prunetrain.training.launching import launch

    check_devices(config, workers)
    return launch(ctx.meta[ARGUMENTS], workers, 3 if max_restarts is None else max_restarts)


def _train(resume: str | None, params: dict[str, Any], workers: int | None, tensorboard: bool) -> Signals | None:
    """Start or resume a run, alone or as one of several workers; return the signal that stopped it early, if any."""
    config = resolve_config(params)

    from prunetrain.report.progress import TrainingProgress
    from prunetrain.report.tensorboard import TensorBoard
    from prunetrain.report.terminal import console, print_outcome
    from prunetrain.training.environment import choose_device
    from prunetrain.training.events import Observer, ObserverGroup
    from prunetrain.training.joining import join
    from prunetrain.training.run import check_same_place, continue_run, resume_run, start_run

    with join(choose_device(config)) as ranks:
        if workers not in (None, ranks.world_size):
            raise ConfigError(f"the launcher started {ranks.world_size} workers, not {workers}: leave out --gpus and --nproc")
        run = ranks.on_rank_zero(lambda: _find_run_to_resume(resume, config))
        output = console()
        shown: list[TrainingProgress | TensorBoard] = [TrainingProgress(output)]
        if tensorboard:
            shown.append(TensorBoard())
        observer = ObserverGroup(*shown) if ranks.rank == 0 else Observer()
        try:
            if run is not None:
                outcome = continue_run(run, config, settings_with_recipe(params), observer)
            elif resume is not None and resume != "auto":
                named = find_run(resume, Path(config.output_dir)) or find_run(resume, Path())
                place = named.checkpoints if named else Path(resume)
                check_same_place(place, name=params.get("name"), output_dir=params.get("output_dir"))
                outcome = resume_run(place, settings_with_recipe(params), observer)
            else:
                check_ignored_settings(explicit_settings(params), config)
                outcome = start_run(config, observer)
        finally:
            for one in shown:
                one.close()
        if ranks.rank == 0:
            print_outcome(output, outcome)
    return outcome.stopped_by


def _find_run_to_resume(resume: str | None, config: TrainConfig) -> RunPaths | None:
    """The run to resume from its newest checkpoint: with `--resume auto`, or after a restart of the workers."""
    from prunetrain.training.joining import noted_run
    from prunetrain.training.run import run_name

    if folder := noted_run():
        return run_of_checkpoint(folder / LAST)
    return newest_run(Path(config.output_dir), run_name(config)) if resume == "auto" else None
