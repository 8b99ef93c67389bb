"""`--tensorboard`: what TensorBoard itself reads back from a run, also from one that was interrupted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import Recorder, arguments, invoke, settings, write_images

from prunetrain.graph.costs import out_channels
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.report.tensorboard import TAGS, TensorBoard
from prunetrain.training.events import ObserverGroup
from prunetrain.training.run import resume_run, start_run

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")


def read(run: RunPaths) -> Any:
    """A run's events, as TensorBoard shows them."""
    events = accumulator.EventAccumulator(str(run.tensorboard), size_guidance={accumulator.HISTOGRAMS: 0, accumulator.SCALARS: 0})
    return events.Reload()


def scalars(events: Any, tag: str) -> dict[int, float]:
    found = events.Scalars(tag)
    assert len({event.step for event in found}) == len(found)
    return {event.step: event.value for event in found}


def test_metrics_and_channels(tmp_path: Path) -> None:
    config = settings(write_images(tmp_path / "images.npz"), tmp_path, name="x")
    result = invoke(*arguments(config), "--tensorboard")
    assert (result.exit_code, result.stderr) == (0, "")
    run = RunPaths(tmp_path, "x")
    events = read(run)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for name in set(lines[0]) - {"epoch"}:
        tag = TAGS.get(name, f"training/{name}")
        assert scalars(events, tag) == pytest.approx({line["epoch"]: line[name] for line in lines}), name
    channels = {
        epoch: [out_channels(layer) for layer in read_graph(path).layers if out_channels(layer) is not None]
        for epoch, path in run.network_files().items()
    }
    assert {event.step: event.histogram_value.bucket for event in events.Histograms("channels by layer")} == channels
    assert channels[4] < channels[0] == [300, 100, 4]
    assert scalars(events, "channels/fc1") == {epoch: counts[0] for epoch, counts in channels.items()}


def test_a_run_that_goes_on_has_no_epoch_twice(tmp_path: Path) -> None:
    config = settings(write_images(tmp_path / "images.npz"), tmp_path, name="x", prune_interval=1)

    def trained(go: Any, *, stop_at: tuple[int, int] | None = None) -> None:
        board = TensorBoard()
        go(ObserverGroup(Recorder(stop_at), board))
        board.close()

    trained(lambda observer: start_run(config, observer))
    run = RunPaths(tmp_path, "x")
    trained(lambda observer: resume_run(run.checkpoint(2), {}, observer))  # gives up epochs 3 and 4
    events = read(run)
    assert list(scalars(events, "loss/training")) == [1, 2, 3, 4]
    assert [event.step for event in events.Histograms("channels by layer")] == [0, 1, 2, 3, 4]


def test_without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = invoke("train", "--tensorboard")
    assert result.exit_code == 2
    install = "pip install 'prunetrain[tensorboard]', or pip install tensorboard"
    assert result.stderr == f"error: --tensorboard needs tensorboard, which is not installed: {install}\n"
