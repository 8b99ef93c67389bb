"""What `study` and `sweep` print: the result of every part, and how to continue when they are stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from prunetrain.training.stopping import StopRequested

if TYPE_CHECKING:
    from prunetrain.studies.tasks import TaskResult


class ResultPrinter:
    """Prints one line per part; `failed` lists the names of those that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def report(self, done: "TaskResult") -> None:
        """Print the result of a part, or why it failed."""
        if done.failure is None:
            click.echo(f"{done.name}: top-1 {done.result['top1']:.2%}")
        else:
            self.failed.append(done.name)
            click.echo(f"error: {done.name}: {done.failure}", err=True)


@contextmanager
def print_how_to_continue() -> Iterator[None]:
    """Inside, a request to stop also prints how to continue."""
    try:
        yield
    except StopRequested:
        click.echo("stopped; what is done is kept: run the same command again to continue", err=True)
        raise
