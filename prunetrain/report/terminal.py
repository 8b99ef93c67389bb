"""The console, and the summary at the end of a run."""

import errno
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console

from prunetrain.graph.costs import TRAIN_TO_FORWARD, costs
from prunetrain.graph.load import read_graph
from prunetrain.report.tables import format_count, share

if TYPE_CHECKING:
    from prunetrain.training.run import Outcome

_PLAIN_WIDTH = 160  # columns where no terminal sets them, so that tables in files and pipes are not cut


def console() -> Console:
    """Standard output, in colour on a terminal only; NO_COLOR and the terminal's width are respected."""
    if sys.stdout.isatty():
        return Console(markup=False, file=cast(IO[str], _Terminal(sys.stdout)))
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=_PLAIN_WIDTH)


class _Terminal:
    """A terminal that may close during a run; what is printed from then on is discarded."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _ignore_closed_terminal():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _ignore_closed_terminal():
            self._stream.flush()


@contextmanager
def _ignore_closed_terminal() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def print_outcome(output: Console, outcome: "Outcome") -> None:
    """Print what a run achieved and where its files are; for a stopped run, how to resume it."""
    run, history = outcome.run, outcome.history

    def say(text: str) -> None:
        output.print(text, highlight=False, soft_wrap=True)

    if not outcome.finished:
        say(f"stopped; resume with: prunetrain train --resume {shlex.quote(str(run.last))}")
        return
    if not history:
        return
    network = outcome.network
    dense, final = costs(read_graph(run.network(0))), costs(read_graph(network))
    trained = history[-1]
    removed = 1 - share(trained["train_macs_total"], TRAIN_TO_FORWARD * dense.macs * trained["train_images_total"])
    say(f"validation top-1 {trained['val_top1'] if outcome.val_top1 is None else outcome.val_top1:.2%}")
    say(f"MACs             {format_count(final.macs)} of {format_count(dense.macs)}: {1 - share(final.macs, dense.macs):.1%} removed")
    if outcome.missed is not None:
        say(f"target missed    {outcome.missed}")
    params = f"{format_count(final.params)} of {format_count(dense.params)}"
    say(f"parameters       {params}: {1 - share(final.params, dense.params):.1%} removed")
    if outcome.nonzero_params is not None and outcome.nonzero_params < 0.99 * final.params:
        say(f"not zero         {format_count(outcome.nonzero_params)}: {1 - share(outcome.nonzero_params, dense.params):.1%} removed")
    say(f"training MACs    {removed:.1%} removed")
    say(f"network          {network}")
    say(f"checkpoint       {run.last}")
    if outcome.best_epoch is not None:
        (top1,) = (line["val_top1"] for line in history if line["epoch"] == outcome.best_epoch)
        say(f"best             {top1:.2%} after epoch {outcome.best_epoch}: {run.best}")
