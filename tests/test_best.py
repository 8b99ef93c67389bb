"""`--keep-best`: best.pt is the best epoch of the network as it is now, whatever interrupts the run."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import Recorder, arguments, assert_same_run, assert_same_state, invoke, settings, write_images

from prunetrain.config import TrainConfig
from prunetrain.graph.load import read_graph
from prunetrain.training import best, run
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.events import Metrics
from prunetrain.training.run import Outcome, resume_run, start_run
from prunetrain.training.state import TrainState
from prunetrain.training.stopping import StopRequested
from prunetrain.training.stored_config import stored_config

# To half of the MACs by epoch 3 of 7, and pruned by magnitude after epoch 3 of 6; images so much alike that top-1 goes up and down.
COMMON = {"keep_best": True, "lr": 0.1, "schedule": "constant", "name": "x"}
RUN = COMMON | {"epochs": 7, "prune_interval": 1, "target_macs": 0.5, "target_by": 0.4, "penalty_ratio": 0.1}
MASKS = COMMON | {"epochs": 6, "method": "magnitude", "rate": 0.5, "prune_at": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npz", classes=8, seed=1)


@pytest.fixture(scope="module", params=[RUN, MASKS], ids=["cuts", "masks"])
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


@pytest.fixture(scope="module")
def whole(images: Path, changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return start_run(settings(images, tmp_path_factory.mktemp("whole"), **changes), Recorder())


class Watching(Recorder):
    """Notes which epoch best.pt is of, after every epoch; 0 where it is not there."""

    def __init__(self, checkpoints: Path) -> None:
        super().__init__()
        self.found: list[int] = []
        self._best = checkpoints / "best.pt"

    def epoch_ended(self, metrics: Metrics) -> None:
        super().epoch_ended(metrics)
        self.found.append(load_checkpoint(self._best).progress.epoch if self._best.exists() else 0)


def test_it_is_the_best_epoch_of_the_present_network(images: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    watching = Watching(tmp_path / "checkpoints" / "x")
    outcome = start_run(settings(images, tmp_path, **changes), watching)
    changed = [event.epoch for event in watching.reconfigurations if event.nonzero or event.change.channels[0] != event.change.channels[1]]
    assert changed
    for epoch, found in enumerate(watching.found, start=1):
        since = [line for line in outcome.history[:epoch] if line["epoch"] > max([0, *(one for one in changed if one <= epoch)])]
        assert found == (max(since, key=lambda line: line["val_top1"])["epoch"] if since else 0)
    assert outcome.best_epoch == watching.found[-1] > 0
    assert read_graph(outcome.run.networks / load_checkpoint(outcome.run.best).network) == read_graph(outcome.network)


def test_a_pruning_that_leaves_as_many_weights_starts_the_comparison_again(images: Path, tmp_path: Path) -> None:
    """2:4 always leaves half, and its second round rewinds the weights, so no earlier epoch is of the network as it is then."""
    changes = COMMON | {"method": "2:4", "rate": 0.5, "prune_at": 2, "rounds": 2, "retrain": "weight-rewind", "epochs": 6}
    watching = Watching(tmp_path / "checkpoints" / "x")
    start_run(settings(images, tmp_path, **changes), watching)
    assert [found > 0 for found in watching.found] == [True, False, True, False, True, True]
    assert watching.found[4] == 5


@pytest.mark.parametrize("place", [(2, 3), (5, 1), (5, 5)], ids=str)
def test_a_stopped_run_keeps_the_same(
    images: Path, changes: dict[str, Any], whole: Outcome, tmp_path: Path, place: tuple[int, int]
) -> None:
    parts = start_run(settings(images, tmp_path, **changes), Recorder(place))
    assert_same(resume_run(parts.run.last, {}, Recorder()), whole)


@pytest.mark.parametrize("epoch", [1, 2, 4, 5])
def test_a_crash_before_it_is_written_loses_nothing(whole: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    def crash(state: TrainState) -> None:
        if state.progress.epoch == epoch:
            raise MemoryError
        best.keep_best(state)

    with monkeypatch.context() as patch:
        patch.setattr(run, "keep_best", crash)
        with pytest.raises(MemoryError):
            start_run(replace(config_of(whole), output_dir=str(tmp_path)), Recorder())
    assert_same(resume_run(tmp_path / "checkpoints" / "x", {}, Recorder()), whole)


@pytest.mark.parametrize("given", [{}, {"keep_best": False}], ids=str)
def test_going_back_takes_a_later_one_away(images: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    outcome = start_run(settings(images, tmp_path, **RUN), Recorder())
    assert load_checkpoint(outcome.run.best).progress.epoch > 3

    class Stopped(Recorder):
        def started(self, event: object) -> None:
            assert not outcome.run.best.exists()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StopRequested):
        resume_run(outcome.run.checkpoint(3), given, Stopped())


def config_of(outcome: Outcome) -> TrainConfig:
    return stored_config(outcome.run.last, load_checkpoint(outcome.run.last))


def assert_same(outcome: Outcome, reference: Outcome) -> None:
    assert_same_run(outcome.run, reference.run)
    assert outcome.best_epoch == reference.best_epoch
    assert_same_state(load_checkpoint(outcome.run.best), load_checkpoint(reference.run.best))


def test_the_end_names_it(images: Path, tmp_path: Path) -> None:
    result = invoke(*arguments(settings(images, tmp_path, **RUN | {"keep_best": False})), "--keep-best")
    assert result.exit_code == 0
    line = result.stdout.splitlines()[-1]
    assert line.startswith("best             ")
    assert line.endswith(f": {tmp_path / 'checkpoints' / 'x' / 'best.pt'}")
    assert invoke("evaluate", tmp_path / "checkpoints" / "x" / "best.pt").exit_code == 0
