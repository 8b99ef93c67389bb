"""`PruneTrain.fade`: to a number of multiply-accumulates at a known step, with any optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import EXAMPLE, batches, logits, network, sgd, train_
from torch import nn, optim
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunetrain
from prunetrain import PruneTrain
from prunetrain.errors import ConfigError
from prunetrain.graph.costs import costs


def pruner_of(model: nn.Module, optimizer: optim.Optimizer, **settings: Any) -> prunetrain.PruneTrain:
    return prunetrain.PruneTrain(model, optimizer, EXAMPLE, penalty_ratio=0, **settings)


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop])
def test_a_target_is_met_whatever_the_optimizer(kind: type[optim.Optimizer]) -> None:
    model: nn.Module = network()
    optimizer = kind(model.parameters(), lr=3e-3)  # type: ignore[call-arg]
    pruner = pruner_of(model, optimizer)
    dense = costs(pruner.dense).macs
    for macs in (0.75, 0.5, 0.25):
        left = pruner.fade(macs=macs, steps=6)
        train_(model, optimizer, 8)
        before = logits(model)
        step = pruner.reconfigure()
        model = step.model
        assert (logits(model) - before).abs().max() <= 1e-10 * before.abs().max()
        assert step.change.macs[1] / dense == left <= macs
    train_(model, optimizer, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_target_is_met_in_half_precision(dtype: torch.dtype) -> None:
    model = network(dtype=dtype)
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    left = pruner.fade(macs=0.5, steps=2)
    train_(model, optimizer, 2)
    step = pruner.reconfigure()
    assert step.change.macs[1] / costs(pruner.dense).macs == left <= 0.5


def test_channels_in_front_of_layer_norm_fade_with_their_biases() -> None:
    model: nn.Module = nn.Sequential(
        nn.Flatten(), nn.Linear(EXAMPLE[0].numel(), 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5)
    ).double()
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    pruner = pruner_of(model, optimizer)
    for macs in (0.7, 0.4):
        left = pruner.fade(macs=macs, steps=6)
        train_(model, optimizer, 6)
        before = logits(model)
        step = pruner.reconfigure()
        model = step.model
        assert (logits(model) - before).abs().max() <= 1e-10 * before.abs().max()
        assert step.change.macs[1] / costs(pruner.dense).macs == left <= macs


def test_weights_fall_in_a_straight_line_and_stay_at_zero() -> None:
    model = network()
    optimizer = sgd(model, lr=0.0, momentum=0.0, weight_decay=0.0)
    first = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pruner = pruner_of(model, optimizer)
    pruner.fade(macs=0.6, steps=4)
    for share in (0.75, 0.5, 0.25, 0.0, 0.0):
        train_(model, optimizer)
        fallen = {name for name, old in first.items() if not torch.equal(dict(model.named_parameters())[name], old)}
        assert fallen <= {"stem.0.weight", "body.0.branch.0.weight", "body.0.branch.3.weight", "head.weight"}
        assert fallen
        for name in fallen:
            weight, old = dict(model.named_parameters())[name], first[name]
            changed = weight != old
            assert torch.allclose(weight[changed], share * old[changed], rtol=1e-12, atol=0)


def test_what_is_not_trained_does_not_fade() -> None:
    model = network()
    model.body.requires_grad_(False)
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    left = pruner.fade(macs=0.1, steps=2)
    body = {name: parameter.detach().clone() for name, parameter in model.body.named_parameters()}
    train_(model, optimizer, 2)
    assert all(torch.equal(parameter, body[name]) for name, parameter in model.body.named_parameters())
    before = logits(model)
    step = pruner.reconfigure()
    assert step.change.macs[1] / step.change.macs[0] == left > 0.1
    assert (logits(step.model) - before).abs().max() <= 1e-10 * before.abs().max()
    inner = next(layer for layer in pruner.graph.layers if layer.name == "body_0_branch_0")
    assert inner["out_channels"] == 5


def test_round_to_and_a_target_out_of_reach() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer, round_to=4)
    left = pruner.fade(macs=0.01, steps=1)
    train_(model, optimizer)
    step = pruner.reconfigure()
    assert left == step.change.macs[1] / step.change.macs[0] > 0.01
    assert {layer["out_channels"] for layer in pruner.graph.layers if layer.kind == "Conv2d"} == {4}


def test_a_new_fade_takes_the_place_of_the_one_before() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    pruner.fade(macs=0.3, steps=50)
    train_(model, optimizer, 3)
    left = pruner.fade(macs=0.7, steps=2)
    train_(model, optimizer, 2)
    step = pruner.reconfigure()
    assert step.change.macs[1] / step.change.macs[0] == left


def test_a_branch_that_starts_at_zero_is_not_taken_for_cut() -> None:
    """As its last conv is trained, its channels come alive unless they fade."""
    model = network()
    with torch.no_grad():
        model.get_parameter("body.0.branch.3.weight").zero_()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    left = pruner.fade(macs=0.7, steps=2)
    train_(model, optimizer, 2)
    assert pruner.reconfigure().change.macs[1] / costs(pruner.dense).macs == left > 0.5


def test_a_second_fade_holds_what_the_first_left_at_zero() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    first = pruner.fade(macs=0.5, steps=2)
    train_(model, optimizer, 2)
    assert pruner.fade(macs=0.5, steps=2) == first
    train_(model, optimizer, 4)
    assert pruner.reconfigure().change.macs[1] / costs(pruner.dense).macs == first


def test_a_fade_goes_on_in_another_process_bit_for_bit(tmp_path: Path) -> None:
    """Saved in the middle, loaded into a new pruner for the same network."""
    found = []
    for saved in (False, True):
        model = network()
        optimizer = sgd(model)
        pruner = pruner_of(model, optimizer)
        pruner.fade(macs=0.5, steps=6)
        train_(model, optimizer, 4, seed=1)
        if saved:
            torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], tmp_path / "state.pt")
            weights, moments, own = torch.load(tmp_path / "state.pt", weights_only=True)
            model = network(seed=7)
            model.load_state_dict(weights)
            optimizer = sgd(model)
            optimizer.load_state_dict(moments)
            pruner = pruner_of(model, optimizer)
            pruner.load_state_dict(own)
        train_(model, optimizer, 2, seed=2)
        found.append(pruner.reconfigure())
    assert found[0].change.macs[1] < found[0].change.macs[0]
    for name, tensor in found[0].model.state_dict().items():
        assert torch.equal(tensor, found[1].model.state_dict()[name]), name


def test_a_fade_that_is_not_done_cuts_nothing_and_says_so() -> None:
    """As with gradients that are accumulated, where there are fewer steps than batches."""
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    pruner.fade(macs=0.5, steps=8)
    train_(model, optimizer, 2)
    with pytest.warns(UserWarning, match=r"^only 2 of 8 steps of the fade were made, so its channels are not zero yet and stay"):
        step = pruner.reconfigure()
    assert step.model is model
    assert pruner.state_dict()["fade"] is None


def test_channels_that_have_faded_and_stay_are_reported() -> None:
    """Here something brings weights back after the last step, as Lookahead does."""
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    pruner.fade(macs=0.5, steps=2)
    train_(model, optimizer, 2)
    with torch.no_grad():
        model.head.weight += 0.01
        model.stem[0].weight += 0.01
    with pytest.warns(UserWarning, match=r"have faded stay, so that \d+\.\d% of the multiply-accumulates are left instead of \d\d\.\d%"):
        pruner.reconfigure()


@pytest.mark.parametrize("cleared", ["before", "after"])
def test_a_loop_that_goes_on_with_the_old_model_is_told(cleared: str) -> None:
    """Without the lasso too, where nothing but the optimizer would know; whether gradients are cleared after a step or before the next."""
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    pruner.fade(macs=0.5, steps=2)
    train_(model, optimizer, 2)
    if cleared == "before":
        model(next(batches(1))[0]).sum().backward()  # as left over from the last step
    assert pruner.reconfigure().model is not model
    with pytest.raises(ConfigError, match="train the model of its result"):
        train_(model, optimizer)


def test_a_second_optimizer_is_told() -> None:
    """After a cut it has the old tensors, which nothing trains any more; but whoever trains the old model on for itself may."""
    model = network()
    head = optim.SGD(model.head.parameters(), lr=0.1)
    optimizer = optim.SGD([*model.stem.parameters(), *model.body.parameters()], lr=0.05)
    pruner = pruner_of(model, optimizer)
    pruner.fade(macs=0.8, steps=2)
    for _ in range(2):
        train_(model, optimizer)
        head.step()
    smaller = pruner.reconfigure().model
    assert smaller is not model
    train_(smaller, optimizer)
    with pytest.raises(ConfigError, match="SGD trains parameters that a cut has replaced"):
        head.step()
    train_(model, optim.SGD(model.parameters(), lr=0.1))
    pruner.close()
    head.step()


def test_an_optimizer_may_step_for_other_modules_alone() -> None:
    """As in alternating training; the network that was cut has no gradients then."""
    model, other = network(), nn.Linear(2, 2).double()
    optimizer = optim.SGD([*model.parameters(), *other.parameters()], lr=0.01)
    pruner = PruneTrain(model, optimizer, EXAMPLE, penalty_ratio=0.0)
    pruner.fade(macs=0.5, steps=1)
    train_(model, optimizer, 1)
    assert pruner.reconfigure().model is not model
    before = other.weight.detach().clone()
    other(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert not torch.equal(other.weight, before)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_fades_along(use_buffers: bool) -> None:
    """So that a cut takes nothing from it, where it would hold what the channels were until lately."""
    model = network()
    optimizer = sgd(model)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=use_buffers)
    pruner = PruneTrain(model, optimizer, EXAMPLE, penalty_ratio=0.0, ema=ema)
    pruner.fade(macs=0.5, steps=4)
    for seed in range(4):
        train_(model, optimizer, 1, seed=seed)
        ema.update_parameters(model)
        if seed == 1:  # in the middle, in another process
            state = pruner.state_dict()
            pruner.close()
            pruner = PruneTrain(model, optimizer, EXAMPLE, penalty_ratio=0.0, ema=ema)
            pruner.load_state_dict(state)
    expected = logits(ema)
    step = pruner.reconfigure()
    assert step.change.channels[1] < step.change.channels[0]
    assert (logits(ema) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_a_skipped_step_is_no_step() -> None:
    """What a GradScaler skips does not count; there were steps enough left."""
    model = network()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    pruner = pruner_of(model, optimizer, scaler=scaler)
    left = pruner.fade(macs=0.5, steps=3)
    for number, (images, labels) in enumerate(batches(4)):
        loss = F.cross_entropy(model(images), labels) * (float("inf") if number == 1 else 1.0)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert pruner.reconfigure().change.macs[1] / costs(pruner.dense).macs == left


@pytest.mark.parametrize(("macs", "steps", "message"), [(0, 1, "macs must be over 0"), (1, 1, "under 1"), (0.5, 0, "steps must be 1")])
def test_numbers_out_of_range(macs: float, steps: int, message: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=message):
        pruner_of(model, sgd(model)).fade(macs, steps)
