"""A training run in TensorBoard (the extra `tensorboard`). In: the events of `training.events`. Out: an event file in the run's folder.

Every number in a line of metrics becomes a scalar by epoch. The channels of the layers become scalars as well, and one histogram, which
shows the network's profile shrink: its buckets are the layers in forward order, and a bucket's height is the layer's channels.
"""

from typing import TYPE_CHECKING

from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.training.events import Metrics, Observer, Reconfiguration, Start

if TYPE_CHECKING:
    from pathlib import Path

    from torch.utils.tensorboard.writer import SummaryWriter

TAGS = {
    "train_loss": "loss/training",
    "val_loss": "loss/validation",
    "lasso": "lasso/penalty",
    "lasso_strength": "lasso/lambda",
    "train_top1": "top-1/training",
    "val_top1": "top-1/validation",
    "macs": "cost/MACs",
    "params": "cost/parameters",
    "channels": "cost/channels",
    "train_macs_total": "cost/training MACs",
    "epoch_seconds": "time/seconds per epoch",
    "images_per_second": "time/images per second",
    "peak_memory_bytes": "memory/peak bytes",
}
"""The tag of a field of the metrics; other fields get one under `training/`."""


class TensorBoard(Observer):
    """An `Observer` that writes to `RunPaths.tensorboard`. When a run is resumed, what it wrote beyond that epoch before is hidden."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def started(self, event: Start) -> None:
        """Open the event file."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(event.run.tensorboard), purge_step=event.epoch + 1)
        if event.epoch == 0:
            self._add_channels(event.run.network(0), 0)

    def epoch_ended(self, metrics: Metrics) -> None:
        """Write the epoch's numbers."""
        assert self._writer is not None
        for name, value in metrics.items():
            if name != "epoch" and isinstance(value, int | float):
                self._writer.add_scalar(TAGS.get(name, f"training/{name}"), value, metrics["epoch"])
        self._writer.flush()

    def reconfigured(self, event: Reconfiguration) -> None:
        """Write the remaining channels."""
        self._add_channels(event.network, event.epoch)

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()

    def _add_channels(self, network: "Path", epoch: int) -> None:
        assert self._writer is not None
        channels = costs(read_graph(network)).layer_channels
        for name, count in channels.items():
            self._writer.add_scalar(f"channels/{name}", count, epoch)
        counts = list(channels.values())
        self._writer.add_histogram_raw(
            "channels by layer",
            min=0,
            max=len(counts),
            num=sum(counts),
            sum=sum((place + 0.5) * count for place, count in enumerate(counts)),
            sum_squares=sum((place + 0.5) ** 2 * count for place, count in enumerate(counts)),
            bucket_limits=list(range(1, len(counts) + 1)),
            bucket_counts=counts,
            global_step=epoch,
        )
        self._writer.flush()
