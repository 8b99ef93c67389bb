"""What a run tells while it goes on. The loop calls an `Observer`; `report/` has the ones that people see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Metrics: TypeAlias = dict[str, Any]
"""A line of metrics.jsonl."""


@dataclass(frozen=True)
class Reconfiguration:
    """What one reconfiguration did. Accuracies are top-1 fractions on the validation images, right before and right after the cut; `seconds` by phase."""

    epoch: int
    channels: tuple[int, int]
    macs: tuple[int, int]
    params: tuple[int, int]
    val_top1: tuple[float, float]
    granularity: int
    removed_layers: tuple[str, ...]
    rescued_spaces: tuple[str, ...]
    network: str
    seconds: Mapping[str, float]


class Observer(Protocol):
    """Receives what happens."""

    def started(self, *, total_epochs: int, epoch: int, steps_per_epoch: int) -> None:
        """Training begins or goes on after `epoch` epochs."""

    def stepped(self, epoch: int, step: int) -> None:
        """A step of the current epoch is done."""

    def epoch_ended(self, metrics: Metrics) -> None:
        """An epoch is trained and validated."""

    def reconfigured(self, change: Reconfiguration) -> None:
        """Channels were cut."""

    def message(self, text: str) -> None:
        """Anything else worth a line."""


class Silent:
    """An observer that keeps everything to itself."""

    def started(self, *, total_epochs: int, epoch: int, steps_per_epoch: int) -> None: ...

    def stepped(self, epoch: int, step: int) -> None: ...

    def epoch_ended(self, metrics: Metrics) -> None: ...

    def reconfigured(self, change: Reconfiguration) -> None: ...

    def message(self, text: str) -> None: ...
