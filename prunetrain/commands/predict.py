"""`prunetrain predict`: classify new images with a trained network."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunetrain.commands.options import FROM_CHECKPOINT, checkpoint_argument, config_option, flag_settings
from prunetrain.errors import ConfigError
from prunetrain.files import check_overwrite, write_bytes
from prunetrain.foreign.refusal import printable

if TYPE_CHECKING:
    from prunetrain.training.prediction import Prediction


@click.command("predict")
@checkpoint_argument
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, metavar="K", help="Number of most likely classes to show per image."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV file to write instead of printing a table.  [default: none]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@config_option("batch_size", help="Images at a time.", default=FROM_CHECKPOINT)
@config_option("amp", default=FROM_CHECKPOINT)
@config_option("channels_last", default=FROM_CHECKPOINT)
@config_option("device", default=FROM_CHECKPOINT)
@config_option("workers", help="Processes that decode images.", default=FROM_CHECKPOINT)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    checkpoint: Path,
    images: tuple[Path, ...],
    top: int,
    output: Path | None,
    as_json: bool,
    force: bool,
    **params: Any,
) -> None:
    """Predict the class of each IMAGE, with the probability that the network of CHECKPOINT gives it.

    CHECKPOINT is a .pt file, or the name of a run in this folder, which stands for its last.pt. IMAGE is a file, or a folder, which stands
    for all images in it and its subfolders.

    For a network trained on a folder, images are resized and cropped as in its validation. Other data sets have images of one size: there,
    the largest centre crop of that shape is resized to it, and turned grey if the data set is grey (mnist and digits are white on black).

    Images that cannot be read are named at the end and make the exit code 1; all others are classified.
    """
    if output is not None:
        _check_output(output, as_json, force)

    from prunetrain.training.data.folder_scan import files_in, passed_over
    from prunetrain.training.prediction import predict

    found = predict(checkpoint, images, top=top, **flag_settings(params))
    done = [prediction for prediction in found if not prediction.error]
    if output is not None:
        write_bytes(output, _csv(done).encode(errors="surrogateescape"))
        click.echo(f"{output}: {len(done):,} of {len(found):,} images")
    elif as_json:
        click.echo(json.dumps([_to_dict(prediction) for prediction in found], indent=2))
    elif done:
        click.echo(_table(done))
    for prediction in found:
        if prediction.error:
            click.echo(f"error: {printable(prediction.path)} cannot be read as an image ({printable(prediction.error)})", err=True)
    for folder in filter(Path.is_dir, images):
        if others := files_in(folder)[1]:
            click.echo(passed_over(folder, others), err=True)
    if len(done) < len(found):
        ctx.exit(1)


def _check_output(path: Path, as_json: bool, force: bool) -> None:
    if as_json:
        raise ConfigError("-o writes CSV, and --json prints: give only one of them")
    if path.suffix != ".csv":
        raise ConfigError(f"{path}: a file of predictions ends in .csv")
    check_overwrite(path, force=force)


def _columns(guesses: int) -> list[str]:
    """The column names `class` and `probability`, and `class_2`, `probability_2` and so on for further guesses."""
    return [f"{name}{'' if number == 0 else f'_{number + 1}'}" for number in range(guesses) for name in ("class", "probability")]


def _csv(predictions: Sequence["Prediction"]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *_columns(len(predictions[0].guesses) if predictions else 1)])
    for prediction in predictions:
        writer.writerow([prediction.path, *(part for guess in prediction.guesses for part in (guess.name, f"{guess.probability:.6g}"))])
    return text.getvalue()


def _to_dict(prediction: "Prediction") -> dict[str, Any]:
    if prediction.error:
        return {"image": prediction.path, "error": prediction.error}
    return {"image": prediction.path, "guesses": [{"class": one.name, "probability": one.probability} for one in prediction.guesses]}


def _table(predictions: Sequence["Prediction"]) -> str:
    from prunetrain.report.tables import plain_table

    rows = [["image", *_columns(len(predictions[0].guesses))]]
    for prediction in predictions:
        guesses = [part for one in prediction.guesses for part in (printable(one.name), f"{one.probability:.2%}")]
        rows.append([printable(prediction.path), *guesses])
    return plain_table(rows, numbers=range(2, len(rows[0]), 2))
