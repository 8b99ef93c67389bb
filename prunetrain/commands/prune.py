"""`prunetrain prune`: other pruning methods, for comparison, on a trained network."""

from pathlib import Path
from typing import Any

import click

from prunetrain.commands.options import FROM_CHECKPOINT, checkpoint_argument, config_option, flag_settings
from prunetrain.errors import ConfigError
from prunetrain.method_settings import FINETUNE, GROUP_LASSO, LR_RESTART, METHOD_SETTINGS
from prunetrain.training.stopping import exit_code

_LASSO = ("penalty_ratio", "target_macs", "target_by", "importance", "prune_interval", "round_to")
_RETRAIN = f"{FINETUNE}; for {GROUP_LASSO}, {LR_RESTART}"
_TRAINING = ("batch_size", "weight_decay", *_LASSO, "data_dir", "workers", "device", "seed", "checkpoint_minutes")


def _options(function: Any) -> Any:
    for name in reversed(METHOD_SETTINGS):
        function = config_option(name, default=_RETRAIN if name == "retrain" else None)(function)
    for name in reversed(_TRAINING):
        function = config_option(name, default=FROM_CHECKPOINT)(function)
    return function


class _ResumeAutoCommand(click.Command):
    """Reads train's spelling `--resume auto` as `--resume`, which is a flag without a value here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        read: list[str] = []
        for word in args:
            if word == "--resume=auto":
                read.append("--resume")
            elif word != "auto" or read[-1:] != ["--resume"]:
                read.append(word)
        return super().parse_args(ctx, read)


@click.command("prune", cls=_ResumeAutoCommand)
@checkpoint_argument
@config_option("method", default="none; required")
@config_option("rate", default="none; required, except for group-lasso")
@click.option("--global", "global_scope", is_flag=True, help="Rank the weights of all layers together; short for --scope global.")
@click.option("--threshold-std", type=float, metavar="Q", help="With magnitude: remove weights below Q standard deviations of their layer.")
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    metavar="N",
    help="Epochs of retraining after each pruning.  [default: 10; when rewinding, the rest of the schedule]",
)
@click.option(
    "--during",
    type=click.IntRange(min=0),
    metavar="N",
    help="Epochs in which the method acts before it prunes.  [default: 0; admm: as --epochs]",
)
@config_option(
    "lr",
    default="for lr-restart and when rewinding, the checkpoint's; for finetune a tenth of it, or the same if that was fine-tuned already",
)
@_options
@click.option("--name", help="Name of the new run.  [default: that of CHECKPOINT's run plus the method]")
@config_option("output_dir", default="where the run of CHECKPOINT is")
@click.option("--resume", is_flag=True, help="Resume the newest run of this name, or start it.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    checkpoint: Path,
    global_scope: bool,
    threshold_std: float | None,
    epochs: int | None,
    during: int | None,
    resume: bool,
    **params: Any,
) -> None:
    """Prune CHECKPOINT with a method and retrain it, as a new run.

    CHECKPOINT is a .pt file, or the name of a run in this folder, which stands for its last.pt.

    Methods for weights: magnitude, magnitude-std, random-weights, 2:4, admm. For units and filters: unit, filter-l1, filter-l2, fpgm,
    random. Also group-lasso, which continues training and brings the network down to --target-macs meanwhile.
    """
    settings = flag_settings(params)
    if global_scope:
        settings["scope"] = "global"
    if threshold_std is not None:
        if settings.get("method") not in ("magnitude", "magnitude-std") or "rate" in settings:
            raise ConfigError("--threshold-std is for --method magnitude, in place of --rate: leave out --rate and other methods")
        settings |= {"method": "magnitude-std", "rate": threshold_std}
    if "method" not in settings:
        raise ConfigError("no method to prune with: give one, such as --method magnitude")

    from prunetrain.library.prune import prune
    from prunetrain.report.progress import TrainingProgress
    from prunetrain.report.terminal import console, print_outcome

    output = console()
    progress = TrainingProgress(output)
    try:
        outcome = prune(checkpoint, epochs=epochs, during=during, resume=resume, observer=progress, **settings)
    finally:
        progress.close()
    print_outcome(output, outcome)
    if outcome.stopped_by is not None:
        ctx.exit(exit_code(outcome.stopped_by))
