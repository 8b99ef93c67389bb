"""What `study` and `sweep` say of their pieces: each that ends, and when they are stopped, how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from prunetrain.training.stopping import StopRequested

if TYPE_CHECKING:
    from prunetrain.studies.tasks import Done


class Pieces:
    """Prints a line a piece; `failed` has the names of those that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def report(self, done: "Done") -> None:
        """Print what became of a piece."""
        if done.failure is None:
            click.echo(f"{done.name}: top-1 {done.result['top1']:.2%}")
        else:
            self.failed.append(done.name)
            click.echo(f"error: {done.name}: {done.failure}", err=True)


@contextmanager
def saying_how_to_go_on() -> Iterator[None]:
    """Inside, a request to stop is told together with the way to go on."""
    try:
        yield
    except StopRequested:
        click.echo("stopped, and what is done stays: the same command goes on from here", err=True)
        raise
