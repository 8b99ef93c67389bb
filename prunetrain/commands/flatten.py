"""`prunetrain flatten`: a network as one flat Python file, with its weights beside it."""

from pathlib import Path

import click

from prunetrain.commands.options import config_option
from prunetrain.config import parse_arguments
from prunetrain.errors import ConfigError
from prunetrain.files import check_overwrite, write_atomically, write_text


@click.command("flatten")
@click.argument("model")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Network file to write; its weights are written beside it as .pt.",
)
@click.option("--input-shape", default="3,224,224", show_default=True, metavar="C,H,W", help="Shape of one image.")
@click.option("--num-classes", default=1000, show_default=True, type=click.IntRange(min=1), help="Number of classes.")
@config_option("model_args")
@config_option("weights")
@click.option("--seed", default=0, show_default=True, help="Seed of the initialisation.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def command(
    *,
    model: str,
    output: Path,
    input_shape: str,
    num_classes: int,
    model_args: tuple[str, ...] | None,
    weights: str | None,
    seed: int,
    force: bool,
) -> None:
    """Write MODEL as one flat Python file that imports nothing but torch.

    MODEL is a network of the zoo, torchvision:NAME, timm:NAME, or FILE.py:NAME for a class or function in your own file, which is executed.
    """
    shape = parse_shape(input_shape)
    if output.suffix != ".py":
        raise ConfigError(f"{output}: a network file ends in .py")
    saved = output.with_suffix(".pt")
    check_overwrite(output, saved, force=force)

    import torch

    from prunetrain.graph.costs import costs
    from prunetrain.graph.render import render
    from prunetrain.models import PRETRAINED, build_with_weights, pretrained
    from prunetrain.models.checked_tracing import trace_and_check, with_own_storage
    from prunetrain.models.freezing import find_partly_frozen
    from prunetrain.report.tables import format_count

    arguments = parse_arguments(model_args or ())
    known = pretrained(model, shape) if weights == PRETRAINED else weights or ""
    network = build_with_weights(model, known, input_shape=shape, num_classes=num_classes, model_args=arguments, seed=seed, say=click.echo)
    traced = with_own_storage(trace_and_check(network, torch.zeros(2, *shape)))
    if (mixed := find_partly_frozen(network, traced)) is not None:
        click.echo(f"{mixed} is frozen, but not all of its layer: the file will train it; freeze whole layers, or make it a buffer")
    write_atomically(saved, lambda file: torch.save(traced.state, file))
    write_text(output, render(traced.graph))
    cost = costs(traced.graph)
    image = "x".join(map(str, shape))
    click.echo(f"{output}: {format_count(cost.macs)} MACs per image of {image}, {format_count(cost.params)} parameters; weights in {saved}")


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read `3,32,32` as (3, 32, 32).

    Raises:
        ConfigError: if it is not three positive whole numbers.
    """
    sizes = text.replace("x", ",").split(",")
    if len(sizes) != 3 or not all(size.strip().isdecimal() and 0 < int(size) < 100_000 for size in sizes):
        raise ConfigError(f"--input-shape must be channels,height,width such as 3,224,224, not {text!r}")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])
