"""A study: methods x rates x seeds on one network and data set.

In: the settings of training and of pruning, and the grid. Out: the results of every cell, and of the dense network of every seed. A cell
prunes the network of its seed and retrains it. Each is a run of its own in the study's folder; a cell's run is deleted when its result is
known.
"""

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from prunetrain import methods
from prunetrain.config import LASSO_SETTINGS, NORM, SETTINGS_WITHOUT_RESULT_EFFECT, TrainConfig, settings_from
from prunetrain.errors import ConfigError, unknown_name
from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.library.prune import prune
from prunetrain.method_settings import (
    ADMM,
    FINETUNE,
    GROUP_LASSO,
    METHOD_SETTINGS,
    METHODS,
    METHODS_BY_SETTING,
    NOTHING_REWOUND,
    REWINDING_MODES,
    STRUCTURED_METHODS,
    check_share,
)
from prunetrain.methods.rewinding import WEIGHT_REWINDING_MODES
from prunetrain.paths import RunPaths
from prunetrain.studies.defaults import EXCLUDED_SETTINGS
from prunetrain.studies.records import DENSE, Record, Records
from prunetrain.studies.running import require_finished, train_to_the_end
from prunetrain.studies.tasks import Report, Task, TaskResult, run_tasks
from prunetrain.studies.unsupported_methods import find_unsupported_methods
from prunetrain.training.run import Outcome

_IRRELEVANT_SETTINGS: Final = (*SETTINGS_WITHOUT_RESULT_EFFECT, "data_dir", "device", "seed")
_MIN_EPOCHS: Final = 4  # of the group lasso: two to reach the target, two to recover


@dataclass(frozen=True)
class Cell:
    """One method at one rate on the network of one seed."""

    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its run and record."""
        return f"{self.method}-{self.rate:g}-seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """The grid of a study, with its settings.

    Args:
        folder: where it writes.
        training: settings of the networks to prune; seed, name and folder are set by the study.
        methods: names of methods with a free rate, and group-lasso, whose rate is the share of the MACs to remove.
        rates: shares to remove, in [0, 1).
        seeds: of the trained networks.
        pruning: settings for `prune` that all cells share, such as `scope`, `retrain` or `lr`; a method gets those that apply to it.
        epochs: of retraining, in which group-lasso prunes; None means `prune`'s default.
        during: epochs in which a method that acts in training does so before it prunes; None means `prune`'s default.
        keep_runs: keep the cells' checkpoints and network files.

    Raises:
        ConfigError: for a grid without cells, and for impossible methods and rates.
    """

    folder: Path
    training: TrainConfig
    methods: Sequence[str]
    rates: Sequence[float]
    seeds: Sequence[int]
    pruning: Mapping[str, Any]
    epochs: int | None = 0
    during: int | None = None
    keep_runs: bool = False

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise ConfigError(unknown_name("method", name, filter(_has_rate, METHODS)))
            if not _has_rate(name):
                raise ConfigError(f"{name} has no rate to choose: leave it out of --methods")
        settings_from(self.pruning)
        if self.training.method != GROUP_LASSO:
            raise ConfigError(
                f"a study prunes dense networks, and its config sets method {self.training.method} for training: leave that out"
            )
        for rate in self.rates:
            check_share("rate", rate)
        for what in ("methods", "rates", "seeds"):
            values = getattr(self, what)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"--{what} must list at least one value, and none twice, not {','.join(map(str, values)) or 'nothing'}")
        self._check_epochs()

    def _check_epochs(self) -> None:
        """Refuse methods that act in training if they get no epochs for it."""
        if ADMM in self.methods and 0 in (self.during, self.epochs if self.during is None else None):
            raise ConfigError(
                "admm acts before it prunes: give --during, the number of epochs in which it acts, or leave it out of --methods"
            )
        if GROUP_LASSO not in self.methods:
            return
        if self._retrain in REWINDING_MODES:
            raise ConfigError(NOTHING_REWOUND)
        if self.epochs is not None and self.epochs * self._rounds < _MIN_EPOCHS:
            raise ConfigError(
                f"group-lasso prunes while it retrains: give {_MIN_EPOCHS} --retrain-epochs or more, or leave it out of --methods"
            )

    @property
    def _retrain(self) -> str:
        """How all methods retrain, the group lasso included, so that they compare."""
        return str(self.pruning.get("retrain", FINETUNE))

    @property
    def _rounds(self) -> int:
        return int(self.pruning.get("rounds", TrainConfig.rounds))

    def cells(self, seed: int) -> list[Cell]:
        """The cells of a seed."""
        return [Cell(method, rate, seed) for method in self.methods for rate in self.rates]

    def dense(self, seed: int) -> RunPaths:
        """The run of the dense network of a seed."""
        return RunPaths(self.folder, f"{DENSE}-seed-{seed}")

    def training_config(self, seed: int) -> TrainConfig:
        """The settings that train the network of a seed."""
        saved = set(self.training.save_epochs)
        if self.pruning.get("retrain") in WEIGHT_REWINDING_MODES and self.pruning.get("rewind_epoch", 0):
            saved.add(self.pruning["rewind_epoch"])
        name, epochs = self.dense(seed).name, tuple(sorted(saved))
        dense = {name: getattr(TrainConfig, name) for name in LASSO_SETTINGS} | {"penalty_ratio": 0.0}
        return replace(self.training, **dense, seed=seed, name=name, output_dir=str(self.folder), save_epochs=epochs)

    def pruning_arguments(self, cell: Cell) -> dict[str, Any]:
        """The arguments of `prune` for a cell, apart from the checkpoint and where to write.

        Group-lasso continues training for as many epochs as the others do in all their rounds; at rate 0 without a lasso.
        """
        if cell.method == GROUP_LASSO:
            own = {name: value for name, value in self.pruning.items() if name not in METHOD_SETTINGS}
            aim = {"target_macs": 1 - cell.rate} if cell.rate else {"target_macs": 0.0, "penalty_ratio": 0.0, "importance": NORM}
            lasso = {name: getattr(self.training, name) for name in LASSO_SETTINGS if name not in EXCLUDED_SETTINGS}
            epochs = self.epochs if self.epochs is None else self.epochs * self._rounds
            return {**own, **lasso, **aim, "retrain": self._retrain, "epochs": epochs}
        acts = cell.method == ADMM or _decides_channels(cell.method)
        during = self.during if acts or self.during is None else 0
        return {**_applicable_settings(self.pruning, cell.method), "rate": cell.rate, "epochs": self.epochs, "during": during}

    def settings(self) -> dict[str, Any]:
        """The settings that decide the results, without the grid, which may grow."""
        training = {key: value for key, value in self.training.to_dict().items() if key not in (*_IRRELEVANT_SETTINGS, *EXCLUDED_SETTINGS)}
        return {**training, "pruning": dict(self.pruning), "retrain_epochs": self.epochs, "during": self.during}


def run_study(study: Study, jobs: int, report: Report) -> list[Record]:
    """Run the missing parts of a study; returns all records: the dense networks, then the cells in the order of the grid.

    A method that cannot prune the network is reported as failed before anything is trained, and its cells are left out.

    Args:
        study: the grid.
        jobs: processes at once.
        report: called with the result of every part.

    Raises:
        PruneTrainError: if the folder holds another study, or the network cannot be made.
        StopRequested: if a signal came; what is done is kept.
    """
    records = Records(study.folder / "cells", study.settings())
    failed = _find_failing_methods(study, records)
    for method, reason in failed.items():
        report(TaskResult(method, failure=reason))

    def keep(done: TaskResult) -> None:
        if done.failure is None and records.get(done.name) is None:
            records.put(done.name, done.result)
        report(done)

    tasks = _tasks(study, records, failed)
    if tasks:
        records.write_settings()
    run_tasks(tasks, jobs, keep)
    names = [study.dense(seed).name for seed in study.seeds]
    names += [cell.name for seed in study.seeds for cell in study.cells(seed)]
    order = (DENSE, *study.methods)
    return sorted((record for record in map(records.get, names) if record), key=lambda record: order.index(record["method"]))


def _unfinished_cells(study: Study, records: Records, seed: int) -> list[Cell]:
    """The cells of a seed that are not done."""
    return [cell for cell in study.cells(seed) if records.get(cell.name) is None]


def _find_failing_methods(study: Study, records: Records) -> dict[str, str]:
    """The methods with cells left to run that cannot prune the network, and why not."""
    waiting = {cell.method for seed in study.seeds for cell in _unfinished_cells(study, records, seed)}
    seed = study.seeds[0]
    asked = [method for method in study.methods if method in waiting]
    return find_unsupported_methods(study.dense(seed), study.training_config(seed), asked, max(study.rates), study.pruning)


def _tasks(study: Study, records: Records, failed: Mapping[str, str]) -> list[Task]:
    """For each seed with work left, a task for its dense network, followed by its cells; empty if no method can prune."""
    if set(failed) == set(study.methods):
        return []
    tasks = []
    for seed in study.seeds:
        cells = [cell for cell in _unfinished_cells(study, records, seed) if cell.method not in failed]
        name = study.dense(seed).name
        if cells or records.get(name) is None:
            following = tuple(Task(cell.name, partial(_run_cell, study, cell)) for cell in cells)
            tasks.append(Task(name, partial(_train_dense, study, seed), following))
    return tasks


def _train_dense(study: Study, seed: int) -> Record:
    """Train the network of a seed, or what is left of its training."""
    outcome = train_to_the_end(study.training_config(seed))
    seconds = sum(line["epoch_seconds"] for line in outcome.history)
    return _record(Cell(DENSE, 0.0, seed), study.dense(seed), outcome, seconds)


def _run_cell(study: Study, cell: Cell) -> Record:
    start = time.perf_counter()
    dense = study.dense(cell.seed)
    outcome = require_finished(
        prune(dense.last, method=cell.method, resume=True, name=cell.name, output_dir=str(study.folder), **study.pruning_arguments(cell))
    )
    record = _record(cell, dense, outcome, time.perf_counter() - start)
    if not study.keep_runs:
        for folder in (outcome.run.networks, outcome.run.checkpoints):
            shutil.rmtree(folder)
    return record


def _record(cell: Cell, dense: RunPaths, outcome: Outcome, seconds: float) -> Record:
    before, after = costs(read_graph(dense.network(0))), costs(read_graph(outcome.network))
    return {
        **dataclasses.asdict(cell),
        "top1": outcome.val_top1,
        "sparsity": 1 - (outcome.nonzero_params or 0) / before.params,
        "nonzero_params": outcome.nonzero_params,
        "params": after.params,
        "dense_params": before.params,
        "macs": after.macs,
        "dense_macs": before.macs,
        "train_macs_total": outcome.history[-1]["train_macs_total"] if outcome.history else 0,
        "seconds": seconds,
    }


def _applicable_settings(pruning: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The settings that a method reads, without `slice` if it removes single weights: a grid compares these with methods that cut."""
    structured = pruning.get("structure", "weights") != "weights" and method in STRUCTURED_METHODS
    read = {key: value for key, value in pruning.items() if method in METHODS_BY_SETTING.get(key, METHODS)}
    return {key: value for key, value in read.items() if key != "slice" or structured or _decides_channels(method)}


def _has_rate(method: str) -> bool:
    """Whether the rate of a method can be chosen."""
    return method in (ADMM, GROUP_LASSO) or methods.entry(method).amount == "rate"


def _decides_channels(method: str) -> bool:
    return method != ADMM and methods.entry(method).decides == "channels"
