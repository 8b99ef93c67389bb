"""`prunetrain evaluate`: loss and accuracy of a checkpoint on the validation images."""

import json
from pathlib import Path
from typing import Any

import click

from prunetrain.commands.options import checkpoint_argument, config_option, given

_OWN = "as in the checkpoint"


@click.command("evaluate")
@checkpoint_argument
@config_option("dataset", default=_OWN)
@config_option("data_dir", default=_OWN)
@config_option("batch_size", help="Images at a time.", default=_OWN)
@config_option("amp", default=_OWN)
@config_option("channels_last", default=_OWN)
@config_option("device", default=_OWN)
@config_option("workers", default=_OWN)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def command(checkpoint: Path, as_json: bool, **params: Any) -> None:
    """Measure CHECKPOINT on the validation images of the data set it was trained on, or of another one.

    CHECKPOINT is a .pt file; or the name of a run here, for its last.pt.
    """
    from prunetrain.training.evaluation import evaluate_checkpoint

    result = evaluate_checkpoint(checkpoint, given(params))
    if as_json:
        click.echo(json.dumps({"loss": result.loss, "top1": result.top1, "top5": result.top5}))
    else:
        click.echo(f"loss {result.loss:.4f}, top-1 {result.top1:.2%}, top-5 {result.top5:.2%}")
