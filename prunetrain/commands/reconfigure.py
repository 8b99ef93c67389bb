"""`prunetrain reconfigure`: cut a checkpoint once, offline."""

import shlex
from pathlib import Path
from typing import Any

import click

from prunetrain.commands.options import FROM_CHECKPOINT, checkpoint_argument, config_option, flag_settings
from prunetrain.errors import ConfigError, abbreviate_names
from prunetrain.method_settings import GROUP_LASSO

_MORE_EPOCHS = 10  # that the command to continue a finished run adds


@click.command("reconfigure")
@checkpoint_argument
@config_option("threshold", default=FROM_CHECKPOINT)
@config_option("criterion", default=FROM_CHECKPOINT)
@config_option("residual", default=FROM_CHECKPOINT)
@click.option("--round-to", default="1", show_default=True, help="Keep channel counts multiples of this.")
@click.option("--name", help="Name of the new run.  [default: that of CHECKPOINT's run plus -cut]")
@config_option("output_dir", default="where the run of CHECKPOINT is")
@click.option("--timing", is_flag=True, help="Print how long each phase took.")
def command(checkpoint: Path, round_to: str, timing: bool, **params: Any) -> None:
    """Cut the dead channels of CHECKPOINT, and write the smaller network and its checkpoint as a new run, ready for --resume.

    CHECKPOINT is a .pt file, or the name of a run in this folder, which stands for its last.pt.
    """
    if not (round_to.isdecimal() and int(round_to) >= 1):
        raise ConfigError(f"round-to must be a whole number from 1 here, not {round_to!r}")

    from prunetrain.report.tables import format_count, share
    from prunetrain.training.offline_reconfiguration import reconfigure_checkpoint

    done = reconfigure_checkpoint(checkpoint, flag_settings(params), int(round_to))
    change = done.change
    click.echo(f"channels    {change.channels[0]:,} -> {change.channels[1]:,}")
    for label, (before, after) in (("MACs", change.macs), ("parameters", change.params)):
        click.echo(f"{label:10}  {format_count(before)} -> {format_count(after)} ({share(after, before):.1%})")
    if change.channels[0] == change.channels[1] and change.macs[0] == change.macs[1]:
        click.echo("nothing to cut: a larger --threshold counts more channels as dead, which may cost accuracy")
    if change.removed_layers:
        click.echo(f"removed     {', '.join(change.removed_layers)}")
    if change.rescued_spaces:
        click.echo(f"every channel of {abbreviate_names(list(change.rescued_spaces))} was dead; the strongest stays")
    click.echo(f"network     {done.network}")
    click.echo(f"checkpoint  {done.checkpoint}")
    named = shlex.quote(str(done.checkpoint))
    click.echo(f"measure     prunetrain evaluate {named}")
    finished = done.epoch >= done.config.epochs
    if not finished or done.config.method == GROUP_LASSO:  # rounds fix the epochs of other methods
        more = f" --epochs {done.epoch + _MORE_EPOCHS}" if finished else ""
        click.echo(f"train on    prunetrain train --resume {named}{more}")
    if timing:
        click.echo("seconds     " + ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in change.seconds.items()))
