"""Reading runs for a report. In: the network files, metrics.jsonl and settings of a run. Out: `History`, plain values. No torch."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from prunetrain.errors import ConfigError
from prunetrain.foreign.opening import read_bytes
from prunetrain.foreign.refusal import RefusedFileError, printable
from prunetrain.graph.costs import TRAIN_TO_FORWARD, Costs, costs
from prunetrain.graph.load import read_source
from prunetrain.graph.parse import parse
from prunetrain.method_settings import GROUP_LASSO
from prunetrain.paths import RunPaths
from prunetrain.report.run_settings import read_settings

_SHOWN = ("epoch", "train_loss", "lasso", "train_top1", "val_top1", "lr", "macs", "epoch_seconds", "images_per_second")
MAX_METRICS_BYTES = 2**28  # bytes, enough for half a million epochs


@dataclass(frozen=True)
class Network:
    """A network file: the epoch after which it was written, its text, its costs, and the output channels of each layer that makes some."""

    epoch: int
    file: str
    source: str
    costs: Costs
    channels: dict[str, int]


@dataclass(frozen=True)
class LayerHistory:
    """Output channels of a layer in every network of a run; 0 in networks without the layer. `dense` is the most it ever had."""

    name: str
    channels: tuple[int, ...]

    @property
    def dense(self) -> int:
        return max(self.channels)


@dataclass(frozen=True)
class History:
    """A run: its label in a report, its networks by epoch and its metrics by epoch. One of the two may be empty.

    `settings` are those of its last checkpoint; empty if that cannot be read.
    """

    label: str
    networks: tuple[Network, ...]
    metrics: tuple[dict[str, Any], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def values(self, field: str) -> list[float]:
        """A field of the metrics, one number per epoch; NaN where a line lacks it."""
        return [number(line, field) for line in self.metrics]

    def last(self, field: str) -> float:
        """A field's value after the last epoch; NaN if there is none."""
        return number(self.metrics[-1], field) if self.metrics else math.nan

    @property
    def dense(self) -> Costs | None:
        return self.networks[0].costs if self.networks else None

    @property
    def epochs(self) -> int:
        """Number of epochs trained, according to the files."""
        trained = self.last("epoch")
        return max(self.networks[-1].epoch if self.networks else 0, 0 if math.isnan(trained) else int(trained))

    def kept(self, what: str) -> float:
        """The share of the dense network's `channels`, `macs` or `params` that the last network has; NaN without network files."""
        return _share(getattr(self.networks[-1].costs, what), getattr(self.networks[0].costs, what)) if self.networks else math.nan

    @property
    def prunings(self) -> tuple[int, ...]:
        """The epochs after which a method pruned; none for the group lasso, which prunes as it trains.

        If a method acts in training first, a network from before `prune_at` is that of the checkpoint that the run began with.
        """
        if self.settings.get("method", GROUP_LASSO) == GROUP_LASSO:
            return ()
        first = self.settings.get("prune_at")
        return tuple(network.epoch for network in self.networks[1:] if not isinstance(first, int) or network.epoch >= first)

    @property
    def last_network_measured(self) -> bool:
        """Whether the last line of metrics belongs to the last network; if a method pruned it at the end, no epoch measured it."""
        return bool(self.metrics) and not (self.prunings and self.prunings[-1] >= self.epochs)

    @property
    def top1(self) -> float:
        """Validation accuracy of the last network; NaN if no epoch measured it."""
        return self.last("val_top1") if self.last_network_measured else math.nan

    @property
    def nonzero(self) -> float:
        """Nonzero parameters of the last network; NaN if no epoch counted them."""
        found = self.last("nonzero_params") if self.last_network_measured else math.nan
        return min(found, self.networks[-1].costs.params) if self.networks else found  # a cut after the last epoch removed more

    @property
    def train_macs_removed(self) -> float:
        """The share saved of the training MACs that the dense network would have spent on the same images; NaN if unknown."""
        if self.dense is None:
            return math.nan
        return 1 - _share(self.last("train_macs_total"), TRAIN_TO_FORWARD * self.dense.macs * self.last("train_images_total"))

    @cached_property
    def layers(self) -> tuple[LayerHistory, ...]:
        """All layers of all networks, in forward order, matched by name."""
        names: list[str] = []
        for network in self.networks:
            place = 0
            for name in network.channels:
                if name in names:
                    place = names.index(name) + 1
                else:
                    names.insert(place, name)
                    place += 1
        return tuple(LayerHistory(name, tuple(network.channels.get(name, 0) for network in self.networks)) for name in names)


def read_history(run: RunPaths, label: str) -> History:
    """Read a run's files.

    Raises:
        NetworkFileError: if one of its network files cannot be read.
        ConfigError: if its metrics contain a line that is not one of metrics.
    """
    networks = tuple(_read_network(epoch, path) for epoch, path in run.network_files().items())
    return History(label, networks, tuple(read_metrics(run)), read_settings(run))


def labels(runs: Sequence[RunPaths]) -> list[str]:
    """The runs' names, with their folders where two have the same name."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else printable(f"{run.output_dir}/{run.name}") for run in runs]


def number(line: dict[str, Any], field: str) -> float:
    """A number from a line of metrics; NaN if it is missing or not finite."""
    value = line.get(field)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def read_metrics(run: RunPaths) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl; none if there is no such file.

    Raises:
        ConfigError: for a line that is not a JSON object with the expected numbers.
    """
    if not run.metrics.exists():
        return []
    lines = []
    try:
        content = read_bytes(run.metrics, MAX_METRICS_BYTES)
    except RefusedFileError as refused:
        raise ConfigError(f"{run.metrics}: not a file of metrics: {refused}") from None
    for row, line in enumerate(content.splitlines(), start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not _is_metrics(values):
            raise ConfigError(f"{run.metrics}:{row}: not a line of metrics")
        lines.append(values)
    return lines


def _read_network(epoch: int, path: Path) -> Network:
    source = read_source(path)
    graph = parse(source, str(path))
    cost = costs(graph)
    return Network(epoch, path.name, source, cost, cost.layer_channels)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _is_metrics(values: object) -> bool:
    """Whether a line has all fields that the tables show, and only plain values."""
    if not isinstance(values, dict) or not all(isinstance(value, float | str | None) or _is_count(value) for value in values.values()):
        return False
    return all(isinstance(values.get(name), float) or _is_count(values.get(name)) for name in _SHOWN)


def _is_count(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63
