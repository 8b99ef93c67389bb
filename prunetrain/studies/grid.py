"""A study: methods x rates x seeds on one network and data set.

In: the settings of training and of pruning, and the grid. Out: for every cell what the pruned network achieves. A network is trained for
each seed; every cell prunes that network and retrains it. Each is a run of its own in the study's folder; the cells' runs go when their
result is known.
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
from prunetrain.config import OF_THE_LASSO, TrainConfig, settings_from
from prunetrain.errors import ConfigError
from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.library.prune import prune
from prunetrain.method_settings import ADMM, GROUP_LASSO, STRUCTURED, check_share
from prunetrain.methods.rewinding import TAKES_WEIGHTS_BACK
from prunetrain.paths import RunPaths
from prunetrain.studies.records import Record, Records
from prunetrain.studies.running import finished, train_to_the_end
from prunetrain.studies.tasks import Done, Report, Task, run_tasks

RATES: Final = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
_OF_A_MACHINE: Final = ("data_dir", "download", "workers", "device", "output_dir", "name", "seed", "checkpoint_minutes")


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
    """A grid.

    Args:
        folder: where it writes.
        training: settings of the networks that are pruned; seed, name and folder are the study's.
        methods: names; those with a rate that can be chosen.
        rates: shares to remove, in [0, 1).
        seeds: of the trained networks.
        pruning: settings of `prune` that all cells share, such as `scope`, `retrain` or `lr`.
        epochs: of retraining; None as in `prune`.
        during: epochs with the method before it prunes, for those that act in training; None as in `prune`.
        keep_runs: leave the cells' checkpoints and network files where they are.

    Raises:
        ConfigError: for a grid without cells, and methods and rates that cannot be.
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
            if name == GROUP_LASSO or (name != ADMM and (methods.entry(name).amount != "rate" or name == "2:4")):
                raise ConfigError(f"{name} has no rate to choose: leave it out of --methods")
        settings_from(self.pruning)
        if self.training.method != GROUP_LASSO:
            raise ConfigError(f"a study prunes dense networks, and its config trains with method {self.training.method}: leave that out")
        for rate in self.rates:
            check_share("rate", rate)
        for what in ("methods", "rates", "seeds"):
            values = getattr(self, what)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"--{what} must name at least one, and none twice, not {','.join(map(str, values)) or 'nothing'}")

    def cells(self, seed: int) -> list[Cell]:
        """The cells of a seed."""
        return [Cell(method, rate, seed) for method in self.methods for rate in self.rates]

    def training_of(self, seed: int) -> TrainConfig:
        """The settings that train the network of a seed."""
        saved = set(self.training.save_epochs)
        if self.pruning.get("retrain") in TAKES_WEIGHTS_BACK and self.pruning.get("rewind_epoch", 0):
            saved.add(self.pruning["rewind_epoch"])
        name, epochs = f"dense-seed-{seed}", tuple(sorted(saved))
        dense = {name: getattr(TrainConfig, name) for name in OF_THE_LASSO} | {"penalty_ratio": 0.0}
        return replace(self.training, **dense, seed=seed, name=name, output_dir=str(self.folder), save_epochs=epochs)

    def settings(self) -> dict[str, Any]:
        """What decides the results, apart from the grid, which may grow."""
        training = {key: value for key, value in self.training.to_dict().items() if key not in (*_OF_A_MACHINE, *OF_THE_LASSO)}
        return {**training, "pruning": dict(self.pruning), "retrain_epochs": self.epochs, "during": self.during}


def run_study(study: Study, jobs: int, report: Report) -> list[Record]:
    """Run what of a study is not done yet; returns the records of all cells that are, in the order of the grid.

    Args:
        study: the grid.
        jobs: processes at once.
        report: is told of every piece that ends.

    Raises:
        ConfigError: if the folder holds another study.
        StopRequested: if a signal came; what is done stays.
    """
    records = Records(study.folder / "cells", study.settings())
    tasks = []
    for seed in study.seeds:
        cells = [cell for cell in study.cells(seed) if records.get(cell.name) is None]
        if cells:
            following = tuple(Task(cell.name, partial(_run_cell, study, cell)) for cell in cells)
            tasks.append(Task(f"dense-seed-{seed}", partial(_train_dense, study, seed), following))

    def keep(done: Done) -> None:
        if done.failure is None and "method" in done.result:
            records.put(done.name, done.result)
        report(done)

    run_tasks(tasks, jobs, keep)
    found = (records.get(cell.name) for seed in study.seeds for cell in study.cells(seed))
    return sorted((record for record in found if record), key=lambda record: study.methods.index(record["method"]))


def _train_dense(study: Study, seed: int) -> Record:
    """Train the network of a seed, or go on, or find it done."""
    return {"top1": train_to_the_end(study.training_of(seed)).val_top1}


def _run_cell(study: Study, cell: Cell) -> Record:
    start = time.perf_counter()
    dense = RunPaths(study.folder, f"dense-seed-{cell.seed}")
    outcome = prune(
        dense.last,
        method=cell.method,
        rate=cell.rate,
        epochs=study.epochs,
        during=study.during if cell.method == ADMM or study.during is None or _decides_channels(cell.method) else 0,
        resume=True,
        name=cell.name,
        output_dir=str(study.folder),
        **_fitting(study.pruning, cell.method),
    )
    finished(outcome)
    before, after = costs(read_graph(dense.network(0))), costs(read_graph(outcome.network))
    if not study.keep_runs:
        for folder in (outcome.run.networks, outcome.run.checkpoints):
            shutil.rmtree(folder)
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
        "seconds": time.perf_counter() - start,
    }


def _fitting(pruning: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The settings without `slice` for methods that remove single weights, so that a grid can compare them with those that cut."""
    structured = pruning.get("structure", "weights") != "weights" and method in STRUCTURED
    return {key: value for key, value in pruning.items() if key != "slice" or structured or _decides_channels(method)}


def _decides_channels(method: str) -> bool:
    return methods.entry(method).decides == "channels"
