"""The schedule of lambda over a run: released, steered to a target, and the same after a resume."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Recorder, assert_same_state, repeatable, settings

from prunetrain.channels.slicing import propose_cut
from prunetrain.config import TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import read_graph
from prunetrain.library.prune import prune
from prunetrain.paths import RunPaths
from prunetrain.training import granularity
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.checkpoints import Progress, load_checkpoint
from prunetrain.training.creation import new_state
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.events import Uncut
from prunetrain.training.lasso_schedule import (
    epochs_to_target,
    most_macs,
    next_macs,
    next_strength,
    uncut_meaning,
    warning_target_unreachable,
    warning_too_few_epochs,
    why_target_missed,
)
from prunetrain.training.run import Outcome, resume_run, start_run

CPU = torch.device("cpu")


def test_without_a_target_lambda_stays() -> None:
    config = TrainConfig(epochs=8, target_macs=0.0)
    assert [next_strength(config, epoch, 0.5, 0.1) for epoch in range(1, 8)] == [0.5] * 7


def test_the_lasso_is_released_at_the_target_or_when_its_time_is_over() -> None:
    config = TrainConfig(epochs=8, target_macs=0.5, target_by=0.5)
    assert [next_strength(config, epoch, 0.5, 0.51) for epoch in range(1, 8)] == [0.5] * 3 + [0.0] * 4
    assert next_strength(config, 2, 0.5, 0.5) == 0.0


@pytest.mark.parametrize(
    ("interval", "by", "epochs"),
    [(1, 0.25, 5), (1, 0.26, 6), (1, 0.0, 2), (2, 0.25, 6), (5, 0.25, 10), (10, 0.25, 20), (1, 1.0, 20), (3, 1.0, 21), (1, 0.15, 3)],
)
def test_the_schedule_takes_whole_intervals_and_two_at_least(interval: int, by: float, epochs: int) -> None:
    assert epochs_to_target(TrainConfig(epochs=20, target_by=by, prune_interval=interval)) == epochs


@pytest.mark.parametrize(
    ("interval", "schedule"),
    [(1, {1: 0.8, 2: 0.6, 3: 0.4, 4: 0.2, 5: 0.2, 19: 0.2}), (2, {2: 0.6, 4: 0.2, 6: 0.2}), (5, {5: 0.2, 10: 0.2})],
)
def test_schedule_of_the_macs_by_hand(interval: int, schedule: dict[int, float]) -> None:
    """From 1 to 0.2 in the first 5 of 20 epochs, of which the first interval cuts nothing."""
    config = TrainConfig(epochs=20, target_by=0.25, target_macs=0.2, prune_interval=interval)
    assert {epoch: next_macs(config, epoch) for epoch in schedule} == pytest.approx(schedule)


def test_what_a_cut_may_leave_hangs_on_its_interval(images: Path, tmp_path: Path) -> None:
    """Of which the last, of epochs 7 and 8, is a short one."""
    config = settings(images, tmp_path, epochs=8, prune_interval=3, target_by=1.0, target_macs=0.4)
    state = new_state(config, RunPaths(tmp_path, "x"), load_data(config, CPU), Environment(CPU))
    for epoch, share in {3: 1.0, 6: 0.7, 8: 0.4}.items():
        state.progress = Progress(epoch=epoch, lasso_strength=0.1)
        assert most_macs(state) == pytest.approx(share * costs(state.dense).macs)
    state.progress = Progress(epoch=8, lasso_strength=0.0)
    assert most_macs(state) == math.inf


def zero_strengths(outcome: Outcome) -> list[bool]:
    """For every epoch, whether it had no lasso."""
    return [line["lasso"] == 0 for line in outcome.history]


@pytest.mark.parametrize("changes", [{}, {"model": "resnet20"}, {"lasso_groups": "slices", "lasso_step": "subgradient"}], ids=str)
def test_a_target_is_met_on_time_and_every_cut_is_free(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """A quarter of the MACs by the end of epoch 4 of 6, with a lasso that alone would cut nothing."""
    recorder = Recorder()
    config = settings(images, tmp_path, epochs=6, prune_interval=1, penalty_ratio=0.1, target_by=0.6, target_macs=0.25, **changes)
    outcome = start_run(config, recorder)
    left = [line["macs"] / outcome.history[0]["macs"] for line in outcome.history]
    assert left == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0.25], abs=0.02)
    assert left[4] <= 0.25
    assert zero_strengths(outcome) == [False] * 4 + [True] * 2
    assert [event.epoch for event in recorder.reconfigurations] == [1, 2, 3, 4, 6]
    assert all(before == after for before, after in (event.val_top1 for event in recorder.reconfigurations))


NET = """
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))).mean((2, 3)))
"""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_meet_the_target(images: Path, tmp_path: Path, seed: int) -> None:
    """Of a network in which one block more or less is a tenth of the MACs."""
    (tmp_path / "net.py").write_text(NET)
    config = settings(
        images,
        tmp_path,
        model=f"{tmp_path}/net.py:Net",
        round_to="auto",
        epochs=4,
        prune_interval=1,
        target_macs=0.5,
        target_by=0.5,
        penalty_ratio=0.1,
        seed=seed,
    )
    outcome = start_run(config, Recorder())
    assert 0.45 <= outcome.history[-1]["macs"] / outcome.history[0]["macs"] <= 0.5


STANDARDISED = """
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(variance + 1e-10), padding=1)


class Net(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv(n, 16, 3) for n in (input_shape[0], 16, 16))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(3))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return self.fc(x.mean((2, 3)))
"""


@pytest.mark.parametrize("target", [0.5, 0.0])
def test_weight_standardisation_reaches_a_target_by_fading_alone(images: Path, tmp_path: Path, target: float) -> None:
    """As in BiT. Without a target, it is said that nothing will be cut."""
    (tmp_path / "net.py").write_text(STANDARDISED)
    config = settings(images, tmp_path, model=f"{tmp_path}/net.py:Net", epochs=3, prune_interval=1, target_macs=target, penalty_ratio=0.1)
    recorder = Recorder()
    outcome = start_run(config, recorder)
    left = outcome.history[-1]["macs"] / outcome.history[0]["macs"]
    if target:
        assert left <= target
        assert recorder.messages == []
        read = next(tensor for tensor in read_graph(outcome.network).declared if tensor.role == "index")
        assert read.name == "convs_1_reads"
    else:
        assert left == 1
        assert len(recorder.messages) == 1
        assert "the group lasso, which acts on none of this network's" in recorder.messages[0]


@pytest.mark.parametrize("lasso_step", ["proximal", "subgradient"])
def test_a_network_as_small_as_its_target_has_no_lasso(images: Path, tmp_path: Path, lasso_step: str) -> None:
    """Not even in the epoch whose first batch would set its lambda."""
    dense = start_run(settings(images, tmp_path, epochs=3, prune_interval=1, target_macs=0.5), Recorder())
    outcome = prune(dense.run.last, method="group-lasso", epochs=2, target_macs=0.6, lasso_step=lasso_step, output_dir=str(tmp_path))
    assert [line["lasso_strength"] for line in outcome.history[3:]] == [0, 0]
    assert outcome.history[-1]["macs"] == costs(read_graph(dense.network)).macs


@pytest.mark.parametrize(
    ("changes", "meanings"),
    [
        ({"target_macs": 0.5}, {1: Uncut.YET, 3: Uncut.TARGET}),
        ({"target_macs": 0.0}, {1: Uncut.YET, 2: Uncut.YET, 3: Uncut.FINAL}),
        ({"target_macs": 0.001}, {1: Uncut.YET, 3: Uncut.FINAL}),
    ],
    ids=str,
)
def test_what_it_means_that_nothing_was_cut(images: Path, tmp_path: Path, changes: dict[str, Any], meanings: dict[int, Uncut]) -> None:
    """Three epochs with a lasso that alone cuts nothing; with a target, the cut after the second reaches what it can."""
    recorder = Recorder()
    start_run(settings(images, tmp_path, epochs=3, prune_interval=1, penalty_ratio=0.1, **changes), recorder)
    events = [event for event in recorder.reconfigurations if event.change.channels[0] == event.change.channels[1]]
    assert {event.epoch: event.uncut for event in events} == meanings


def test_of_single_channels_nothing_more_will_be_cut(images: Path, tmp_path: Path) -> None:
    config = settings(images, tmp_path, epochs=9, target_macs=0.001)
    state = new_state(config, RunPaths(tmp_path, "x"), load_data(config, CPU), Environment(CPU))
    assert uncut_meaning(state) is Uncut.YET
    nothing = {name: torch.zeros_like(tensor) for name, tensor in state.model.state_dict().items()}
    proposal = propose_cut(state.graph, nothing, threshold=1e-4, criterion="either")
    smallest = proposal.graph_for(proposal.plan())
    assert uncut_meaning(replace(state, graph=smallest, costs=costs(smallest))) is Uncut.FINAL


@pytest.mark.parametrize(
    ("changes", "schedule"),  # after which epoch at most which share of the MACs is left
    [
        ({"epochs": 4, "prune_interval": 1, "target_by": 0.75, "target_macs": 0.5}, {2: 0.75, 3: 0.5}),
        ({"epochs": 8, "prune_interval": 3, "target_by": 1.0, "target_macs": 0.4}, {6: 0.7, 8: 0.4}),  # the last interval is a short one
    ],
    ids=str,
)
def test_a_target_is_met_where_no_cut_would_be_faster(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], schedule: dict[int, float]
) -> None:
    """The clock says that the largest network is ten times as fast as any other."""

    def largest_is_fastest(graphs: list[LayerGraph], conditions: Conditions) -> list[float]:
        most = max(costs(graph).macs for graph in graphs)
        return [0.1 if costs(graph).macs == most else 1.0 for graph in graphs]

    monkeypatch.setattr(granularity, "_time_steps", largest_is_fastest)
    monkeypatch.setattr(
        granularity, "_effort", lambda steps, batch_size, warmup: granularity.Effort(layers=True, networks=6, batch_size=16)
    )
    outcome = start_run(settings(images, tmp_path, model="resnet20", penalty_ratio=0.1, round_to="auto", **changes), Recorder())
    dense = outcome.history[0]["macs"]
    for epoch, most in schedule.items():
        left = costs(read_graph(outcome.run.network(epoch))).macs / dense
        assert most - 0.15 < left <= most


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({}, None),
        ({"epochs": 2}, None),
        ({"epochs": 1}, "1 epoch is"),
        ({"epochs": 4, "prune_interval": 4}, "4 epochs are"),
        ({"epochs": 5, "prune_interval": 4}, None),
        ({"epochs": 9, "prune_interval": 4, "prune_at": 5}, "4 epochs after epoch 5 are"),
        ({"epochs": 5, "prune_at": 5}, "0 epochs after epoch 5 are"),
        ({"epochs": 1, "target_macs": 0.0}, None),
        ({"epochs": 1, "penalty_ratio": 0.0}, None),
    ],
    ids=str,
)
def test_a_run_that_is_too_short_for_its_target_says_so(changes: dict[str, Any], epochs: str | None) -> None:
    said = warning_too_few_epochs(TrainConfig(**changes))
    assert (said is None) if epochs is None else (said or "").startswith(f"{epochs} too few for --target-macs 0.5: ")


@pytest.mark.parametrize(
    (
        "changes",
        "most",
        "advice",
    ),  # of LeNet's 64 * 300 + 300 * 100 + 100 * 4 MACs 64 + 1 + 4 have to stay, and 2 * 64 * 64 + 64 * 4 in 64s
    [
        ({"target_macs": 0.002}, None, ""),
        ({"target_macs": 0.001}, "99.9%", "prunetrain inspect {network} shows what cannot, and why"),
        ({"target_macs": 0.1, "round_to": "64"}, "83.0%", "--round-to 64 keeps the rest, so give a smaller number"),
        ({"target_macs": 0.2, "round_to": "64"}, None, ""),
        ({"target_macs": 0.0}, None, ""),
        ({"target_macs": 0.001, "penalty_ratio": 0.0}, None, ""),
    ],
    ids=str,
)
def test_a_target_out_of_reach_is_known_before_training(
    images: Path, tmp_path: Path, changes: dict[str, Any], most: str | None, advice: str
) -> None:
    config = settings(images, tmp_path, **changes)
    state = new_state(config, RunPaths(tmp_path, "x"), load_data(config, CPU), Environment(CPU))
    said = f"--target-macs {config.target_macs:g} is out of reach, since at most {most} of the MACs can go: "
    assert warning_target_unreachable(state) == (said + advice.format(network=state.network) if most else None)


def test_a_missed_target_is_said_at_the_start_and_at_the_end(images: Path, tmp_path: Path) -> None:
    """At the start only once, however often the run is resumed."""
    first, second = Recorder((1, 3)), Recorder()
    stopped = start_run(settings(images, tmp_path, epochs=3, prune_interval=1, target_macs=0.001), first)
    (said,) = first.messages
    assert "out of reach" in said
    assert stopped.missed is None
    outcome = resume_run(stopped.run.last, {}, second)
    assert second.messages == [f"resuming from {stopped.run.last}"]
    assert outcome.missed == said.replace("epoch_000", "epoch_003")


def test_a_network_as_small_as_its_target_needs_no_epochs(images: Path, tmp_path: Path) -> None:
    first = start_run(settings(images, tmp_path, epochs=2, prune_interval=1, penalty_ratio=0.1, target_macs=0.5), Recorder())
    recorder = Recorder()
    assert prune(first.run.last, method="group-lasso", epochs=1, observer=recorder).missed is None
    assert recorder.messages == []


def test_a_target_that_is_met_is_not_missed(images: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    assert start_run(settings(images, tmp_path, prune_interval=1, penalty_ratio=0.1, target_macs=0.5), recorder).missed is None
    assert recorder.messages == []


@pytest.mark.parametrize(
    ("epochs", "why"),
    [
        (1, "1 epoch is too few for --target-macs 0.5: nothing is cut in the first --prune-interval (1), so train for at least 2 epochs"),
        (9, "100.0% of the MACs are left, but --target-macs is 0.5"),
    ],
)
def test_why_a_target_in_reach_was_missed(images: Path, tmp_path: Path, epochs: int, why: str) -> None:
    config = settings(images, tmp_path, epochs=epochs, prune_interval=1, target_macs=0.5)
    state = new_state(config, RunPaths(tmp_path, "x"), load_data(config, CPU), Environment(CPU))
    assert (why_target_missed(state) or "").startswith(why)


@pytest.mark.parametrize("stop", [(2, 10), (3, 1), (3, 6), (4, 10), (5, 4)], ids=str)
def test_the_schedule_resumes(images: Path, tmp_path: Path, stop: tuple[int, int]) -> None:
    changes: dict[str, Any] = {"epochs": 6, "penalty_ratio": 0.1, "target_macs": 0.5, "target_by": 0.67}
    whole = start_run(settings(images, tmp_path / "whole", **changes), Recorder())
    parts = start_run(settings(images, tmp_path / "parts", **changes), Recorder(stop))
    resumed = resume_run(parts.run.last, {}, Recorder())
    assert_same_state(load_checkpoint(resumed.run.last), load_checkpoint(whole.run.last))
    assert repeatable(resumed.history) == repeatable(whole.history)


def test_the_schedule_goes_on_from_the_checkpoint_of_a_cut(images: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 6, "prune_interval": 1, "penalty_ratio": 0.1, "target_macs": 0.5, "target_by": 0.5}
    outcome = start_run(settings(images, tmp_path, **changes), Recorder())
    last = load_checkpoint(outcome.run.last)
    again = resume_run(outcome.run.checkpoint(2), {}, Recorder())
    assert_same_state(load_checkpoint(again.run.last), last)
    assert repeatable(again.history) == repeatable(outcome.history)


def test_a_resumed_run_may_have_another_interval(images: Path, tmp_path: Path) -> None:
    """The channels that were fading are of the network before the cut."""
    changes: dict[str, Any] = {"epochs": 6, "prune_interval": 1, "penalty_ratio": 0.1, "target_macs": 0.5, "target_by": 0.67}
    outcome = start_run(settings(images, tmp_path, **changes), Recorder((3, 10)))
    assert load_checkpoint(outcome.run.checkpoint(2)).progress.fading == []
    assert load_checkpoint(outcome.run.last).progress.fading != []
    resumed = resume_run(outcome.run.last, {"prune_interval": 2}, Recorder())
    assert costs(read_graph(resumed.network)).macs <= 0.5 * resumed.history[0]["macs"]
