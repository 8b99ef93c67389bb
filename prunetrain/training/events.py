"""What a run reports while it trains. The loop calls an `Observer`; `report/` has those whose output people see."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

from prunetrain.channels.selection import Granularity
from prunetrain.channels.slicing import Cut
from prunetrain.graph.costs import Costs, costs
from prunetrain.paths import RunPaths

Metrics: TypeAlias = dict[str, Any]
"""A line of metrics.jsonl."""


@dataclass(frozen=True)
class Change:
    """What a cut did: counts before and after, layers removed entirely, spaces that kept a dead channel to stay alive, seconds by phase."""

    channels: tuple[int, int]
    macs: tuple[int, int]
    params: tuple[int, int]
    granularity: Granularity
    removed_layers: tuple[str, ...]
    rescued_spaces: tuple[str, ...]
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, before: Costs, cut: Cut, granularity: Granularity, seconds: Mapping[str, float]) -> "Change":
        """The change from a network of these costs to the one that a cut left."""
        after = costs(cut.graph)
        return cls(
            (before.channels, after.channels),
            (before.macs, after.macs),
            (before.params, after.params),
            granularity,
            cut.removed_layers,
            cut.rescued_spaces,
            seconds,
        )


@dataclass(frozen=True)
class BatchChange:
    """What `--dynamic-batch` decided after a cut: images per step, over all workers, before and after, which may be the same.

    `memory` is the peak of a training step on a device in bytes, for the old network with the old batch and the new network with the new
    one; `budget` is its limit; `measured` says whether it was measured or estimated. `steps_per_epoch` is the new number. `largest` says
    whether the settings and the number of images allow no larger batch, whatever the memory.
    """

    batch_size: tuple[int, int]
    memory: tuple[float, float]
    budget: float
    measured: bool
    steps_per_epoch: int
    largest: bool


class Uncut(Enum):
    """What it means that a reconfiguration cut nothing."""

    YET = "a later one may cut"
    TARGET = "the target is reached"
    FINAL = "nothing more will be cut"


@dataclass(frozen=True)
class Reconfiguration:
    """A change during training, after an epoch: the new network file, and validation top-1 (fractions) right before and after.

    `batch` is given with `--dynamic-batch`; `nonzero`, the number of nonzero parameters before and after, if a method pruned; `uncut`
    matters only if nothing was cut.
    """

    epoch: int
    change: Change
    network: Path
    val_top1: tuple[float, float]
    batch: BatchChange | None = None
    nonzero: tuple[int, int] | None = None
    uncut: Uncut = Uncut.YET


@dataclass(frozen=True)
class Start:
    """Training begins, or resumes after `epoch` epochs; `data` describes the training data, line by line."""

    run: RunPaths
    data: tuple[str, ...]
    total_epochs: int
    epoch: int
    steps_per_epoch: int
    dense_macs: int


class Observer:
    """Receives a run's events; this base class ignores them all."""

    def started(self, event: Start) -> None:
        """Training begins or resumes."""

    def stepped(self, epoch: int, step: int) -> None:
        """A step of the current epoch is done."""

    def epoch_ended(self, metrics: Metrics) -> None:
        """An epoch is trained and validated."""

    def reconfigured(self, event: Reconfiguration) -> None:
        """A reconfiguration or a pruning was done."""

    def message(self, text: str) -> None:
        """Anything else worth a line."""


class ObserverGroup(Observer):
    """An observer that passes every event on to others, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def started(self, event: Start) -> None:
        for one in self._observers:
            one.started(event)

    def stepped(self, epoch: int, step: int) -> None:
        for one in self._observers:
            one.stepped(epoch, step)

    def epoch_ended(self, metrics: Metrics) -> None:
        for one in self._observers:
            one.epoch_ended(metrics)

    def reconfigured(self, event: Reconfiguration) -> None:
        for one in self._observers:
            one.reconfigured(event)

    def message(self, text: str) -> None:
        for one in self._observers:
            one.message(text)
