"""Methods that act while a network trains: held masks, ADMM, soft filter pruning; and where retraining starts."""

import io
from copy import deepcopy

import numpy as np
import pytest
import torch
from graphs import Sketch, residual
from networks import OPTIMIZERS, State, images_for, network, new_state, train_, well_conditioned
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim import SGD

from prunetrain.channels.removal import remove_channels
from prunetrain.channels.selection import KeepPlan
from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.admm import Admm, AdmmSettings
from prunetrain.methods.admm_steps import (
    AdmmState,
    add_gradient_,
    initial_state,
    measure_residuals,
    projection,
    rescale_duals,
    update_state,
)
from prunetrain.methods.conversions import filter_masks
from prunetrain.methods.held_masks import HeldMasks
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options
from prunetrain.methods.registry import decide
from prunetrain.methods.rewinding import cut_start_weights, masked_start_weights
from prunetrain.methods.soft_filters import SoftFilters
from prunetrain.methods.training_method import TrainingMethod, cut_state

LOSS = torch.zeros(())


def residual_in_training() -> tuple[LayerGraph, nn.Module]:
    graph = well_conditioned(residual())
    return graph, network(graph, new_state(graph, 0))


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def train_with_(method: TrainingMethod, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    """One step as the loop makes it."""
    optimizer.zero_grad()
    outputs = model.train()(images)
    F.smooth_l1_loss(outputs, torch.linspace(-3, 3, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).backward()
    method.after_backward_(LOSS)
    optimizer.step()
    method.after_step_(optimizer)


def saved_and_read(method: TrainingMethod) -> dict[str, dict[str, Tensor]]:
    """A method's state after it was in a checkpoint."""
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    state: dict[str, dict[str, Tensor]] = torch.load(file, weights_only=True)
    return state


# Held masks.


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_masks_hold_through_momentum_and_weight_decay(optimizer: str) -> None:
    """An optimizer that has moved the whole network before goes on; what is masked stays exactly zero."""
    graph, model = residual_in_training()
    made = OPTIMIZERS[optimizer](model.parameters())
    for seed in range(2):
        train_(model, made, images_for(graph, seed=seed))
    masks = decide("magnitude", graph, model.state_dict(), 0.7)
    assert isinstance(masks, Masks)
    held = HeldMasks(parameters(model), masks)
    assert held.metrics() == {"sparsity": masks.sparsity}
    for seed in range(4):
        train_with_(held, model, made, images_for(graph, seed=seed))
        for name, mask in masks.keep.items():
            weight = model.state_dict()[name]
            assert not weight[~mask].any()
            assert weight[mask].all()
    assert held.metrics() == {"sparsity": masks.sparsity}


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_what_is_left_trains_as_under_torchs_own_masks(optimizer: str) -> None:
    graph, model = residual_in_training()
    masks = decide("magnitude", graph, model.state_dict(), 0.5)
    assert isinstance(masks, Masks)
    theirs = deepcopy(model)
    for name, mask in masks.keep.items():
        prune.custom_from_mask(theirs.get_submodule(name.removesuffix(".weight")), "weight", mask)
    held = HeldMasks(parameters(model), masks)
    ours_made, theirs_made = OPTIMIZERS[optimizer](model.parameters()), OPTIMIZERS[optimizer](theirs.parameters())
    for seed in range(3):
        train_with_(held, model, ours_made, images_for(graph, seed=seed))
        train_(theirs, theirs_made, images_for(graph, seed=seed))
    for name, mask in masks.keep.items():
        layer = theirs.get_submodule(name.removesuffix(".weight"))
        assert torch.allclose(model.state_dict()[name], layer.weight_orig * mask, rtol=1e-12, atol=1e-14)


def test_masks_are_read_back_and_follow_a_cut() -> None:
    graph, model = residual_in_training()
    masks = decide("magnitude", graph, model.state_dict(), 0.5)
    assert isinstance(masks, Masks)
    held = HeldMasks(parameters(model), masks)
    other = HeldMasks(parameters(network(graph, new_state(graph, 1))), Masks({}))
    other.load_state_dict(saved_and_read(held))  # type: ignore[arg-type]
    assert all(torch.equal(other.masks.keep[name], mask) for name, mask in masks.keep.items())
    plan = decide("filter-l2", graph, model.state_dict(), 0.5)
    assert isinstance(plan, KeepPlan)
    cut = remove_channels(graph, model.state_dict(), plan).cut
    smaller = network(cut.graph, cut.state)
    after = HeldMasks(parameters(smaller), Masks({}))
    assert after.metrics() == {}  # after a cut nothing is masked, and no share of it is zero
    after.load_state_dict(cut_state(held.state_dict(), cut.sources))
    assert after.masks.total < masks.total
    assert after.metrics()["sparsity"] == after.masks.sparsity


# ADMM, by hand: one weight (1, 4), of which half is to stay.


def one_layer(row: list[float]) -> tuple[LayerGraph, State]:
    net = Sketch("Toy", (len(row),))
    graph = net.graph(net.linear("fc", net.x, 1, bias=False))
    return graph, {"fc.weight": torch.tensor([row])}


def test_steps_by_hand() -> None:
    graph, weights = one_layer([4.0, -3.0, 2.0, 1.0])
    project = projection(graph, 0.5, Options())
    first = initial_state(weights, project)
    assert (first.z["fc.weight"].tolist(), first.u["fc.weight"].tolist()) == ([[4, -3, 0, 0]], [[0, 0, 0, 0]])
    weights = {"fc.weight": torch.tensor([[3.5, -2.0, 2.5, 0.5]])}
    second = update_state(weights, first, project)
    assert (second.z["fc.weight"].tolist(), second.u["fc.weight"].tolist()) == ([[3.5, 0, 2.5, 0]], [[0, -2, 0, 0.5]])
    found = measure_residuals(weights, first, second, rho=0.5)
    assert (found.primal, found.dual) == pytest.approx((4.25**0.5, 0.5 * (0.25 + 9 + 6.25) ** 0.5))
    assert found.relative == pytest.approx((4.25 / 22.75) ** 0.5)
    third = update_state(weights, second, project)  # W + U = 3.5 -4 2.5 1: the dual has brought the second weight back
    assert (third.z["fc.weight"].tolist(), third.u["fc.weight"].tolist()) == ([[3.5, -4, 0, 0]], [[0, 0, 2.5, 1]])
    assert rescale_duals(third, 4).u["fc.weight"].tolist() == [[0, 0, 0.625, 0.25]]


def test_gradient_is_that_of_the_term() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    state = AdmmState({"fc.weight": torch.tensor([[0.0, 2.5, 3.0]])}, {"fc.weight": torch.tensor([[0.5, 0.0, -1.0]])})
    (0.25 / 2 * (weight - state.z["fc.weight"] + state.u["fc.weight"]).square().sum()).backward()
    expected, weight.grad = weight.grad, torch.ones_like(weight)
    add_gradient_({"fc.weight": weight}, state, 0.25)
    assert torch.allclose(weight.grad, 1 + expected)  # type: ignore[operator]
    assert expected.tolist() == [[0.375, -0.125, -0.25]]  # type: ignore[union-attr]


@pytest.mark.parametrize("structure", ["weights", "filters", "channels"])
def test_admm_brings_a_network_to_the_sparsity_asked(structure: str) -> None:
    """Trained with the term alone, every weight that is to go comes close to zero, and the hard prune is exact."""
    graph, model = residual_in_training()
    weights = parameters(model)
    settings = AdmmSettings(rho=0.5, rho_factor=2, rho_max=2, interval=2)
    project = projection(graph, 0.6, Options(structure=structure))
    admm = Admm(weights, project, settings)
    before = admm.metrics()["admm_relative"]
    optimizer = SGD(model.parameters(), lr=0.3)
    for epoch in range(1, 13):
        for _ in range(4):
            for weight in weights.values():
                weight.grad = torch.zeros_like(weight)
            admm.after_backward_(LOSS)
            optimizer.step()
        admm.after_epoch_(epoch)
        assert admm.metrics()["admm_rho"] == min(2, 0.5 * 2 ** (epoch // 2))
    assert before > 0.1
    assert admm.metrics()["admm_relative"] < 1e-3
    assert admm.metrics()["admm_dual"] < 1e-3 * before
    masks = project(weights)
    expected = decide("magnitude", graph, model.state_dict(), 0.6, Options(structure=structure))
    assert isinstance(expected, Masks)
    assert masks.removed == expected.removed > 0


def test_admm_goes_on_from_its_state() -> None:
    def trained(stop_after: int) -> State:
        graph, model = residual_in_training()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        project = projection(graph, 0.5, Options())
        settings = AdmmSettings(rho=0.01, rho_factor=3, rho_max=1, interval=1)
        admm = Admm(parameters(model), project, settings)
        for epoch in range(1, 5):
            train_with_(admm, model, optimizer, images_for(graph, seed=epoch))
            admm.after_epoch_(epoch)
            if epoch == stop_after:
                state = saved_and_read(admm)
                admm = Admm(parameters(model), project, settings)
                admm.load_state_dict(state)  # type: ignore[arg-type]
        return {**model.state_dict(), **{name: torch.tensor(number) for name, number in admm.metrics().items()}}

    whole, stopped = trained(stop_after=9), trained(stop_after=2)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


# Soft filter pruning.


@pytest.mark.parametrize("method", ["fpgm", "filter-l2"])
def test_soft_filters_are_zero_after_an_epoch_and_train_on(method: str) -> None:
    graph, model = residual_in_training()
    soft = SoftFilters(graph, parameters(model), method=method, rate=0.5, options=Options(), interval=2, last=6)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    soft.after_epoch_(1)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    masks = filter_masks(graph, model.state_dict(), soft.plan())
    soft.after_epoch_(2)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in masks.applied(before).items())  # BatchNorm's numbers too
    zeroed = ~masks.keep["layer1_0_conv1.weight"]
    train_with_(soft, model, optimizer, images_for(graph))
    assert model.state_dict()["layer1_0_conv1.weight"][zeroed].any()
    trained = {name: weight.clone() for name, weight in model.state_dict().items()}
    plan = soft.plan()
    soft.after_epoch_(6)  # the cut follows, of what would have been zeroed
    assert all(torch.equal(trained[name], weight) for name, weight in model.state_dict().items())
    assert np.array_equal(soft.plan().keep, plan.keep)
    cut = remove_channels(graph, model.state_dict(), plan).cut
    assert cut.graph.layer("layer1_0_conv1")["out_channels"] == 4


def test_soft_pruning_needs_filters() -> None:
    graph, model = residual_in_training()
    with pytest.raises(ConfigError, match="magnitude prunes weights"):
        SoftFilters(graph, parameters(model), method="magnitude", rate=0.5, options=Options(), interval=1, last=1)
    with pytest.raises(ConfigError, match="rate must be at least 0"):
        SoftFilters(graph, parameters(model), method="fpgm", rate=1.0, options=Options(), interval=1, last=1)


# Where retraining starts.


def test_weights_taken_back_are_masked_and_cut_as_any_others() -> None:
    graph, model = residual_in_training()
    early = deepcopy(model.state_dict())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for seed in range(2):
        train_(model, optimizer, images_for(graph, seed=seed))
    last = model.state_dict()
    masks, plan = (decide(method, graph, last, 0.5) for method in ("magnitude", "filter-l1"))
    assert isinstance(masks, Masks)
    assert isinstance(plan, KeepPlan)
    assert torch.equal(masked_start_weights(masks, last, None)["fc.weight"], last["fc.weight"] * masks.keep["fc.weight"])
    assert torch.equal(masked_start_weights(masks, last, early)["fc.weight"], early["fc.weight"] * masks.keep["fc.weight"])
    cut = remove_channels(graph, last, plan).cut
    assert cut_start_weights(cut, None) == dict(cut.state)
    rewound = cut_start_weights(cut, early)
    kept = torch.from_numpy(plan.keep[plan.spaces.ids["layer1_0_conv1", "out"]])
    assert torch.equal(rewound["layer1_0_conv1.weight"], early["layer1_0_conv1.weight"][kept])
    train_(network(cut.graph, rewound), OPTIMIZERS["sgd"](network(cut.graph, rewound).parameters()), images_for(graph))
