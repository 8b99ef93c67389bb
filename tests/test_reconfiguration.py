"""A reconfiguration keeps what the network computes, its momentum and all else of a run; while it trains, and offline from a checkpoint."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import LENET, RESNET, Recorder, assert_identical, largest_file, settings, write_images
from torch import Tensor, nn

from prunetrain.channels.spaces import Role, find_spaces
from prunetrain.errors import OutputError
from prunetrain.graph.costs import costs
from prunetrain.graph.load import load_network, read_graph
from prunetrain.paths import RunPaths
from prunetrain.training import reconfiguration
from prunetrain.training import run as run_module
from prunetrain.training import state as state_module
from prunetrain.training.checkpoints import load_checkpoint, save_checkpoint
from prunetrain.training.creation import new_state
from prunetrain.training.data import DataSource, load_data
from prunetrain.training.environment import Environment
from prunetrain.training.evaluation import evaluate_checkpoint
from prunetrain.training.events import Metrics
from prunetrain.training.loop import evaluate, train_one_epoch
from prunetrain.training.offline_reconfiguration import reconfigure_checkpoint
from prunetrain.training.pairs import read_pair
from prunetrain.training.reconfiguration import reconfigure
from prunetrain.training.run import resume_run, start_run
from prunetrain.training.state import TrainState, load_state
from prunetrain.training.stopping import Action

CPU = torch.device("cpu")
Trained = tuple[TrainState, DataSource]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npz", train=160)


def trained(images: Path, folder: Path, **changes: Any) -> Trained:
    """A run after one epoch, in which a third of the channels that may go has died."""
    config = settings(images, folder, **{"name": "x", "penalty_ratio": 0.2, **changes})
    data = load_data(config, CPU)
    state = new_state(config, RunPaths(folder, "x"), data, Environment(CPU))
    train_one_epoch(state, data, Recorder(), lambda: Action.GO_ON)
    kill_a_third_(state)
    metrics = {"epoch": 1, "lr": 0.1, "epoch_seconds": 0.1, "val_top1": 0.5, "train_macs_total": 1, "train_images_total": 1}
    state.progress = replace(state.progress, epoch=1, step=0, running={}, history=[metrics])
    return state, data


def kill_a_third_(state: TrainState) -> None:
    """Make every third channel's filters and slices zero, as the proximal step does."""
    spaces = find_spaces(state.graph)
    dead = (torch.arange(spaces.num_channels) % 3 == 0).numpy() & ~spaces.frozen_channels()
    with torch.no_grad():
        for name, axis in (*spaces.axes(Role.PRODUCER), *spaces.axes(Role.CONSUMER)):
            weight = state.model.get_parameter(f"{name}.weight")
            gone = torch.from_numpy(dead[spaces.ids[name, axis]])
            (weight if axis == "out" else weight.transpose(0, 1))[gone] = 0


def outputs(state: TrainState, data: DataSource) -> Tensor:
    """The logits of the validation images in float64."""
    model = load_network(state.network).double().eval()
    model.load_state_dict(state.model.state_dict())
    with torch.inference_mode():
        return torch.cat([model(images.double()) for images, _ in data.val_batches(256)])


@pytest.mark.parametrize("changes", [RESNET, {"optimizer": "adamw", "lr": 0.001}, {**RESNET, "lasso_groups": "slices"}], ids=str)
def test_cut_changes_nothing_but_size(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    state, data = trained(images, tmp_path, **{**changes, "penalty_ratio": 0.2})
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    expected = outputs(state, data)
    top1 = evaluate(state, data).top1
    after, event = reconfigure(state, data, top1)
    assert after.costs.channels < state.costs.channels * 0.75
    assert float((outputs(after, data) - expected).norm() / expected.norm()) < 1e-6  # running means took up constants in float32
    assert event.val_top1 == (top1, top1)
    assert (event.epoch, event.network, event.change.granularity) == (1, after.run.network(1), 1)
    for found, old, new in (
        (event.change.channels, state.costs.channels, after.costs.channels),
        (event.change.macs, state.costs.macs, after.costs.macs),
        (event.change.params, state.costs.params, after.costs.params),
    ):
        assert found == (old, new)
    assert event.change.params[1] == sum(parameter.numel() for parameter in after.model.parameters())
    assert list(event.change.seconds) == ["select", "time", "slice", "batch", "write", "load", "validate"]
    assert_identical(dict(state.model.state_dict()), before)  # the old state is as it was


def test_accuracy_after_a_cut_that_changes_the_network_is_measured(images: Path, tmp_path: Path) -> None:
    state, data = trained(images, tmp_path, threshold=0.2)
    after, event = reconfigure(state, data, 0.123)
    measured = evaluate(after, data).top1
    assert event.change.channels[1] < event.change.channels[0]
    assert event.val_top1 == (0.123, measured)


def test_all_images_are_validated_again_only_if_the_logits_change(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, data = trained(images, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(reconfiguration, "evaluate", lambda after, data: pytest.fail("nothing has changed"))
        after, event = reconfigure(state, data, 0.5)
    assert event.val_top1 == (0.5, 0.5)
    other = [torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.001]])]
    monkeypatch.setattr(reconfiguration, "logits", lambda state, images: other.pop())
    _, event = reconfigure(state, data, 0.5)
    assert (event.val_top1, other) == ((0.5, evaluate(after, data).top1), [])


@pytest.mark.parametrize("changes", [{}, {"dynamic_batch": True, "max_batch_size": 32}], ids=str)
def test_where_nothing_is_cut_the_run_is_what_resuming_gives(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = settings(images, tmp_path, name="x", penalty_ratio=0.01, batch_size=32, **changes)
    data = load_data(config, CPU)
    state = new_state(config, RunPaths(tmp_path, "x"), data, Environment(CPU))
    train_one_epoch(state, data, Recorder(), lambda: Action.GO_ON)
    state.progress = replace(state.progress, epoch=1, step=0, running={})
    after, event = reconfigure(state, data, 0.5)
    assert event.change.channels[0] == event.change.channels[1]
    assert after.model is state.model
    found, drawn = after.checkpoint(), torch.rand(3)
    resumed = load_state(read_pair(after.run.checkpoint(1)), config, data, Environment(CPU))
    again = resumed.checkpoint()
    assert torch.equal(drawn, torch.rand(3))
    assert (found.network, found.network_sha256, found.progress) == (again.network, again.network_sha256, again.progress)
    assert_identical(found.model, again.model)
    assert_identical(found.optimizer, again.optimizer)
    assert resumed.optimizer.param_groups[0]["lr"] == after.optimizer.param_groups[0]["lr"]


def test_network_and_checkpoint_belong_together(images: Path, tmp_path: Path) -> None:
    state, data = trained(images, tmp_path)
    after, _ = reconfigure(state, data, 0.5)
    assert after.graph == read_graph(after.run.network(1))
    assert after.dense == read_graph(after.run.network(0))
    assert after.costs == costs(after.graph)
    assert f"{after.costs.channels:,} of 404 channels" in after.run.network(1).read_text()
    written = load_checkpoint(after.run.checkpoint(1))
    assert (written.network, written.network_sha256) == ("epoch_001.py", after.network_sha256)
    assert_identical(written.model, dict(after.model.state_dict()))
    assert_identical(written.optimizer, after.optimizer.state_dict())


def test_everything_else_carries_over(images: Path, tmp_path: Path) -> None:
    state, data = trained(images, tmp_path, momentum=0.8, weight_decay=0.01, warmup_epochs=2)
    expected = load_checkpoint_parts(state)
    torch.manual_seed(12345)  # the generators carry over too
    wanted = torch.rand(3)
    torch.manual_seed(12345)
    after, _ = reconfigure(state, data, 0.5)
    assert torch.equal(torch.rand(3), wanted)
    assert load_checkpoint_parts(after) == expected
    (group,) = after.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.8, 0.01)
    assert group["params"] == list(after.model.parameters())


def load_checkpoint_parts(state: TrainState) -> tuple[Any, ...]:
    return state.progress, state.config, state.scheduler.last_epoch, state.optimizer.param_groups[0]["lr"], state.scaler.state_dict()


def test_momentum_follows_its_channels(images: Path, tmp_path: Path) -> None:
    state, data = trained(images, tmp_path)
    parameters = list(state.model.parameters())  # fc1.weight, fc1.bias, fc2.weight, ...
    buffers = [state.optimizer.state[parameter]["momentum_buffer"].clone() for parameter in parameters]
    rows = state.model.get_parameter("fc1.weight").abs().amax(1) > 0
    columns = state.model.get_parameter("fc2.weight").abs().amax(1) > 0
    after, _ = reconfigure(state, data, 0.5)
    cut = [after.optimizer.state[parameter]["momentum_buffer"] for parameter in after.model.parameters()]
    assert torch.equal(cut[0], buffers[0][rows])
    assert torch.equal(cut[1], buffers[1][rows])
    assert torch.equal(cut[2], buffers[2][columns][:, rows])
    assert cut[0].abs().sum() > 0


def test_nothing_dead_writes_the_same_network(images: Path, tmp_path: Path) -> None:
    config = settings(images, tmp_path)
    data = load_data(config, CPU)
    state = new_state(config, RunPaths(tmp_path, "x"), data, Environment(CPU))
    state.progress = replace(state.progress, epoch=1)
    after, event = reconfigure(state, data, 0.5)
    assert after.graph == state.graph
    assert event.change.channels == (404, 404)


@pytest.mark.parametrize("changes", [LENET, RESNET], ids=str)
def test_offline(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    state, _ = trained(images, tmp_path, **{**changes, "epochs": 2})
    save_checkpoint(state.run.last, state.checkpoint())
    before = {path: path.read_bytes() for path in tmp_path.glob("*/x/*")}
    done = reconfigure_checkpoint(state.run.last, {"name": "small"}, granularity=1)
    cut = RunPaths(tmp_path.resolve(), "small")
    assert (done.network, done.checkpoint) == (cut.network(1), cut.checkpoint(1))
    assert cut.network(0).read_bytes() == state.run.network(0).read_bytes()
    assert done.change.channels[1] < done.change.channels[0] * 0.75
    assert done.change.channels[1] == costs(read_graph(done.network)).channels
    assert {path: path.read_bytes() for path in tmp_path.glob("*/x/*")} == before
    old, new = evaluate_checkpoint(state.run.last, {}), evaluate_checkpoint(done.checkpoint, {})
    assert (new.top1, new.top5) == (old.top1, old.top5)
    assert new.loss == pytest.approx(old.loss, rel=1e-5)
    again = reconfigure_checkpoint(state.run.last, {"name": "small"}, granularity=8)
    assert again.checkpoint == RunPaths(tmp_path.resolve(), "small-2").checkpoint(1)
    assert done.change.channels[1] < again.change.channels[1] < again.change.channels[0]


def test_the_threshold_of_an_offline_cut_is_for_that_cut_alone(images: Path, tmp_path: Path) -> None:
    state, _ = trained(images, tmp_path, epochs=1)
    save_checkpoint(state.run.last, state.checkpoint())
    own = state.config.threshold
    done = reconfigure_checkpoint(state.run.last, {"threshold": own + 0.1, "criterion": "union"}, granularity=1)
    kept = load_checkpoint(done.checkpoint).config
    assert (kept["threshold"], kept["criterion"]) == (own, "union")


def test_what_fades_is_forgotten_in_an_offline_cut(images: Path, tmp_path: Path) -> None:
    """Channels have other numbers then. The run goes on, and its next interval chooses anew."""
    changes: dict[str, Any] = {"epochs": 6, "prune_interval": 2, "target_macs": 0.3, "target_by": 1.0, "save_epochs": (3,)}
    run = start_run(settings(images, tmp_path, **changes), Recorder()).run
    fading = load_checkpoint(run.checkpoint(3)).progress.fading
    done = reconfigure_checkpoint(run.checkpoint(3), {"threshold": 0.1}, granularity=1)
    assert fading
    assert done.change.channels[1] < done.change.channels[0]
    assert load_checkpoint(done.checkpoint).progress.fading == []
    assert costs(read_graph(resume_run(done.checkpoint, {}, Recorder()).network)).macs <= 0.3 * costs(read_graph(run.network(0))).macs


def test_what_a_method_keeps_follows_an_offline_cut(images: Path, tmp_path: Path) -> None:
    changes = {"model": "lenet5", "method": "magnitude", "structure": "filters", "rate": 0.5, "penalty_ratio": 0.0, "epochs": 3}
    run = start_run(settings(write_images(tmp_path / "images.npz", side=16), tmp_path, **changes), Recorder()).run
    done = reconfigure_checkpoint(run.last, {}, granularity=1)
    kept = load_checkpoint(done.checkpoint)
    assert done.change.channels[1] < done.change.channels[0]
    assert all(mask.shape == kept.model[name].shape for name, mask in kept.method["tensors"]["keep"].items())
    assert resume_run(done.checkpoint, {"epochs": 4}, Recorder()).finished


def test_training_goes_on_from_an_offline_cut(images: Path, tmp_path: Path) -> None:
    online, data = trained(images, tmp_path / "online", epochs=2)
    after, _ = reconfigure(online, data, 0.5)
    save_checkpoint(after.run.last, after.checkpoint())
    offline, _ = trained(images, tmp_path / "offline", epochs=2)
    save_checkpoint(offline.run.last, offline.checkpoint())
    done = reconfigure_checkpoint(offline.run.last, {}, granularity=1)
    assert done.checkpoint.parent.name == "x-cut"
    assert done.network.read_text() == after.network.read_text()
    left = resume_run(after.run.last, {}, Recorder())
    right = resume_run(done.checkpoint, {}, Recorder())
    assert (left.finished, right.finished) == (True, True)
    assert right.run == RunPaths((tmp_path / "offline").resolve(), "x-cut")
    first, second = load_checkpoint(left.run.last), load_checkpoint(right.run.last)
    assert_identical(first.model, second.model)
    assert_identical(first.optimizer, second.optimizer)
    assert second.config["name"] == "x-cut"


def test_offline_cut_in_the_middle_of_an_epoch(images: Path, tmp_path: Path) -> None:
    state, _ = trained(images, tmp_path, epochs=3)
    save_checkpoint(state.run.last, state.checkpoint())
    stopped = resume_run(state.run.last, {}, Recorder(stop_at=(2, 3)))
    assert not stopped.finished
    done = reconfigure_checkpoint(stopped.run.last, {}, granularity=1)
    assert load_checkpoint(done.checkpoint).progress.step == 3
    recorder = Recorder()
    assert resume_run(done.checkpoint, {}, recorder).finished
    assert recorder.steps[:3] == [(2, 4), (2, 5), (3, 1)]


def test_dense_checkpoint_cannot_be_cut_in_place(images: Path, tmp_path: Path) -> None:
    state, _ = trained(images, tmp_path)
    state.progress = replace(state.progress, epoch=0, history=[])
    save_checkpoint(state.run.last, state.checkpoint())
    with pytest.raises(OutputError, match="train at least one epoch first"):
        reconfigure_checkpoint(state.run.last, {}, granularity=1)
    assert not (tmp_path / "generated_nets" / "x-cut").exists()


def test_offline_cut_that_finds_no_room_leaves_nothing(images: Path, tmp_path: Path) -> None:
    state, _ = trained(images, tmp_path)
    save_checkpoint(state.run.last, state.checkpoint())
    with largest_file(20_000), pytest.raises(OutputError, match="file too large"):
        reconfigure_checkpoint(state.run.last, {}, granularity=1)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["x", "x"]


def test_a_run_keeps_no_network_but_the_present_one(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when it starts nor when it is resumed, whose first network is its largest."""
    seen: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []
    released: list[int] = []

    def released_with(state: TrainState) -> None:
        released.append(sum(other() is not None for other in seen))

    def watched(state: TrainState, *args: Any) -> Any:
        if not any(other() is state.model for other in seen):
            seen.append(weakref.ref(state.model))
        alive.append(sum(other() is not None for other in seen))
        return train_one_epoch(state, *args)

    monkeypatch.setattr(run_module, "train_one_epoch", watched)
    monkeypatch.setattr(run_module, "release_memory", released_with)
    stopped = start_run(settings(images, tmp_path, epochs=6, prune_interval=1), Recorder((3, 2)))
    resume_run(stopped.run.last, {}, Recorder())
    assert len(seen) > 4
    assert alive == [1] * (3 + 4)
    assert 0 < len(released) <= len(seen)
    assert set(released) == {0}  # of those that have trained: after a cut, when the network of before is gone


def test_only_a_cut_builds_and_compiles_anew(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer, and the graphs that the compiler sees."""
    compiled: list[object] = []
    built: list[object] = []
    graphs: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(module)
        return module.forward

    def build(*args: Any) -> torch.optim.Optimizer:
        built.append(args)
        return builder(*args)

    class Counter(Recorder):
        """Counts the graphs that there were after every epoch instead."""

        def epoch_ended(self, metrics: Metrics) -> None:
            graphs.append(len(compiled))

    compiler, builder = torch.compile, state_module.build_optimizer
    monkeypatch.setattr(torch, "compile", lambda model, **how: compiler(model, backend=backend, **how))
    monkeypatch.setattr(state_module, "build_optimizer", build)
    counter = Counter()
    start_run(settings(images, tmp_path, epochs=8, prune_interval=1, compile="default"), counter)
    cuts = [before != after for before, after in (event.change.params for event in counter.reconfigurations)]
    assert cuts[:3] == [False, False, True]
    assert len(built) == 1 + sum(cuts)
    grew = [after > before for before, after in pairwise([0, *graphs])]
    assert grew == [True, *cuts[:-1]]  # to train and to predict in the epoch that follows
