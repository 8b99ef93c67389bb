"""A sweep: one training run for every config in a folder, and one table of their results.

In: settings by name. Out: runs in one folder, and a record of each that finished. A run that exists is resumed, unless its settings have
changed; one that fails does not stop the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from prunetrain.config import SETTINGS_WITHOUT_RESULT_EFFECT, TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.graph.costs import TRAIN_TO_FORWARD, costs
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.studies.records import Record, Records, as_now, plain
from prunetrain.studies.running import train_to_the_end
from prunetrain.studies.tasks import Report, Task, TaskResult, run_tasks
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.data.base import ignore_line
from prunetrain.training.recovery import find_newest_checkpoint
from prunetrain.training.stored_config import stored_config

COLUMNS: Final = {
    "name": "config",
    "top1": "top-1|.2%",
    "params": "parameters|,",
    "nonzero_params": "not zero|,",
    "macs": "MACs|,",
    "train_macs_total": "training MACs|.3g",
    "train_macs_share": "of dense training|.1%",
    "seconds": "training time, s|,.1f",
}
"""Columns of the summary: key of a record, heading and format."""


def run_sweep(folder: Path, configs: Mapping[str, TrainConfig], jobs: int, report: Report) -> Sequence[Record]:
    """Train the runs that are not done yet; returns the records of all finished ones, sorted by name.

    Args:
        folder: for the runs and records.
        configs: settings by the names of their runs; the name and output folder in them are ignored.
        jobs: processes at once.
        report: called with the result of every run.

    Raises:
        StopRequested: if a signal came; what is done is kept.
    """
    records = Records(folder / "results", {})
    configs = {name: replace(config, name=name, output_dir=str(folder)) for name, config in configs.items()}
    waiting = {name: config for name, config in configs.items() if not _is_of(records.get(name), config)}

    def keep(done: TaskResult) -> None:
        if done.failure is None:
            records.put(done.name, {"settings": _settings(configs[done.name]), "result": done.result})
        report(done)

    run_tasks((Task(name, partial(_train, config)) for name, config in waiting.items()), jobs, keep)
    found = {name: records.get(name) for name in sorted(configs)}
    return [record["result"] for name, record in found.items() if record and _is_of(record, configs[name])]


def _settings(config: TrainConfig) -> Record:
    return {key: value for key, value in plain(config).items() if key != "output_dir"}


def _is_of(record: Record | None, config: TrainConfig) -> bool:
    """Whether a record is of a run with these settings."""
    stored, wanted = (record or {}).get("settings"), _settings(config)
    return isinstance(stored, dict) and as_now(stored, wanted) == wanted


def _train(config: TrainConfig) -> Record:
    _check_settings_of_run(config)
    outcome = train_to_the_end(config)
    dense, final, last = costs(read_graph(outcome.run.network(0))), costs(read_graph(outcome.network)), outcome.history[-1]
    return {
        "name": config.name,
        "top1": outcome.val_top1,
        "params": final.params,
        "nonzero_params": outcome.nonzero_params,
        "macs": final.macs,
        "train_macs_total": last["train_macs_total"],
        "train_macs_share": last["train_macs_total"] / (TRAIN_TO_FORWARD * dense.macs * last["train_images_total"]),
        "seconds": sum(line["epoch_seconds"] for line in outcome.history),
    }


def _check_settings_of_run(config: TrainConfig) -> None:
    """Refuse a config that differs from the one that its run was trained with, whose results would stand beside the new settings.

    Raises:
        ConfigError: if a setting differs that affects what a run computes.
        PruneTrainError: if no checkpoint of the run is whole.
    """
    run = RunPaths(Path(config.output_dir), config.name)
    path = find_newest_checkpoint(run, ignore_line) if run.exists() else None
    if path is None:
        return
    trained, wanted = stored_config(path, load_checkpoint(path)).to_dict(), config.to_dict()
    differ = sorted(key for key in wanted.keys() - {*SETTINGS_WITHOUT_RESULT_EFFECT, "device"} if trained[key] != wanted[key])
    if differ:
        names = ", ".join(key.replace("_", "-") for key in differ[:3])
        raise ConfigError(
            f"its run has other settings ({names}): rename the config, or remove the run's folders {run.networks} and {run.checkpoints}"
        )
