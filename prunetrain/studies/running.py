"""Running the runs of studies and sweeps to their ends: starting or resuming them."""

from pathlib import Path

from prunetrain.config import TrainConfig
from prunetrain.paths import RunPaths
from prunetrain.training.events import Observer
from prunetrain.training.run import Outcome, continue_run, start_run
from prunetrain.training.stopping import StopRequested


def train_to_the_end(config: TrainConfig) -> Outcome:
    """Train a named run, or what is left of it.

    Raises:
        PruneTrainError: if the run fails.
        StopRequested: if a signal came.
    """
    run = RunPaths(Path(config.output_dir), config.name)
    given = {key: value for key, value in config.to_dict().items() if key not in ("name", "output_dir")}
    return require_finished(continue_run(run, config, given, Observer()) if run.exists() else start_run(config, Observer()))


def require_finished(outcome: Outcome) -> Outcome:
    """Return the outcome of a run that was trained to its end.

    Raises:
        StopRequested: if a signal stopped the run before its end.
    """
    if outcome.stopped_by is not None:
        raise StopRequested(outcome.stopped_by)
    return outcome
