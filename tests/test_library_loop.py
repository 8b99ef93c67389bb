"""`PruneTrain` in a plain loop: what it penalises, what it cuts, what it writes, and how it goes on."""

from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loops import EXAMPLE, INNER, KEPT, STEM, Nested, batches, kept_of, kill_, logits, network, sgd, train_
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

import prunetrain
from prunetrain.errors import CheckpointError, ConfigError, OutputError, TraceError
from prunetrain.graph.render import render


def pruner_of(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> prunetrain.PruneTrain:
    return prunetrain.PruneTrain(model, optimizer, EXAMPLE, **settings)


def test_loop_of_the_documentation_makes_the_network_smaller(tmp_path: Path) -> None:
    model = network(dtype=torch.float32)
    optimizer = sgd(model)
    pruner = prunetrain.PruneTrain(model, optimizer, example_input=EXAMPLE, penalty_ratio=0.4)
    found: nn.Module = model
    channels = []
    for epoch in range(4):
        loss = train_(found, optimizer, 15, seed=epoch, pruner=pruner)
        before = logits(found, dtype=torch.float32)
        step = pruner.reconfigure(f"{tmp_path}/epoch_{epoch + 1:03d}.py")
        found, optimizer = step.model, step.optimizer
        assert torch.allclose(logits(found, dtype=torch.float32), before, rtol=1e-4, atol=1e-5)
        channels.append(step.change.channels)
    assert loss < 0.7  # guessing has 1.1
    assert channels[0][0] == 20
    assert [after for _, after in channels[:-1]] == [before for before, _ in channels[1:]]
    assert 3 < channels[-1][1] < 15
    assert "epoch 4:" in (tmp_path / "epoch_004.py").read_text()


def test_cut_of_a_nested_network(tmp_path: Path) -> None:
    model = network()
    kill_(model)
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model)
    step = pruner.reconfigure(tmp_path / "new" / "mine.py")
    assert (logits(step.model) - expected).abs().max() <= 1e-10 * expected.abs().max()
    parameters = dict(step.model.named_parameters())
    assert set(parameters) == set(KEPT)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, kept_of(name, before[KEPT[name][0]])), name
    assert step.change.channels == (20, len(STEM) * 2 + len(INNER) + 3)
    assert step.path == tmp_path / "new" / "mine.py"
    assert step.optimizer is optimizer
    assert step.ema is None
    assert pruner.graph == prunetrain.parse(step.path.read_text())
    assert "was 6" in step.path.read_text()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])  # the old model is as it was
    train_(step.model, optimizer, 2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])  # and shares no memory with the new one


def test_files_make_the_network_without_the_pruner(tmp_path: Path) -> None:
    model = network()
    kill_(model)
    step = pruner_of(model, sgd(model)).reconfigure(str(tmp_path / "epoch_003.py"))
    again = prunetrain.load_network(tmp_path / "epoch_003.py").double()
    again.load_state_dict(torch.load(tmp_path / "epoch_003.pt", weights_only=True))
    assert torch.equal(logits(again), logits(step.model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_003.pt", "epoch_003.py"]


def test_nothing_dead_nothing_cut() -> None:
    model = network()
    optimizer = sgd(model)
    expected = logits(model)
    pruner = pruner_of(model, optimizer)
    for _ in range(2):
        step = pruner.reconfigure()
        assert torch.equal(logits(step.model), expected)
        assert step.change.channels == (20, 20)
        assert step.path is None
        assert step.model is model
    assert set(optimizer.param_groups[0]["params"]) == set(step.model.parameters())


def test_what_was_not_cut_is_written_all_the_same(tmp_path: Path) -> None:
    model = network()
    step = pruner_of(model, sgd(model)).reconfigure(tmp_path / "epoch_001.py")
    assert step.model is model
    again = prunetrain.load_network(tmp_path / "epoch_001.py").double()
    again.load_state_dict(torch.load(tmp_path / "epoch_001.pt", weights_only=True))
    assert torch.equal(logits(again), logits(model))


def test_round_to_keeps_multiples() -> None:
    model = network()
    kill_(model)
    step = pruner_of(model, sgd(model), round_to=3).reconfigure()
    assert step.change.channels == (20, 6 + 3 + 6 + 3)


def test_chosen_filters_stay_and_the_rest_goes() -> None:
    model = network()
    pruner = pruner_of(model, sgd(model))
    weight = model.get_parameter("body.0.branch.0.weight").clone()
    step = pruner.reconfigure(keep={"body_0_branch_0": {3, 1}})
    assert step.change.channels == (20, 6 + 2 + 6 + 3)
    assert torch.equal(step.model.get_parameter("body_0_branch_0.weight"), weight[[1, 3]])
    kill_(model)
    kept = pruner_of(model, sgd(model)).reconfigure(keep={"stem_0": range(6)})
    assert kept.change.channels == (20, 6 + len(INNER) + 6 + 3)


@pytest.mark.parametrize("chosen", [torch.tensor([3, 1]), np.array([3, 1]), [torch.tensor(3), torch.tensor(1)], [np.int64(3), 1]])
def test_filters_may_be_chosen_by_tensors_and_arrays(chosen: Any) -> None:
    model = network()
    step = pruner_of(model, sgd(model)).reconfigure(keep={"body_0_branch_0": chosen})
    weight = model.get_parameter("body.0.branch.0.weight")
    assert torch.equal(step.model.get_parameter("body_0_branch_0.weight"), weight[[1, 3]])


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"stem": [0]}, "unknown layer 'stem': did you mean"),
        ({"head": [0]}, "the channels of head are never cut: the network's output"),
        ({"stem_0": [0, 6]}, "keep some of the filters 0 to 5 of stem_0"),
        ({"stem_0": [-1]}, "keep some of the filters 0 to 5 of stem_0"),
        ({"stem_0": []}, "keep some of the filters 0 to 5 of stem_0"),
        ({"stem_0": [True, False, True, False, False, False]}, "keep some of the filters 0 to 5 of stem_0, by number"),
        ({"stem_0": [0.5]}, "keep some of the filters 0 to 5 of stem_0, by number"),
    ],
)
def test_choice_that_does_not_work(keep: dict[str, Any], message: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=message):
        pruner_of(model, sgd(model)).reconfigure(keep=keep)


# What the lasso does.


def test_first_loss_sets_lambda() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer, penalty_ratio=0.2)
    assert pruner.lasso_strength is None
    images, labels = next(batches(1))
    loss = F.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    pruner.regularize(loss)
    assert pruner.penalty() / (float(loss.detach()) + pruner.penalty()) == pytest.approx(0.2)
    strength = pruner.lasso_strength
    pruner.regularize(loss * 5)
    assert pruner.lasso_strength == strength


@pytest.mark.parametrize("step", ["proximal", "subgradient"])
def test_each_step_is_regularized_once(step: str) -> None:
    """Without a gradient of the loss, weights move by the lasso alone."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.5)
    pruner = pruner_of(model, optimizer, lasso_step=step, lasso_groups="slices")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = model.get_parameter("head.weight")  # its outputs are the network's: only its input slices are groups
    norms = torch.linalg.vector_norm(weight.detach(), dim=0)
    before = weight.detach().clone()
    pruner.regularize(1.0)
    assert pruner.lasso_strength is not None
    optimizer.step()
    expected = before * (1 - 0.5 * pruner.lasso_strength / norms)
    assert torch.allclose(weight, expected, rtol=1e-10)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # not regularized
    assert torch.allclose(weight, expected, rtol=1e-10)


def test_proximal_step_goes_by_each_groups_own_rate() -> None:
    model = network()
    optimizer = SGD(
        [
            {"params": model.stem.parameters(), "lr": 0.1, "momentum": 0.5},
            {"params": model.head.parameters(), "lr": 0.01, "momentum": 0.9, "dampening": 0.9},
        ],
        lr=7.0,
    )
    pruner = pruner_of(model, optimizer, lasso_groups="slices")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pruner.regularize(1.0)
    optimizer.step()
    strength = pruner.lasso_strength
    assert strength
    stem, head = before["stem.0.weight"], before["head.weight"]
    norms = torch.linalg.vector_norm(stem, dim=(1, 2, 3), keepdim=True)
    assert torch.allclose(model.get_parameter("stem.0.weight"), stem * (1 - 0.2 * strength / norms), rtol=1e-10)
    norms = torch.linalg.vector_norm(head, dim=0, keepdim=True)
    assert torch.allclose(model.get_parameter("head.weight"), head * (1 - 0.01 * strength / norms), rtol=1e-10)
    for name in ("body.0.branch.0.weight", "body.0.branch.3.weight"):  # in no group
        assert torch.equal(model.get_parameter(name), before[name])


@pytest.mark.parametrize("groups", ["slices", "coupled"])
def test_frozen_weights_are_left_alone_until_they_are_trained(groups: str) -> None:
    model = network()
    model.body.requires_grad_(False)
    frozen = {name: parameter.clone() for name, parameter in model.body.named_parameters()}
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer, penalty_ratio=0.9, lasso_groups=groups)
    train_(model, optimizer, 60, pruner=pruner)
    for name, parameter in model.body.named_parameters():
        assert torch.equal(parameter, frozen[name])
    dead = (model.get_parameter("stem.0.weight").abs().amax((1, 2, 3)) == 0) & (model.get_parameter("head.weight").abs().amax(0) == 0)
    assert dead.any()  # the frozen weights of a channel do not keep the rest of it alive
    step = pruner.reconfigure()
    assert [name for name, p in step.model.named_parameters() if not p.requires_grad] == [n for n in KEPT if n.startswith("body")]
    step.model.requires_grad_(True)
    before = step.model.get_parameter("body_0_branch_0.weight").clone()
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pruner.regularize(1.0)
    optimizer.step()
    assert (step.model.get_parameter("body_0_branch_0.weight").abs() < before.abs()).any()


def test_lambda_waits_for_something_to_penalise() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() == 1)
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    train_(model, optimizer, pruner=pruner)
    assert pruner.lasso_strength is None
    model.requires_grad_(True)
    train_(model, optimizer, pruner=pruner)
    assert pruner.lasso_strength


def test_ratio_of_zero_only_cuts() -> None:
    model, plain = network(), network()
    optimizer, other = sgd(model), sgd(plain)
    pruner = pruner_of(model, optimizer, penalty_ratio=0)
    train_(model, optimizer, 3, pruner=pruner)
    train_(plain, other, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    kill_(model)
    assert pruner.reconfigure().change.channels[1] < 20


@pytest.mark.parametrize("end", ["close", "drop"])
def test_hook_goes_with_the_pruner(end: str) -> None:
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    if end == "close":
        pruner.close()
        pruner.close()
    else:
        del pruner
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("lasso_step", ["proximal", "subgradient"])
def test_nothing_acts_after_close(lasso_step: str) -> None:
    model, plain = network(), network()
    optimizer, other = sgd(model), sgd(plain)
    pruner = pruner_of(model, optimizer, lasso_step=lasso_step)
    pruner.close()
    train_(model, optimizer, 2, pruner=pruner)
    train_(plain, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_second_pruner_on_one_optimizer_does_not_double_the_lasso() -> None:
    model, other = network(), network()
    optimizer, plain = sgd(model), sgd(other)
    idle, pruner = pruner_of(model, optimizer), pruner_of(model, optimizer)
    train_(model, optimizer, 2, pruner=pruner)
    train_(other, plain, 2, pruner=pruner_of(other, plain))
    assert idle.lasso_strength is None
    assert torch.equal(model.head.weight, other.head.weight)


# Modes, layouts, precision.


def test_modes_and_layout_carry_over() -> None:
    model = network().to(memory_format=torch.channels_last)
    model.body.eval()
    kill_(model)
    optimizer = sgd(model)
    train_(model, optimizer)
    kill_(model)
    step = pruner_of(model, optimizer).reconfigure()
    modes = {name: module.training for name, module in step.model.named_modules()}
    assert [name for name, mode in modes.items() if not mode] == ["body_0_branch_0", "body_0_branch_1", "body_0_branch_3"]
    weight = step.model.get_parameter("body_0_branch_0.weight")
    buffer = optimizer.state[weight]["momentum_buffer"]
    wide = [step.model.get_parameter("stem_0.weight"), optimizer.state[step.model.get_parameter("stem_0.weight")]["momentum_buffer"]]
    for tensor in (weight, buffer, *wide):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    assert not pruner_of(model.eval(), sgd(model)).reconfigure().model.training


class Unpadded(nn.Module):
    """Two convs with BatchNorm; three filters of the first are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 5, 3), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            self.conv1.weight[:3] = 0
            self.bn1.bias[:3] = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("fixed", "lag", "channels"),
    [
        (["bn1", "bn2"], 0.5, 5),  # with both fixed, the two modes are one
        (["bn1"], 0.5, 5),
        (["bn2"], 0.5, 8),  # nothing takes over what bn1 makes of a dead filter, as long as its running mean lags behind
        (["bn2"], 0.0, 5),
        ([], 0.5, 5),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_batch_norms_in_eval_mode(fixed: list[str], lag: float, channels: int, whole: bool) -> None:
    """In both modes the outputs stay; train mode is the one in which the pruner found the network."""
    torch.manual_seed(0)
    model = Unpadded().double()
    with torch.no_grad():
        model.bn1.running_mean[:3] = model.conv1.bias[:3] - lag  # type: ignore[index]
    model.training = whole  # or people call eval(), and train() of what they train
    for name in fixed:
        model.get_submodule(name).eval()
    smaller = pruner_of(model, sgd(model), penalty_ratio=0.0).reconfigure().model
    assert smaller.get_parameter("conv1.weight").shape[0] == channels
    assert smaller.training is whole
    images, _ = next(batches(1))
    for _ in range(2):
        with torch.no_grad():
            assert torch.allclose(deepcopy(smaller)(images), deepcopy(model)(images), rtol=1e-10)
        smaller.eval()
        model.eval()


def test_network_in_eval_mode_is_cut_as_one_that_trains() -> None:
    """As after a validation: that its BatchNorms are in eval mode says nothing of training."""
    torch.manual_seed(0)
    model = Unpadded().double()
    smaller = pruner_of(model, sgd(model.eval()), penalty_ratio=0.0).reconfigure().model
    images, _ = next(batches(1))
    assert smaller.get_parameter("conv1.weight").shape[0] == 5
    assert torch.allclose(smaller(images), model(images), rtol=1e-10)
    assert torch.allclose(smaller.train()(images), model.train()(images), rtol=1e-10)


@pytest.mark.parametrize("step", ["proximal", "subgradient"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype, step: str) -> None:
    model = network(dtype=dtype)
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer, lasso_step=step)
    train_(model, optimizer, 2, pruner=pruner)
    kill_(model)
    smaller = pruner.reconfigure().model
    assert {parameter.dtype for parameter in smaller.parameters()} == {dtype}
    assert smaller.get_parameter("stem_0.weight").shape[0] == 4
    train_(smaller, optimizer, 2, pruner=pruner)


class Tied(nn.Module):
    """Two convolutions with one weight, and a constant of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(2, 4, 1, bias=False)
        self.between = nn.Conv2d(4, 2, 1, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(F.relu(self.first(x))) * torch.tensor([0.5, 2.0]).view(2, 1, 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.second(x)), 1).flatten(1))


def test_weight_that_two_layers_share() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    with torch.no_grad():
        model.first.weight[1] = 0
        model.between.weight[:, 1] = 0
        model.head.weight[:, 1] = 0
    optimizer = sgd(model)
    expected = logits(model)
    step = pruner_of(model, optimizer).reconfigure()
    assert step.change.channels == (9, 8)
    assert torch.allclose(logits(step.model), expected, rtol=1e-12)
    assert optimizer.param_groups[0]["params"] == list(step.model.parameters())
    assert len(list(step.model.parameters())) == 4
    train_(step.model, optimizer)


def test_model_may_move_after_the_pruner_is_made() -> None:
    model = network(dtype=torch.float32)
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    model.double()
    kill_(model)
    expected = logits(model)
    step = pruner.reconfigure()
    assert torch.allclose(logits(step.model), expected, rtol=1e-12)
    assert step.change.channels[1] < 20


# Going on from a checkpoint.


@pytest.mark.parametrize("cut", [False, True])
def test_saved_and_loaded(tmp_path: Path, cut: bool) -> None:
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer, penalty_ratio=0.4, lasso_groups="slices")
    train_(model, optimizer, 3, pruner=pruner)
    found: nn.Module = model
    if cut:
        kill_(model)
        found = pruner.reconfigure(tmp_path / "net.py").model
    saved = {"model": found.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
    torch.save(saved, tmp_path / "last.pt")
    train_(found, optimizer, 3, seed=1, pruner=pruner)

    loaded = torch.load(tmp_path / "last.pt", weights_only=True)
    again = prunetrain.load_network(tmp_path / "net.py").double() if cut else Nested().double()
    for module in again.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    again.load_state_dict(loaded["model"])
    other = sgd(again)
    other.load_state_dict(loaded["optimizer"])
    resumed = pruner_of(again, other)
    resumed.load_state_dict(loaded["pruner"])
    train_(again, other, 3, seed=1, pruner=resumed)
    for left, right in zip(found.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
    assert resumed.dense == pruner.dense
    assert resumed.state_dict() == pruner.state_dict()


class Shuffled(nn.Module):
    """Parts that lose different channels, so that its file has positions; and a view whose file, traced again, is spelled otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(2, 6, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.channel_shuffle(torch.cat((self.left(x), self.right(x)), 1), 2)
        x = x.view(len(x), -1, 1, 1, 4, 4).transpose(3, 4)
        return self.head(x.flatten(2).mean(2))


def test_a_network_goes_on_from_its_file_however_it_is_spelled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Shuffled().double()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    first = pruner.reconfigure(tmp_path / "net.py", keep={"left": [0, 1, 4], "right": [1, 2, 3, 5]}).model
    pruner.fade(macs=0.3, steps=4)
    train_(first, optimizer, 2, pruner=pruner)
    again = prunetrain.load_network(tmp_path / "net.py").double()
    again.load_state_dict(first.state_dict())
    other = sgd(again)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    resumed = pruner_of(again, other)
    assert resumed.graph != pruner.graph
    random = torch.get_rng_state()
    resumed.load_state_dict(pruner.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert resumed.graph == pruner.graph
    train_(first, optimizer, 2, seed=1, pruner=pruner)
    train_(again, other, 2, seed=1, pruner=resumed)
    left, right = pruner.reconfigure(), resumed.reconfigure()
    assert left.change.channels == right.change.channels
    assert left.change.channels[1] < left.change.channels[0]
    assert render(pruner.graph) == render(resumed.graph)
    assert torch.equal(logits(left.model), logits(right.model))


def test_state_of_another_network() -> None:
    model = network()
    kill_(model)
    pruner = pruner_of(model, sgd(model))
    old = pruner.state_dict()
    pruner.reconfigure()
    with pytest.raises(CheckpointError, match="is of another network"):
        pruner.load_state_dict(old)


@pytest.mark.parametrize(
    "damage",
    [
        {"settings": None},
        {"settings": {"penalty_ratio": 0.5}},
        {"network": 3},
        {"dense": "import os"},
        {"lasso_strength": "x"},
        {"fade": {"channels": [0]}},
        {"fade": {"channels": [99], "steps": 2, "done": 1}},
        {"fade": {"channels": [0], "steps": 2, "done": 3}},
    ],
    ids=str,
)
def test_state_that_is_none_changes_nothing(damage: dict[str, Any]) -> None:
    model = network()
    pruner = pruner_of(model, sgd(model))
    state = pruner.state_dict()
    without = {name: value for name, value in state.items() if name not in damage}
    for changed in (without, {"lasso_strength": 0.5} | without | damage):
        with pytest.raises(CheckpointError, match=r"^this is not what PruneTrain.state_dict\(\) returns \("):
            pruner.load_state_dict(changed)
    assert pruner.state_dict() == state


# What a user can do wrong.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty_ratio": 1.0}, "penalty-ratio must be"),
        ({"threshold": -1.0}, "threshold must be"),
        ({"criterion": "eiher"}, "unknown criterion 'eiher': did you mean either"),
        ({"lasso_groups": "layers"}, "unknown lasso-groups"),
        ({"lasso_step": "adam"}, "unknown lasso-step"),
        ({"round_to": 0}, "round-to must be"),
        ({"round_to": "auto"}, "round-to must be a whole number from 1, not 'auto'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=message):
        pruner_of(model, sgd(model), **settings)


def test_model_that_branches_on_its_input() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model = network()
    with pytest.raises(TraceError, match="branching on a tensor"):
        pruner_of(Branching(), sgd(model))


def test_loop_that_trains_the_old_model_is_told() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    train_(model, optimizer, pruner=pruner)
    kill_(model)
    pruner.reconfigure()
    with pytest.raises(ConfigError, match="train the model of its result"):
        train_(model, optimizer, pruner=pruner)


@pytest.mark.parametrize("loss", [0.0, -1.0, float("nan"), float("inf")])
def test_first_loss_must_be_a_number_over_zero(loss: float) -> None:
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(ConfigError, match="finite number over 0"):
        pruner.regularize(loss)


def test_an_overflow_of_the_first_batch_sets_no_lambda() -> None:
    model = network(dtype=torch.float32)
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer, scaler=torch.amp.GradScaler("cpu"))
    train_(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pruner.regularize(float("inf"))
    assert pruner.lasso_strength is None
    pruner.regularize(2.0)
    assert pruner.lasso_strength is not None and pruner.lasso_strength > 0


def test_failed_reconfiguration_changes_nothing(tmp_path: Path) -> None:
    model = network()
    optimizer = Adam(model.parameters())
    train_(model, optimizer, 2)
    kill_(model)
    pruner = pruner_of(model, optimizer)
    before = deepcopy(optimizer.state_dict())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        pruner.reconfigure(tmp_path / "file" / "epoch_001.py")
    with pytest.raises(ConfigError, match=r"ends in \.py"):
        pruner.reconfigure(tmp_path / "epoch_001.pt")
    assert pruner.graph == pruner.dense
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert str(optimizer.state_dict()) == str(before)
    train_(model, optimizer, pruner=pruner)
    assert pruner.reconfigure().change.channels[0] == 20


def test_fixed_filters_are_not_trained_after_a_cut() -> None:
    """They are buffers of the model, and weights that need no gradients in the network of the file."""

    class Blurred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.register_buffer("blur", torch.rand(8, 1, 3, 3))
            self.fc = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.conv2d(self.conv(x), self.get_buffer("blur"), groups=8)
            return self.fc(F.relu(x).mean((2, 3)))

    model = Blurred()
    with torch.no_grad():
        model.conv.weight[:3] = 0
        model.conv.bias[:3] = 0  # type: ignore[index]
    pruner = prunetrain.PruneTrain(model, SGD(model.parameters(), 0.1), torch.randn(1, 3, 8, 8), penalty_ratio=0.0)
    for _ in range(2):
        cut = pruner.reconfigure().model
        assert {name: parameter.requires_grad for name, parameter in cut.named_parameters()} == {
            "conv.weight": True,
            "conv.bias": True,
            "blur.weight": False,
            "fc.weight": True,
            "fc.bias": True,
        }
    assert torch.equal(cut.get_parameter("blur.weight"), model.get_buffer("blur")[3:])


@pytest.mark.parametrize("kind", ["inference mode", "no_grad", "default device"])
def test_it_may_be_called_in_any_mode(kind: str) -> None:
    """As from a callback that runs in inference mode after validation; a default device of "meta" stands for a GPU."""

    def surroundings() -> AbstractContextManager[object]:
        return torch.device("meta") if kind == "default device" else torch.inference_mode() if kind == "inference mode" else torch.no_grad()

    model: nn.Module = network()
    optimizer = sgd(model)
    with surroundings():
        pruner = pruner_of(model, optimizer)
        assert pruner.penalty() == 0
        pruner.fade(macs=0.7, steps=2)
    train_(model, optimizer, 2, pruner=pruner)
    with surroundings():
        step = pruner.reconfigure()
        pruner.load_state_dict(pruner.state_dict())
    assert step.change.macs[1] < step.change.macs[0]
    train_(step.model, optimizer, 2, pruner=pruner)
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in step.model.parameters())
