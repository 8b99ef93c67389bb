"""Progress of a training run. In: the events of `training.events`. Out: one plain line per epoch, and on a terminal a live view below.

The live view is a bar with the time left, and the profile of the network: one column per layer, as high as the share of channels kept.
"""

import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from prunetrain.channels.selection import KEEP_ALL, Granularity
from prunetrain.errors import abbreviate_names
from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.report.tables import format_count, format_duration, profile, share
from prunetrain.training.events import BatchChange, Metrics, Observer, Reconfiguration, Start, Uncut

_NOTHING_CUT = {
    Uncut.YET: "nothing to cut yet",
    Uncut.TARGET: "target reached, nothing to cut",
    Uncut.FINAL: "nothing to cut",
}


class TrainingProgress(Observer):
    """Writes the progress of a run to the terminal.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._dense_macs = 0
        self._total_epochs = 0
        self._steps = 1
        self._started = 0.0
        self._first_epoch = 0
        self._bar: _View | None = None
        self._dense: dict[str, int] = {}

    def started(self, event: Start) -> None:
        """Print the data set, and the column heads if epochs are left to train; on a terminal, show the bar."""
        self._total_epochs, self._steps, self._first_epoch = event.total_epochs, max(1, event.steps_per_epoch), event.epoch
        self._dense_macs = event.dense_macs
        for line in event.data:
            self.message(line)
        self._started = time.monotonic()
        if event.epoch < event.total_epochs:
            self.message(f"{'epoch':>9}  {'loss':>7}  {'train':>6}  {'val top-1':>9}  {'MACs left':>9}  {'images/s':>8}  {'time left':>9}")
        if self._console.is_terminal:
            self._dense = costs(read_graph(event.run.network(0))).layer_channels
            self._bar = _View(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=event.total_epochs, completed=event.epoch, epoch=event.epoch + 1)
            self._show_profile(event.run.newest_network())
            self._bar.start()

    def stepped(self, epoch: int, step: int) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.update(self._task, completed=epoch - 1 + step / self._steps, epoch=epoch)

    def epoch_ended(self, metrics: Metrics) -> None:
        """Print the epoch's line."""
        done = metrics["epoch"]
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, done - self._first_epoch) * (self._total_epochs - done)
        self._console.print(
            f"{done:>4}/{self._total_epochs:<4}  {metrics['train_loss']:7.4f}  {metrics['train_top1']:6.1%}  {metrics['val_top1']:9.2%}  "
            f"{share(metrics['macs'], self._dense_macs):9.1%}  {metrics['images_per_second']:8,.0f}  {format_duration(left):>9}",
            highlight=False,
        )

    def reconfigured(self, event: Reconfiguration) -> None:
        """Say what was cut."""
        self._show_profile(event.network)
        change = event.change
        before, after = change.channels
        text = f"  {_NOTHING_CUT[event.uncut]}"
        drop = (event.val_top1[1] - event.val_top1[0]) * 100
        if event.nonzero is not None:
            text = f"  pruned: {' -> '.join(map(format_count, event.nonzero))} nonzero parameters, top-1 {drop:+.2f} points"
        if after < before:
            macs = " -> ".join(map(format_count, change.macs))
            text = f"  cut {before - after:,} of {before:,} channels: {macs} MACs, top-1 {drop:+.2f} points"
        text += _rounding_text(change.granularity)
        if change.removed_layers:
            text += f", {len(change.removed_layers)} layers removed"
        self._console.print(f"{text} -> {event.network}", style="cyan", highlight=False, soft_wrap=True)
        if change.rescued_spaces:
            names = abbreviate_names(list(change.rescued_spaces))
            text = f"  every channel of {names} was dead; the strongest stays"
            self._console.print(text, style="yellow", highlight=False, soft_wrap=True)
        if event.batch is not None:
            self._steps = max(1, event.batch.steps_per_epoch)
            self._console.print(f"  {batch_line(event.batch)}", style="cyan", highlight=False, soft_wrap=True)

    def _show_profile(self, network: Path) -> None:
        if self._bar:
            now = costs(read_graph(network)).layer_channels
            self._bar.profile = profile([share(now.get(name, 0), dense) for name, dense in self._dense.items()])
            self._bar.refresh()

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()


class _View(Progress):
    """The bar, with the profile of the network below it."""

    profile = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(f"channels left in {len(self.profile)} layers  {self.profile}", style="cyan", no_wrap=True, overflow="ellipsis")


def batch_line(change: BatchChange) -> str:
    """The change of the batch in one line: "batch 128 -> 192, learning rate x1.5 (estimated 410 M of 420 M bytes per step)"."""
    old, new = change.batch_size
    how = "measured" if change.measured else "estimated"
    memory = f"({how} {format_count(change.memory[1])} of {format_count(change.budget)} bytes per step)"
    if new > old:
        return f"batch {old} -> {new}, learning rate x{new / old:.3g} {memory}"
    reason = ": --max-batch-size, or the number of images, allows no further step up" if change.largest else ""
    return f"batch stays at {old}{reason} {memory}"


def _rounding_text(granularity: Granularity) -> str:
    """What channel counts were rounded to, if at all."""
    chosen = {granularity} if isinstance(granularity, int) else set(granularity.values())
    if chosen == {KEEP_ALL}:
        return ", no cut is faster on this machine"
    rounded = sorted(chosen - {1, KEEP_ALL})
    if not rounded:
        return ""
    return f", counts in multiples of {rounded[0]}" if len(chosen) == 1 else f", counts in multiples of up to {rounded[-1]}"
