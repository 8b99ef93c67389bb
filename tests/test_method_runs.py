"""Methods inside runs: masks that hold, ADMM, soft filters, rewinding, rounds; whatever stops a run, it goes on bit for bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Recorder, assert_identical, assert_same_run, assert_same_state, invoke, settings, write_images
from torch import Tensor

from prunetrain.config import TrainConfig
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.library.prune import prune
from prunetrain.method_settings import FILTER_METHODS, METHOD_SETTINGS, METHODS, METHODS_BY_SETTING
from prunetrain.methods import entry, names
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import load_checkpoint, save_checkpoint
from prunetrain.training.optimizers import lr_factor
from prunetrain.training.pruned_run import pruning_config
from prunetrain.training.run import Outcome, resume_run, start_run

MLP = {"model": "lenet-300-100", "lr": 0.05}
CONVS = {"model": "lenet5", "lr": 0.02, "weight_decay": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "fixed mask": MLP | {"method": "magnitude", "rate": 0.9},
    "fixed mask, AdamW": MLP | {"method": "random-weights", "rate": 0.8, "optimizer": "adamw", "lr": 1e-3},
    "ADMM": MLP | {"method": "admm", "rate": 0.9, "prune_at": 3, "rho": 0.01, "rho_factor": 2.0, "rho_max": 0.1},
    "ADMM on filters": CONVS
    | {"method": "admm", "rate": 0.5, "prune_at": 2, "structure": "filters", "slice": True, "rho": 0.1, "retrain": "lr-restart"},
    "soft filters": CONVS | {"method": "fpgm", "rate": 0.4, "prune_at": 3},
    "rounds": CONVS | {"method": "filter-l2", "rate": 0.5, "prune_at": 2, "rounds": 2, "retrain": "weight-rewind", "rewind_epoch": 1},
    "tickets": MLP
    | {"method": "magnitude", "rate": 0.75, "prune_at": 2, "rounds": 2, "retrain": "init-rewind", "momentum": 0.5, "epochs": 6},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npz", side=16)


def of(images: Path, folder: Path, **changes: Any) -> TrainConfig:
    return settings(images, folder, **{"penalty_ratio": 0.0, "batch_size": 64, **changes})


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, Recorder, dict[str, Any]]:
    """A run of 4 epochs of 5 steps that nothing stopped."""
    recorder, changes = Recorder(), CASES[request.param]
    return start_run(of(images, tmp_path_factory.mktemp("reference"), **changes), recorder), recorder, changes


def test_a_run_that_was_stopped_goes_on_bit_for_bit(case: tuple[Outcome, Recorder, dict[str, Any]], images: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, and at the ends of those after which the method acts, before the validation."""
    reference, _, changes = case
    outcome = start_run(of(images, tmp_path, **changes), Recorder((1, 5)))
    for stop in ((2, 5), (3, 2), (3, 5), None):
        assert not outcome.finished
        outcome = resume_run(outcome.run.last, {}, Recorder(stop))
    assert outcome.finished
    assert_same_run(outcome.run, reference.run)
    left, right = (load_checkpoint(run.last).method for run in (outcome.run, reference.run))
    assert_identical(left, right, "method")


def kept(outcome: Outcome) -> dict[str, Tensor]:
    return load_checkpoint(outcome.run.last).method["tensors"]["keep"]


def test_masks_hold_to_the_end_and_the_sparsity_is_what_was_asked(case: tuple[Outcome, Recorder, dict[str, Any]]) -> None:
    outcome, recorder, changes = case
    state = load_checkpoint(outcome.run.last).model
    if changes["method"] in ("magnitude", "random-weights") or (changes["method"] == "admm" and not changes.get("slice")):
        for name, mask in kept(outcome).items():
            assert int((~mask).sum()) == mask.numel() * int(changes["rate"] * 100) // 100
            assert not state[name][~mask].any()
            assert state[name][mask].any()
        assert outcome.history[-1]["sparsity"] == pytest.approx(changes["rate"], abs=1e-3)
        assert outcome.nonzero_params == outcome.history[-1]["nonzero_params"]
    else:
        dense, now = read_graph(outcome.run.network(0)), read_graph(outcome.network)
        was, left = (graph.layer("conv2")["out_channels"] for graph in (dense, now))
        assert left == was - int(changes["rate"] * was)
    rounds = changes.get("rounds", 1)
    assert len(recorder.reconfigurations) == (rounds if changes.get("prune_at") else 0)


def test_admm_tells_its_residuals(images: Path, tmp_path: Path) -> None:
    """The pull brings the weights ever closer to sparse ones."""
    changes = MLP | {"method": "admm", "rate": 0.9, "epochs": 8, "prune_at": 8, "rho": 1.0, "momentum": 0.0, "batch_size": 16}
    changes |= {"lr": 0.1, "schedule": "constant"}
    recorder = Recorder()
    history = start_run(of(images, tmp_path, **changes), recorder).history
    assert history[-1]["admm_relative"] < 0.25 * history[0]["admm_relative"]
    assert {line["admm_rho"] for line in history} == {1.0}
    (event,) = recorder.reconfigurations
    assert event.nonzero is not None
    assert event.nonzero[1] < 0.11 * event.nonzero[0]


def test_soft_filters_are_zero_at_the_end_of_an_epoch(images: Path, tmp_path: Path) -> None:
    """Before the cut the network has its size, and after every epoch its weakest filters are zero."""
    outcome = start_run(of(images, tmp_path, **CONVS, method="filter-l2", rate=0.5, epochs=2, prune_at=2, save_epochs=(1,)), Recorder())
    weights = load_checkpoint(outcome.run.checkpoint(1)).model["conv2.weight"]
    assert weights.shape[0] == 50
    assert int((weights.flatten(1) == 0).all(1).sum()) == 25
    assert load_checkpoint(outcome.run.last).model["conv2.weight"].shape[0] == 25


@pytest.mark.parametrize("layer_rates", [(), ("conv2=0.64",)], ids=["all layers", "one layer"])
@pytest.mark.parametrize("method", ["filter-l2", "admm"])
def test_before_the_first_of_several_rounds_a_method_acts_at_its_rate(
    images: Path, tmp_path: Path, method: str, layer_rates: tuple[str, ...]
) -> None:
    """Not at the last one's, which would take what this round is to leave: 40% of 50 filters and then 40% of the rest go, 64% in all."""
    changes = CONVS | {"method": method, "rate": 0.0 if layer_rates else 0.64, "layer_rates": layer_rates}
    changes |= {"rounds": 2, "epochs": 4, "prune_at": 2, "structure": "filters" if method == "admm" else "weights"}
    outcome = start_run(of(images, tmp_path, **changes, save_epochs=(1,)), Recorder())
    left = []
    for epoch in (1, 2, 3):
        checkpoint = load_checkpoint(outcome.run.checkpoint(epoch))
        weight = checkpoint.method["tensors"].get("z", checkpoint.model)["conv2.weight"]
        left.append(int((weight.flatten(1) != 0).any(1).sum()))
    assert left == [30, 30, 18]


@pytest.mark.parametrize(
    "changes",
    [{"method": "filter-l2"}, {"method": "magnitude", "structure": "filters", "slice": True}, {"method": "filter-l2", "rounds": 2}],
    ids=["filters", "masks", "rounds"],
)
def test_round_to_is_for_all_methods(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    recorder = Recorder()
    outcome = start_run(of(images, tmp_path, **CONVS, **changes, rate=0.3, epochs=3, prune_at=1, round_to="8"), recorder)
    channels = {layer.name: layer["out_channels"] for layer in read_graph(outcome.network).layers if layer.kind == "Conv2d"}
    assert channels == {"conv1": 16, "conv2": 40}  # of 20 and 50; without rounding 14 and 35


def test_rewinding_takes_the_weights_back(images: Path, tmp_path: Path) -> None:
    """Right after each pruning the weights are those of the epoch to go back to, with zeros."""
    changes = MLP | {"method": "magnitude", "rate": 0.75, "prune_at": 2, "rounds": 2, "retrain": "weight-rewind", "rewind_epoch": 1}
    outcome = start_run(of(images, tmp_path, **changes, save_epochs=(1,)), Recorder())
    early = load_checkpoint(outcome.run.checkpoint(1))
    for epoch, share in ((2, 0.5), (3, 0.75)):
        pruned = load_checkpoint(outcome.run.checkpoint(epoch))
        for name, mask in pruned.method["tensors"]["keep"].items():
            assert torch.equal(pruned.model[name], early.model[name] * mask)
            assert int((~mask).sum()) == int(share * mask.numel())
        assert pruned.optimizer == {}
    first, second = (load_checkpoint(outcome.run.checkpoint(epoch)).method["tensors"]["keep"]["fc1.weight"] for epoch in (2, 3))
    assert not (second & ~first).any()


@pytest.mark.parametrize("method", ["magnitude", "filter-l2"])
@pytest.mark.parametrize(("retrain", "epoch"), [("init-rewind", 0), ("weight-rewind", 1)])
def test_every_round_takes_all_weights_back(images: Path, tmp_path: Path, method: str, retrain: str, epoch: int) -> None:
    """Those that no pruning has touched as well, which a checkpoint has but once: biases, and the weights behind the cuts."""
    changes = CONVS | {"method": method, "rate": 0.5, "prune_at": 2, "rounds": 3, "retrain": retrain, "rewind_epoch": epoch}
    again = 2 - epoch
    outcome = start_run(of(images, tmp_path, **changes, epochs=2 + 3 * again, save_epochs=(1,)), Recorder())
    early = load_checkpoint(outcome.run.checkpoint(epoch)).model
    for round_ in range(3):
        pruned = load_checkpoint(outcome.run.checkpoint(2 + round_ * again))
        masks = pruned.method["tensors"].get("keep", {})
        whole = [name for name, tensor in pruned.model.items() if tensor.shape == early[name].shape]
        assert {"fc1.bias", "fc2.weight", "fc2.bias"} <= set(whole)
        for name in whole:
            assert torch.equal(pruned.model[name], early[name] * masks[name] if name in masks else early[name]), (round_, name)


@pytest.mark.parametrize(
    ("retrain", "rewind_epoch", "expected"),
    [
        ("finetune", 0, [1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("lr-rewind", 1, [1, 0.1, 0.01, 0.1, 0.01, 0.1, 0.01]),  # a schedule of 3 epochs, of which each round has the last two
    ],
)
def test_the_schedule_goes_back_with_every_round(retrain: str, rewind_epoch: int, expected: list[float]) -> None:
    changes: dict[str, Any] = {"retrain": retrain, "rewind_epoch": rewind_epoch} if rewind_epoch else {}
    config = TrainConfig(method="magnitude", rate=0.5, epochs=7, prune_at=3, rounds=2, **changes)
    assert config.schedule_epochs == (3 if rewind_epoch else 7)
    factor = lr_factor(config, steps_per_epoch=10)
    assert [factor(10 * epoch + 5) for epoch in range(7)] == pytest.approx(expected)


def test_a_restart_warms_up_and_falls_to_zero_in_every_round() -> None:
    """After the schedule of the epochs before the pruning, whatever it was."""
    config = TrainConfig(method="magnitude", rate=0.5, epochs=7, prune_at=3, rounds=2, retrain="lr-restart")
    factors = list(map(lr_factor(config, steps_per_epoch=10, growth=2.0), range(71)))
    assert factors[:30] == pytest.approx([2.0] * 10 + [0.2] * 10 + [0.02] * 10)
    assert factors[30:33] == [1.0, 2.0, 2.0]
    assert factors[41] == pytest.approx(1.0)  # half of the 18 steps after the warm-up
    assert 0 < factors[49] < 0.02
    assert factors[50:70] == factors[30:50]
    assert factors[70] == 0.0
    alone = TrainConfig(prune_at=3, epochs=5, retrain="lr-restart")  # the group lasso
    assert list(map(lr_factor(alone, steps_per_epoch=10, growth=2.0), range(51)))[:50] == factors[:50]


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_a_method_that_acts_on_a_trained_network_has_the_learning_rate_of_fine_tuning(trained: Outcome, schedule: str) -> None:
    config = pruning_config(trained.run.last, {"method": "admm", "rate": 0.5, "retrain": "lr-rewind", "schedule": schedule}, during=2)
    assert (config.prune_at, config.epochs, config.schedule_epochs) == (5, 8, 3)
    factor = lr_factor(config, steps_per_epoch=10)
    factors = [factor(10 * epoch + 5) for epoch in range(8)]
    assert factors[3:5] == [0.1, 0.1]
    assert factors[:3] == factors[5:]


def test_also_before_a_restart(trained: Outcome) -> None:
    given = {"method": "admm", "rate": 0.5, "retrain": "lr-restart"}
    config = pruning_config(trained.run.last, given, epochs=2, during=2)
    factors = list(map(lr_factor(config, steps_per_epoch=10), range(70)))
    assert (config.lr, factors[30:50]) == (CONVS["lr"], [0.1] * 20)
    assert (factors[50], factors[51], factors[61]) == (0.5, 1.0, pytest.approx(0.5))


@pytest.mark.parametrize("changes", [{"prune_at": 2}, {"prune_at": 3, "rewind_epoch": 3}, {"prune_at": 4, "rewind_epoch": 1}], ids=str)
def test_what_is_trained_again_was_trained_before(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = of(images, tmp_path, **CONVS, method="fpgm", rate=0.5, epochs=6, retrain="lr-rewind", **changes)
    with pytest.raises(ConfigError, match="change --epochs or --prune-at"):
        start_run(config, Recorder())


def test_the_lasso_rewinds_nothing() -> None:
    with pytest.raises(ConfigError, match=r"^group-lasso continues training and rewinds nothing"):
        TrainConfig(retrain="lr-rewind", prune_at=2, epochs=4)


def test_and_stays_so_when_it_is_resumed(images: Path, tmp_path: Path) -> None:
    config = of(images, tmp_path, **CONVS, method="fpgm", rate=0.5, epochs=4, prune_at=2, retrain="lr-rewind")
    stopped = start_run(config, Recorder((1, 2)))
    with pytest.raises(ConfigError, match=r"^--epochs cannot change when a run is resumed"):
        resume_run(stopped.run.last, {"epochs": 6}, Recorder())
    assert resume_run(stopped.run.last, {"epochs": 4}, Recorder()).finished


# A trained network, pruned by `prune`.


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return start_run(of(images, tmp_path_factory.mktemp("trained"), **CONVS, epochs=3, save_epochs=(1,), name="base"), Recorder())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("group-lasso", "magnitude-std", "2:4")])
def test_every_method_prunes_a_checkpoint(trained: Outcome, tmp_path: Path, method: str) -> None:
    before = trained.run.last.read_bytes()
    outcome = prune(trained.run.last, method=method, rate=0.5, epochs=1, output_dir=str(tmp_path))
    assert [line["epoch"] for line in outcome.history] == list(range(1, 6 if method == "admm" else 5))
    assert json.loads(outcome.run.metrics.read_text().splitlines()[-1]) == outcome.history[-1]
    assert outcome.history[-1]["lr"] == pytest.approx(CONVS["lr"] / 10)
    assert outcome.run.name == f"base-{method}"
    assert outcome.run.network(0).read_bytes() == trained.run.network(0).read_bytes()
    assert trained.run.last.read_bytes() == before
    params = outcome.nonzero_params
    assert params is not None
    assert params < 0.85 * trained.history[-1]["params"]


def test_what_was_fine_tuned_is_fine_tuned_on_at_its_rate(trained: Outcome, tmp_path: Path) -> None:
    first = prune(trained.run.last, method="filter-l2", rate=0.2, epochs=1, output_dir=str(tmp_path))
    second = prune(first.run.last, method="filter-l2", rate=0.2, epochs=1, output_dir=str(tmp_path))
    assert [line["lr"] for line in second.history] == [*(line["lr"] for line in first.history), first.history[-1]["lr"]]
    assert first.history[-1]["lr"] == pytest.approx(CONVS["lr"] / 10)


def test_a_schedule_that_was_not_trained_is_not_trained_again(trained: Outcome, tmp_path: Path) -> None:
    """A fine-tuned run says that its learning rate is constant; its first epochs had another one."""
    asked: dict[str, Any] = {"method": "unit", "output_dir": str(tmp_path)}
    tuned = prune(trained.run.last, **asked, rate=0.2, epochs=1).run
    with pytest.raises(ConfigError, match="was retrained from epoch 3 on, and has no schedule of the epochs before"):
        prune(tuned.last, **asked, rate=0.5, retrain="lr-rewind")
    again = prune(tuned.last, **asked, rate=0.5, retrain="lr-rewind", rewind_epoch=3)  # to where fine-tuning began
    assert [line["lr"] for line in again.history[3:]] == pytest.approx([CONVS["lr"] / 10] * 2)


def test_pruning_without_retraining(trained: Outcome, tmp_path: Path) -> None:
    outcome = prune(trained.run.last, method="2:4", rate=0.5, epochs=0, output_dir=str(tmp_path))
    weight = load_checkpoint(outcome.run.last).model["conv2.weight"]
    assert ((weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1) == 2).all()
    assert outcome.history == trained.history
    assert outcome.val_top1 is not None
    assert 0 <= outcome.val_top1 <= 1
    again = prune(trained.run.last, method="2:4", rate=0.5, epochs=0, output_dir=str(tmp_path), resume=True)
    assert (again.run, again.val_top1) == (outcome.run, outcome.val_top1)


def test_the_lasso_goes_on_after_training(trained: Outcome, tmp_path: Path) -> None:
    outcome = prune(trained.run.last, method="group-lasso", penalty_ratio=0.99, epochs=4, output_dir=str(tmp_path), lr=0.1)
    lines = outcome.history[3:]
    assert 0 < lines[-1]["lasso"] < lines[0]["lasso"]
    rates = [line["lr"] for line in lines]  # each of the epoch that follows
    assert 0.1 > rates[0] > rates[1] > rates[2] > rates[3] == 0.0


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "lr-restart"), ({"retrain": "finetune"}, "finetune"), ({"method": "unit"}, "finetune")]
)
def test_the_lasso_restarts_the_learning_rate_unless_asked_otherwise(trained: Outcome, given: dict[str, Any], expected: str) -> None:
    config = pruning_config(trained.run.last, {"method": "group-lasso"} | given)
    assert (config.retrain, config.epochs) == (expected, 13)
    assert pruning_config(trained.run.checkpoint(0), {"method": "group-lasso"} | given).retrain == expected  # of an untrained network
    assert config.lr == pytest.approx(CONVS["lr"] * (1 if expected == "lr-restart" else 0.1))


@pytest.mark.parametrize(("retrain", "share"), [("finetune", 1.0), ("lr-restart", 0.1)])
def test_a_constant_rate_is_that_of_fine_tuning_unless_it_restarted(trained: Outcome, tmp_path: Path, retrain: str, share: float) -> None:
    checkpoint = load_checkpoint(trained.run.last)
    path = RunPaths(tmp_path, "x").last
    path.parent.mkdir(parents=True)
    settings_of_it = {"method": "unit", "rate": 0.5, "schedule": "constant", "prune_at": 2, "retrain": retrain}
    save_checkpoint(path, replace(checkpoint, config=checkpoint.config | settings_of_it))
    assert pruning_config(path, {"method": "fpgm", "rate": 0.5}).lr == pytest.approx(CONVS["lr"] * share)


def test_what_a_restart_leads_to(trained: Outcome, tmp_path: Path) -> None:
    """A run that is stopped goes on as it began; a finished one is fine-tuned at a tenth of its rate, and has no schedule to rewind."""
    common: dict[str, Any] = {"method": "group-lasso", "epochs": 2, "output_dir": str(tmp_path)}
    whole = prune(trained.run.last, **common, name="whole")
    for name, asked in (("restarted", {}), ("tuned", {"retrain": "finetune"})):
        assert not prune(trained.run.last, **common, **asked, name=name, observer=Recorder((4, 2))).finished
        assert prune(trained.run.last, **common, name=name, resume=True).finished
    runs = {name: load_checkpoint(RunPaths(tmp_path, name).last) for name in ("whole", "restarted", "tuned")}
    assert [checkpoint.config["retrain"] for checkpoint in runs.values()] == ["lr-restart", "lr-restart", "finetune"]
    assert_identical(runs["restarted"].model, runs["whole"].model)
    with pytest.raises(ConfigError, match="--retrain cannot change"):
        prune(trained.run.last, **common, name="tuned", retrain="lr-restart", resume=True)
    for given in ({"schedule": "constant"}, {"milestones": (1,)}):  # would change nothing
        with pytest.raises(ConfigError, match=f"--{next(iter(given))} cannot change"):
            resume_run(whole.run.last, given, Recorder())
    assert pruning_config(whole.run.last, {"method": "unit", "rate": 0.5}).lr == pytest.approx(CONVS["lr"] / 10)
    with pytest.raises(ConfigError, match="was retrained from epoch 3 on, and has no schedule of the epochs before"):
        pruning_config(whole.run.last, {"method": "unit", "rate": 0.5, "retrain": "lr-rewind"})


@pytest.fixture(scope="module")
def halved(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that came to half of its MACs, and has no lasso since."""
    changes = {"penalty_ratio": 0.1, "target_macs": 0.5, "prune_interval": 1, "epochs": 3, "batch_size": 16}
    return start_run(of(images, tmp_path_factory.mktemp("halved"), **CONVS, **changes, name="base"), Recorder())


@pytest.mark.parametrize("source", ["trained", "halved"])
def test_the_lasso_takes_a_trained_network_to_a_target(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In a schedule that begins where the run does, whatever its source's lambda was: dense networks have none, those at their target 0."""
    run = request.getfixturevalue(source).run
    outcome = prune(run.last, method="group-lasso", target_macs=0.2, target_by=1.0, prune_interval=1, epochs=5, output_dir=str(tmp_path))
    dense, lines = costs(read_graph(run.network(0))).macs, outcome.history[3:]
    assert all(line["lasso"] > 0 for line in lines)
    assert [round(line["macs"] / dense, 1) >= least for line, least in zip(lines, (0.5, 0.5, 0.5, 0.5, 0.4), strict=True)] == [True] * 5
    assert costs(read_graph(outcome.network)).macs <= 0.2 * dense


def test_a_batch_that_has_grown_is_forgotten(tmp_path: Path) -> None:
    changes = MLP | {"penalty_ratio": 0.97, "batch_size": 8, "dynamic_batch": True, "max_batch_size": 40}
    run = start_run(of(write_images(tmp_path / "images.npz", train=400), tmp_path, **changes), Recorder()).run
    assert load_checkpoint(run.last).progress.batch_size == 40
    outcome = prune(run.last, method="magnitude", rate=0.5, epochs=1)
    assert load_checkpoint(outcome.run.last).progress.batch_size is None
    assert outcome.history[-1]["lr"] == pytest.approx(0.1 * 0.05)


def test_prune_at_is_where_the_schedule_begins(images: Path, tmp_path: Path) -> None:
    changes = {
        "penalty_ratio": 0.1,
        "target_macs": 0.5,
        "target_by": 1.0,
        "prune_interval": 2,
        "epochs": 7,
        "prune_at": 3,
        "batch_size": 16,
    }
    recorder = Recorder()
    outcome = start_run(of(images, tmp_path, **CONVS, **changes), recorder)
    assert [line["lasso"] > 0 for line in outcome.history] == [False] * 3 + [True] * 4
    assert [event.epoch for event in recorder.reconfigurations] == [5, 7]
    assert costs(read_graph(outcome.network)).macs <= 0.5 * costs(read_graph(outcome.run.network(0))).macs
    stopped = start_run(of(images, tmp_path / "parts", **CONVS, **changes), Recorder((4, 3)))
    assert_same_state(load_checkpoint(resume_run(stopped.run.last, {}, Recorder()).run.last), load_checkpoint(outcome.run.last))


@pytest.mark.parametrize("retrain", ["weight-rewind", "init-rewind", "lr-rewind"])
def test_what_a_pruned_checkpoint_goes_back_to(trained: Outcome, tmp_path: Path, retrain: str) -> None:
    epoch = 0 if retrain == "init-rewind" else 1
    outcome = prune(trained.run.last, method="magnitude", rate=0.5, retrain=retrain, rewind_epoch=epoch, output_dir=str(tmp_path))
    assert len(outcome.history) == 3 + 3 - epoch
    start, keep = load_checkpoint(outcome.run.checkpoint(3)), kept(outcome)
    source = trained.run.last if retrain == "lr-rewind" else trained.run.checkpoint(epoch)
    expected = load_checkpoint(source).model
    assert all(torch.equal(start.model[name], tensor * keep[name] if name in keep else tensor) for name, tensor in expected.items())


def test_a_stopped_pruning_is_taken_up(trained: Outcome, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"method": "magnitude", "rate": 0.8, "rounds": 2, "epochs": 2}
    reference = prune(trained.run.last, **asked, output_dir=str(tmp_path / "a"))
    stopped = prune(trained.run.last, **asked, output_dir=str(tmp_path / "b"), observer=Recorder((5, 5)))
    assert not stopped.finished
    finished = prune(trained.run.last, **asked, output_dir=str(tmp_path / "b"), resume=True)
    assert finished.finished
    assert_same_run(finished.run, reference.run)
    stopped.run.last.write_bytes(b"damaged")
    assert prune(trained.run.last, **asked, output_dir=str(tmp_path / "b"), resume=True).finished


@pytest.mark.parametrize("given", [{"during": 2}, {"checkpoint": 1}], ids=str)
def test_a_pruning_of_another_epoch_is_not_taken_up(trained: Outcome, tmp_path: Path, given: dict[str, int]) -> None:
    asked: dict[str, Any] = {"method": "unit", "rate": 0.5, "epochs": 0, "output_dir": str(tmp_path)}
    prune(trained.run.last, **asked)
    other = trained.run.checkpoint(given.pop("checkpoint")) if "checkpoint" in given else trained.run.last
    with pytest.raises(
        ConfigError, match=r"prunes after epoch 3, but this command would prune after epoch [15]: give the checkpoint and --during"
    ):
        prune(other, **asked, **given, resume=True)


# Bad input.


def test_the_methods_of_the_settings_are_those_there_are() -> None:
    assert set(METHODS) == {*names(), "group-lasso", "admm"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "magnitude", "rate": 1.0}, "rate must be at least 0 and below 1, the fraction to remove, not 1.0"),
        ({"method": "magnitude", "rate": -0.1}, "rate must be a finite number of at least 0, not -0.1"),
        ({"method": "magnitud", "rate": 0.5}, "unknown method 'magnitud': did you mean magnitude"),
        ({"method": "magnitude", "rate": 0.5, "slice": True}, "magnitude removes single weights, which cannot be cut: leave out --slice"),
        ({"method": "magnitude", "rate": 0.5, "layer_rates": ["fc9=0"]}, "unknown layer 'fc9'"),
        ({"method": "magnitude", "rate": 0.5, "layer_rates": ["fc1=2"]}, "layer-rate fc1 must be at least 0 and below 1"),
        ({"method": "magnitude", "rate": 0.5, "layer_rates": ["fc1"]}, "layer-rate must be NAME=VALUE, such as fc=0.5, not 'fc1'"),
        ({"method": "group-lasso", "rate": 0.5}, "rate is for the other methods"),
        ({"method": "2:4", "rate": 0.4}, "2:4 removes half of the weights: give rate 0.5"),
        ({"method": "admm", "rate": 0.5, "rho": 0.0}, "rho must be above 0 and at most rho-max"),
        ({"method": "admm", "rate": 0.5, "rho": 2.0}, "rho must be above 0 and at most rho-max, 1.0, not 2.0"),
        ({"method": "admm", "rate": 0.5, "rho_factor": 0.5}, "rho-factor must be a finite number of at least 1, not 0.5"),
        ({"method": "admm", "rate": 0.5, "method_interval": 0}, "method-interval must be from 1 to 1000000, not 0"),
        ({"method": "admm", "rate": 0.5, "during": 0}, "admm acts before it prunes: give --during"),
        ({"method": "fpgm", "rate": 0.5, "retrain": "weight-rewind", "rewind_epoch": 2}, "no such checkpoint to rewind to"),
        ({"method": "fpgm", "rate": 0.5, "retrain": "weight-rewind", "rewind_epoch": 9}, "give a rewind-epoch under 3"),
        ({"method": "fpgm", "rate": 0.5, "retrain": "init-rewind", "rewind_epoch": 1}, "init-rewind returns to epoch 0, not 1"),
        (
            {"method": "fpgm", "rate": 0.5, "retrain": "lr-rewind", "epochs": 1},
            "of 3 epochs from its rewind-epoch on: leave out --epochs",
        ),
        ({"method": "fpgm", "rate": 0.5, "rounds": 2, "epochs": 0}, "must divide evenly among 2 rounds"),
        ({"method": "fpgm", "rate": 0.5, "dynamic_batch": True}, "--dynamic-batch works with the group lasso only"),
        ({"method": "group-lasso", "during": 2}, "group-lasso prunes while it trains: leave out --during"),
        ({"method": "group-lasso", "retrain": "lr-rewind", "epochs": 5}, "group-lasso continues training and rewinds nothing"),
        ({"method": "group-lasso", "prune_at": 20, "epochs": 2}, "--prune-at 20 comes after the run's 5 epochs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_pruning_is_one_line_and_leaves_nothing(trained: Outcome, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, CheckpointError)) as error:
        prune(trained.run.last, **{"epochs": None, **given}, output_dir=str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*/*/*"))


def test_a_network_is_cut_after_an_epoch_at_the_earliest(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="admm acts before it prunes: give --prune-at"):
        of(images, tmp_path, **MLP, method="admm", rate=0.5)
    with pytest.raises(ConfigError, match="fpgm cuts the network, which must be trained for at least one epoch first: give --prune-at 1"):
        start_run(of(images, tmp_path, **CONVS, method="fpgm", rate=0.5), Recorder())
    untrained = start_run(of(images, tmp_path, **CONVS, epochs=1, name="base"), Recorder()).run.checkpoint(0)
    with pytest.raises(CheckpointError, match="was never trained"):
        prune(untrained, method="fpgm", rate=0.5, output_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "magnitude", "structure": "filters", "scope": "global"}, "filters are pruned layer by layer"),
        ({"method": "2:4", "rate": 0.3}, "2:4 removes half of the weights"),
        ({"method": "random-weights", "layer_rates": ("nope=0.3",)}, "unknown layer 'nope'"),
    ],
    ids=str,
)
def test_what_a_method_refuses_is_refused_before_the_epochs_that_precede_it(
    images: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    recorder = Recorder()
    with pytest.raises(ConfigError, match=message):
        start_run(of(images, tmp_path, **CONVS, prune_at=2, **{"rate": 0.5, **given}), recorder)
    assert not recorder.steps
    assert not list(tmp_path.glob("*/*/*"))


def test_a_pruning_refuses_settings_that_its_method_does_not_read(images: Path, tmp_path: Path) -> None:
    assert set(FILTER_METHODS) == {name for name in names() if entry(name).decides == "channels"}
    assert METHODS_BY_SETTING.keys() < set(METHOD_SETTINGS)
    trained = start_run(of(images, tmp_path, **MLP, epochs=1), Recorder()).run.last
    with pytest.raises(ConfigError, match=r"^--structure has no effect with --method unit, only with admm, magnitude: leave it out$"):
        prune(trained, method="unit", rate=0.5, structure="filters", name="pruned")
    assert not list(tmp_path.glob("*/pruned*"))


def test_an_epoch_that_is_not_over_is_not_pruned(images: Path, tmp_path: Path) -> None:
    stopped = start_run(of(images, tmp_path, **MLP), Recorder((1, 2)))
    with pytest.raises(CheckpointError, match="in the middle of an epoch: finish it with --resume first"):
        prune(stopped.run.last, method="unit", rate=0.5)


def test_the_command(trained: Outcome, tmp_path: Path) -> None:
    flags = ("--method", "unit", "--slice", "--rate", "0.5", "--epochs", "1", "--output-dir", tmp_path, "--name", "small")
    result = invoke("prune", trained.run.last, *flags)
    assert result.exit_code == 0, result.output
    assert "unit: " in result.output
    assert read_graph(tmp_path / "generated_nets" / "small" / "epoch_003.py").layer("fc1")["out_features"] == 250
    for again in (
        invoke("prune", trained.run.last, *flags, "--resume"),
        invoke("prune", "--resume", trained.run.last, *flags),
        invoke("prune", trained.run.last, "--resume", "auto", *flags),  # as train has it
    ):
        assert again.exit_code == 0, again.output
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()) == ["small"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "no method to prune with: give one, such as --method magnitude"),
        (
            ("--method", "fpgm", "--threshold-std", "1"),
            "--threshold-std is for --method magnitude, in place of --rate: leave out --rate and other methods",
        ),
        (("--method", "unit", "--rate", "2"), "rate must be at least 0 and below 1, the fraction to remove, not 2.0"),
        (("--method", "magnitude", "--rate", "0.5", "--global", "--structure", "filters"), "filters are pruned layer by layer"),
    ],
)
def test_the_command_refuses_on_one_line(trained: Outcome, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    result = invoke("prune", trained.run.last, *flags, "--output-dir", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
