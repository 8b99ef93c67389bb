"""What the library asks of the group lasso: an amount for each layer, layers left out, any precision, and how far a step reaches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from prunetrain import trace
from prunetrain.channels.spaces import find_spaces
from prunetrain.regularizers.group_lasso import GroupLasso, proximal_step_size


def chain(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Layers 0 (1 -> 2), 2 (2 -> 2) and 4 (2 -> 1), with rectifiers between."""
    layers = [nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)]
    model = nn.Sequential(*layers).to(dtype)
    with torch.no_grad():
        for layer, numbers in ((0, [[2.0], [0.5]]), (2, [[3.0, -4], [0, 0.5]]), (4, [[4.0, 1]])):
            model[layer].weight.copy_(torch.tensor(numbers))
    return model


def lasso_of(model: nn.Sequential, groups: str, *, without: str = "") -> GroupLasso:
    graph = trace(model, torch.zeros(1, 1))
    weights: dict[str, Tensor] = {f"layer_{n}.weight": model[n].weight for n in (0, 2, 4) if f"layer_{n}" != without}
    return GroupLasso(graph, find_spaces(graph), weights, groups=groups)


def test_an_amount_for_each_layer() -> None:
    model = chain()
    lasso_of(model, "slices").shrink_({"layer_0": 1.0, "layer_2": 0.0, "layer_4": 2.0})
    assert model[0].weight.flatten().tolist() == [1.0, 0.0]  # filters of norms 2 and 0.5
    assert model[2].weight.tolist() == [[3.0, -4], [0, 0.5]]
    assert model[4].weight.flatten().tolist() == [2.0, 0.0]  # input slices of norms 4 and 1


def test_layers_that_are_not_named_stay() -> None:
    model = chain()
    lasso_of(model, "coupled").shrink_({"layer_4": 1.0})
    assert model[0].weight.flatten().tolist() == [2.0, 0.5]
    norms = [(9 + 16 + 16) ** 0.5, (0.25 + 1) ** 0.5]  # of the channels between 2 and 4
    assert model[4].weight.flatten().tolist() == pytest.approx([4 * (1 - 1 / norms[0]), 1 - 1 / norms[1]])


def test_weights_left_out_add_nothing_to_the_groups_of_others() -> None:
    model = chain()
    lasso = lasso_of(model, "coupled", without="layer_2")
    assert float(lasso.penalty()) == pytest.approx(2 + 0.5 + 4 + 1)
    lasso.shrink_(0.75)
    assert model[0].weight.flatten().tolist() == pytest.approx([1.25, 0])
    assert model[2].weight.tolist() == [[3.0, -4], [0, 0.5]]
    assert model[4].weight.flatten().tolist() == pytest.approx([3.25, 0.25])


@pytest.mark.parametrize("groups", ["slices", "coupled"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_precisions(dtype: torch.dtype, tolerance: float, groups: str) -> None:
    exact, model = chain(), chain(dtype)
    found = []
    for network in (exact, model):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        lasso = lasso_of(network, groups)
        penalty = float(lasso.penalty())
        lasso.add_gradient_(0.5)
        lasso.shrink_(0.25)
        found.append([penalty, *(number for p in network.parameters() for number in [*p.flatten().tolist(), *p.grad.flatten().tolist()])])
    assert found[1] == pytest.approx(found[0], rel=tolerance, abs=tolerance)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("make", "reach"),
    [
        (lambda p: optim.SGD(p, lr=0.1), 0.1),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9), 1.0),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 1.0),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), 0.5),
        (lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5), 0.02),
        (lambda p: optim.AdamW(p, lr=0.001), 0.001),
        (lambda p: optim.NAdam(p, lr=torch.tensor(0.002)), 0.002),
        (lambda p: optim.Muon(p, lr=0.02, momentum=0.95), 0.02),
    ],
)
def test_how_far_a_step_reaches(make: Callable[[Any], Optimizer], reach: float) -> None:
    optimizer = make(chain().parameters())
    assert proximal_step_size(optimizer, optimizer.param_groups[0]) == pytest.approx(reach)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.5}])
def test_reach_is_what_a_gradient_does_over_all_later_steps(settings: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.SGD([weight], lr=0.1, **settings)
    weight.grad = torch.zeros(1, dtype=torch.float64)
    optimizer.step()  # torch dampens no first gradient
    for gradient in (1.0, *[0.0] * 300):
        weight.grad = torch.full((1,), gradient, dtype=torch.float64)
        optimizer.step()
    assert float(weight.detach()) == pytest.approx(-proximal_step_size(optimizer, optimizer.param_groups[0]), rel=1e-9)
