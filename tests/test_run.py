"""A whole run with two reconfigurations: its files, its metrics, its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import RESNET, Recorder, assert_same_state, repeatable, settings, write_images

from prunetrain.config import TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph, sha256_of
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment, warning_images_left_out
from prunetrain.training.events import Metrics, Reconfiguration
from prunetrain.training.loop import evaluate
from prunetrain.training.pairs import read_pair
from prunetrain.training.run import Outcome, resume_run, start_run
from prunetrain.training.state import load_state

CPU = torch.device("cpu")
FIELDS = """
epoch train_loss lasso train_top1 val_loss val_top1 lr lasso_strength batch_size macs params nonzero_params channels train_macs_total
train_images_total epoch_seconds images_per_second peak_memory_bytes workers gradient_bytes
""".split()


class Witness(Recorder):
    """Also keeps the bytes of every network file as it was when it was new, and of the metrics after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.networks: dict[Path, bytes] = {}
        self.lines: list[list[str]] = []

    def epoch_ended(self, metrics: Metrics) -> None:
        super().epoch_ended(metrics)
        (file,) = self.folder.glob("checkpoints/*/metrics.jsonl")
        self.lines.append(file.read_text().splitlines())

    def reconfigured(self, event: Reconfiguration) -> None:
        super().reconfigured(event)
        self.networks[event.network] = event.network.read_bytes()

    folder: Path


@pytest.fixture(scope="module")
def ran(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Outcome, Witness]:
    """ResNet-20, four epochs of ten steps, cut after the second and the fourth."""
    witness = Witness()
    witness.folder = tmp_path_factory.mktemp("run")
    config = settings(images, witness.folder, **RESNET)
    return config, start_run(config, witness), witness


@pytest.fixture
def outcome(ran: tuple[TrainConfig, Outcome, Witness]) -> Outcome:
    return ran[1]


@pytest.fixture
def witness(ran: tuple[TrainConfig, Outcome, Witness]) -> Witness:
    return ran[2]


def test_files(outcome: Outcome) -> None:
    assert outcome.run.name == "resnet20-npz"
    assert sorted(path.name for path in outcome.run.networks.iterdir()) == ["epoch_000.py", "epoch_002.py", "epoch_004.py"]
    assert sorted(path.name for path in outcome.run.checkpoints.iterdir()) == [
        "epoch_000.pt",
        "epoch_002.pt",
        "epoch_004.pt",
        "last.pt",
        "metrics.jsonl",
    ]
    assert outcome.finished
    assert outcome.network == outcome.run.network(4)


def test_every_reconfiguration_cut(witness: Witness) -> None:
    assert [event.epoch for event in witness.reconfigurations] == [2, 4]
    for event in witness.reconfigurations:
        assert event.change.channels[1] < event.change.channels[0]
        assert event.change.macs[1] < event.change.macs[0]
    first, second = (event.change for event in witness.reconfigurations)
    assert (first.channels[1], first.macs[1], first.params[1]) == (second.channels[0], second.macs[0], second.params[0])


def test_network_files_never_change(outcome: Outcome, witness: Witness) -> None:
    assert list(witness.networks) == [outcome.run.network(2), outcome.run.network(4)]
    for path, content in witness.networks.items():
        assert path.read_bytes() == content


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_every_network_loads_with_its_checkpoint(ran: tuple[TrainConfig, Outcome, Witness], epoch: int) -> None:
    config, outcome, _ = ran
    checkpoint = load_checkpoint(outcome.run.checkpoint(epoch))
    network = outcome.run.network(epoch)
    assert (checkpoint.network, checkpoint.network_sha256) == (network.name, sha256_of(network.read_text()))
    assert (checkpoint.progress.epoch, checkpoint.progress.step) == (epoch, 0)
    state = load_state(read_pair(outcome.run.checkpoint(epoch)), config, load_data(config, CPU), Environment(CPU))
    data = load_data(config, CPU)
    if epoch:
        assert evaluate(state, data).top1 == outcome.history[epoch - 1]["val_top1"]  # measured before the cut


def test_last_checkpoint_is_that_of_the_last_epoch(outcome: Outcome) -> None:
    assert_same_state(load_checkpoint(outcome.run.last), load_checkpoint(outcome.run.checkpoint(4)))
    assert load_checkpoint(outcome.run.last).progress.history == outcome.history


def test_cuts_of_exact_zeros_keep_the_accuracy(witness: Witness) -> None:
    assert [event.val_top1 for event in witness.reconfigurations] == [
        (line["val_top1"], line["val_top1"]) for line in (witness.metrics[1], witness.metrics[3])
    ]


def test_metrics_have_the_documented_fields(outcome: Outcome) -> None:
    documented = (Path(__file__).parent.parent / "docs" / "files.md").read_text(encoding="utf-8").partition("## A line of metrics")[2]
    for line in outcome.history:
        assert list(line) == FIELDS
    for name in FIELDS:
        assert f"`{name}`" in documented


def test_a_line_of_metrics_an_epoch(outcome: Outcome, witness: Witness) -> None:
    lines = outcome.run.metrics.read_text().splitlines()
    assert [json.loads(line) for line in lines] == outcome.history == witness.metrics
    assert witness.lines == [lines[:number] for number in (1, 2, 3, 4)]
    assert [line["epoch"] for line in outcome.history] == [1, 2, 3, 4]


def test_costs_are_those_of_the_network_that_trained(outcome: Outcome) -> None:
    total = 0
    for line, epoch in zip(outcome.history, (0, 0, 2, 2), strict=True):
        cost = costs(read_graph(outcome.run.network(epoch)))
        assert (line["macs"], line["params"], line["channels"]) == (cost.macs, cost.params, cost.channels)
        total += 3 * cost.macs * 320
        assert line["train_macs_total"] == total
        assert line["train_images_total"] == 320 * line["epoch"]
        assert line["epoch_seconds"] * line["images_per_second"] == pytest.approx(320)
        assert line["batch_size"] == 32
        assert 2**20 < line["peak_memory_bytes"] < 2**40


def test_rates_losses_and_shares(outcome: Outcome) -> None:
    assert [line["lr"] for line in outcome.history] == pytest.approx([0.1, 0.1, 0.01, 0.01])  # of the step that comes next
    for line in outcome.history:
        assert 0 <= line["train_top1"] <= 1
        assert 0 <= line["val_top1"] <= 1
        assert line["train_loss"] > 0
        assert line["val_loss"] > 0


def test_lasso_is_lambda_times_the_norms(ran: tuple[TrainConfig, Outcome, Witness]) -> None:
    config, outcome, _ = ran
    state = load_state(read_pair(outcome.run.last), config, load_data(config, CPU), Environment(CPU))
    assert state.lasso
    assert state.progress.lasso_strength
    assert outcome.history[-1]["lasso"] == pytest.approx(state.progress.lasso_strength * float(state.lasso.penalty()), rel=1e-5)


def test_second_run_of_a_name_does_not_overwrite(images: Path, tmp_path: Path) -> None:
    config = settings(images, tmp_path, name="mine", epochs=1)
    first = start_run(config, Recorder())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    second = start_run(config, Recorder())
    assert (first.run.name, second.run.name) == ("mine", "mine-2")
    assert {path: path.read_bytes() for path in before} == before
    assert load_checkpoint(second.run.last).config["name"] == "mine-2"


def test_same_seed_same_run(images: Path, tmp_path: Path) -> None:
    runs = [start_run(settings(images, tmp_path, seed=seed), Recorder()) for seed in (3, 3, 4)]
    first, second, other = (load_checkpoint(run.run.last) for run in runs)
    assert_same_state(first, second)
    assert repeatable(runs[0].history) == repeatable(runs[1].history)
    assert runs[0].history[0]["train_loss"] != runs[2].history[0]["train_loss"]
    assert not torch.equal(first.rng["cpu"], other.rng["cpu"])


@pytest.mark.parametrize("threshold", [1e-4, 1e9])
def test_without_penalty_nothing_is_cut(images: Path, tmp_path: Path, threshold: float) -> None:
    recorder = Recorder()
    outcome = start_run(settings(images, tmp_path, penalty_ratio=0.0, threshold=threshold), recorder)
    assert recorder.reconfigurations == []
    assert [path.name for path in outcome.run.networks.iterdir()] == ["epoch_000.py"]
    assert {line["macs"] for line in outcome.history} == {costs(read_graph(outcome.run.network(0))).macs}
    assert {line["lasso"] for line in outcome.history} == {0.0}
    assert load_checkpoint(outcome.run.last).progress.lasso_strength is None


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [({"epochs": 3}, [2, 3]), ({"epochs": 1}, [1]), ({"prune_interval": 1}, [1, 2, 3, 4]), ({"prune_interval": 9}, [4])],
)
def test_reconfigures_every_interval_and_at_the_end(images: Path, tmp_path: Path, changes: dict[str, Any], epochs: list[int]) -> None:
    recorder = Recorder()
    outcome = start_run(settings(images, tmp_path, **changes), recorder)
    assert [event.epoch for event in recorder.reconfigurations] == epochs
    assert list(outcome.run.network_files()) == [0, *epochs]


def test_channel_counts_are_multiples(images: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = start_run(settings(images, tmp_path, round_to="8"), recorder)
    counts = [layer["out_features"] for layer in read_graph(outcome.network).layers]
    assert {event.change.granularity for event in recorder.reconfigurations} == {8}
    assert counts[0] % 8 == counts[1] % 8 == 0 or counts[1] == 100
    assert counts[0] < 300


def test_threshold_over_everything_keeps_a_channel_of_each_space(images: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = start_run(settings(images, tmp_path, threshold=1e9), recorder)
    assert [layer["out_features"] for layer in read_graph(outcome.network).layers] == [1, 1, 4]
    assert recorder.reconfigurations[0].change.rescued_spaces == ("fc1", "fc2")
    assert outcome.finished


def test_run_in_its_folder(images: Path, tmp_path: Path) -> None:
    outcome = start_run(settings(images, tmp_path / "new" / "folder", name="x", epochs=1), Recorder())
    assert outcome.run == RunPaths((tmp_path / "new" / "folder").resolve(), "x")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["checkpoints", "generated_nets"]


@pytest.mark.parametrize(
    ("images", "batch_size", "workers", "said"),
    [
        (60, 32, 1, "28 of 60 images: --batch-size 30 uses all"),
        (60, 32, 4, "28 of 60 images: --batch-size 20 uses all"),
        (2000, 512, 8, "464 of 2,000 images: --batch-size 496 leaves out 16"),
        (39, 20, 1, "19 of 39 images: --batch-size 19 leaves out 1"),
        (17, 16, 1, "1 of 17 images"),
        (60, 30, 1, None),
        (60, 19, 1, None),  # 3, one in twenty
        (60, 14, 1, "4 of 60 images: --batch-size 12 uses all"),  # and 13 leaves out 8
    ],
)
def test_what_an_epoch_leaves_out(images: int, batch_size: int, workers: int, said: str | None) -> None:
    assert warning_images_left_out(images, batch_size, workers) == (said and f"an epoch leaves out {said}")


def test_a_run_says_once_what_its_epochs_leave_out(tmp_path: Path) -> None:
    images = write_images(tmp_path / "few.npz", train=60, val=8)
    first, second = Recorder(), Recorder()
    outcome = start_run(settings(images, tmp_path, epochs=1), first)
    assert first.messages == ["an epoch leaves out 28 of 60 images: --batch-size 30 uses all"]
    resume_run(outcome.run.last, {"epochs": 2}, second)
    assert second.messages == [f"resuming from {outcome.run.last}"]
