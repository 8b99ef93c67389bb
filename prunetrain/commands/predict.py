"""`prunetrain predict`: what a trained network takes new images for."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunetrain.commands.options import checkpoint_argument, config_option, given
from prunetrain.errors import ConfigError
from prunetrain.files import check_free, write_bytes
from prunetrain.foreign.refusal import printable

if TYPE_CHECKING:
    from prunetrain.training.prediction import Prediction

_OWN = "as in the checkpoint"


@click.command("predict")
@checkpoint_argument
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, metavar="K", help="Guesses an image.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV file to write instead of a table.  [default: none]")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@config_option("batch_size", help="Images at a time.", default=_OWN)
@config_option("amp", default=_OWN)
@config_option("channels_last", default=_OWN)
@config_option("device", default=_OWN)
@config_option("workers", help="Processes that decode images.", default=_OWN)
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
    """Say what each IMAGE shows: its class, and the probability that the network of CHECKPOINT gives to that.

    CHECKPOINT is a .pt file; or the name of a run here, for its last.pt. IMAGE is a file, or a folder for all the images in it and in its
    folders.

    Of a run on a folder, images are resized and cut as it was validated. Of runs on other data, whose images have one size, the middle of
    an image is cut in that shape, as large as it can be, and resized; and made grey where theirs are: mnist and digits are white on black.

    One that cannot be read is named at the end, the others are done; the exit code is 1 then.
    """
    if output is not None:
        _check_output(output, as_json, force)

    from prunetrain.training.prediction import predict

    found = predict(checkpoint, images, top=top, **given(params))
    done = [prediction for prediction in found if not prediction.error]
    if output is not None:
        write_bytes(output, _csv(done).encode(errors="surrogateescape"))
        click.echo(f"{output}: {len(done):,} of {len(found):,} images")
    elif as_json:
        click.echo(json.dumps([_described(prediction) for prediction in found], indent=2))
    elif done:
        click.echo(_table(done))
    for prediction in found:
        if prediction.error:
            click.echo(f"error: {printable(prediction.path)} cannot be read as an image ({printable(prediction.error)})", err=True)
    if len(done) < len(found):
        ctx.exit(1)


def _check_output(path: Path, as_json: bool, force: bool) -> None:
    if as_json:
        raise ConfigError("-o writes CSV, and --json prints: give one of them")
    if path.suffix != ".csv":
        raise ConfigError(f"{path}: a file of predictions ends in .csv")
    check_free(path, force=force)


def _columns(guesses: int) -> list[str]:
    """`class` and `probability`, and for further guesses `class_2`, `probability_2` and so on."""
    return [f"{name}{'' if number == 0 else f'_{number + 1}'}" for number in range(guesses) for name in ("class", "probability")]


def _csv(predictions: Sequence["Prediction"]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *_columns(len(predictions[0].guesses) if predictions else 1)])
    for prediction in predictions:
        writer.writerow([prediction.path, *(part for guess in prediction.guesses for part in (guess.name, f"{guess.probability:.6g}"))])
    return text.getvalue()


def _described(prediction: "Prediction") -> dict[str, Any]:
    if prediction.error:
        return {"image": prediction.path, "error": prediction.error}
    return {"image": prediction.path, "guesses": [{"class": one.name, "probability": one.probability} for one in prediction.guesses]}


def _table(predictions: Sequence["Prediction"]) -> str:
    """Aligned columns, however wide: a terminal or a file gets every name whole."""
    rows = [["image", *_columns(len(predictions[0].guesses))]]
    for prediction in predictions:
        guesses = [part for one in prediction.guesses for part in (printable(one.name), f"{one.probability:.2%}")]
        rows.append([printable(prediction.path), *guesses])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Words flush left, and numbers, which are every second column from the third on, flush right."""
    return [
        text.rjust(width) if number and number % 2 == 0 else text.ljust(width)
        for number, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
