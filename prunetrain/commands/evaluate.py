"""`prunetrain evaluate`: loss and accuracy of a checkpoint on the validation images."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunetrain.commands.options import FROM_CHECKPOINT, checkpoint_argument, config_option, flag_settings

if TYPE_CHECKING:
    from prunetrain.training.evaluation import CheckpointEvaluation


@click.command("evaluate")
@checkpoint_argument
@config_option("dataset", default=FROM_CHECKPOINT)
@config_option(
    "data_dir",
    help="Folder of the data sets; for `folder`, one with val/ in it or with one folder per class; for `npz`, the file.",
    default=FROM_CHECKPOINT,
)
@config_option(
    "val_split", help="Share of each class's training images to measure on; 0: the set's own validation images.", default=FROM_CHECKPOINT
)
@config_option("batch_size", help="Images at a time.", default=FROM_CHECKPOINT)
@config_option("amp", default=FROM_CHECKPOINT)
@config_option("channels_last", default=FROM_CHECKPOINT)
@config_option("device", default=FROM_CHECKPOINT)
@config_option("workers", default=FROM_CHECKPOINT)
@click.option("--per-class", is_flag=True, help="Also print each class's number of images and accuracy.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text, with each class's counts and the confusion matrix.")
def command(checkpoint: Path, per_class: bool, as_json: bool, **params: Any) -> None:
    """Measure CHECKPOINT on the validation images of the data set it was trained on, or of another one.

    CHECKPOINT is a .pt file, or the name of a run in this folder, which stands for its last.pt.

    Balanced accuracy is the mean of the classes' accuracies, so that a class with few images counts as much as one with many. Rows of the
    confusion matrix are true classes, columns predicted ones.
    """
    from prunetrain.training.evaluation import evaluate_checkpoint

    result = evaluate_checkpoint(checkpoint, flag_settings(params), lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(_to_dict(result)))
        return
    click.echo(_summary(result))
    if per_class:
        from prunetrain.report.tables import print_classes
        from prunetrain.report.terminal import console

        print_classes(console(), [asdict(one) for one in result.classes])


def _to_dict(result: "CheckpointEvaluation") -> dict[str, Any]:
    """All measurements, as JSON writes them."""
    return {
        "loss": result.loss,
        "top1": result.top1,
        "top5": result.top5,
        "balanced_accuracy": result.balanced_accuracy,
        "images": result.images,
        "classes": [asdict(one) for one in result.classes],
        "confusion": result.confusion.matrix(),
    }


def _summary(result: "CheckpointEvaluation") -> str:
    """One line, with top-5 where it is defined, and with the number of classes that have images unless all do."""
    parts = [f"loss {result.loss:.4f}", f"top-1 {result.top1:.2%}"]
    if result.top5 is not None:
        parts.append(f"top-5 {result.top5:.2%}")
    there = sum(one.images > 0 for one in result.classes)
    of = "" if there == len(result.classes) else f" of {there:,} of {len(result.classes):,} classes"
    return ", ".join([*parts, f"balanced accuracy {result.balanced_accuracy:.2%}{of}"])
