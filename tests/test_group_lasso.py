"""Group lasso against the formula written down naively, with gradients by autograd; and the proximal step by hand."""

import pytest
import torch
from graphs import Sketch, depthwise, gate, layer_graphs, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import new_state, zoo_graph
from torch import Tensor

from prunetrain.channels.slices import sliced_layers
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.regularizers.group_lasso import GroupLasso, _group_members

Weights = dict[str, Tensor]


def flattened() -> LayerGraph:
    """A conv that fills four features a channel, BatchNorm on features, and a grouped conv that freezes what it touches."""
    net = Sketch("Toy", (4, 4, 4))
    x = net.conv("conv2", net.conv("grouped", net.x, 4, kernel_size=1, groups=2), 3, kernel_size=3)
    x = net.norm("bn", net.linear("fc1", net.call("torch.flatten", x, start_dim=1), 5))
    return net.graph(net.linear("fc2", x, 2))


def beside_the_images() -> LayerGraph:
    """A conv that reads channels that can go together with those of the images, which cannot."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.conv("conv2", net.cat(net.x, net.conv("conv1", net.x, 3, kernel_size=1)), 3, kernel_size=1)
    return net.graph(net.linear("fc", net.call("torch.flatten", x, start_dim=1), 2))


NETWORKS = {"residual": residual, "depthwise": depthwise, "gate": gate, "flattened": flattened, "beside the images": beside_the_images}


def weights_of(graph: LayerGraph, seed: int = 0) -> Weights:
    """Float32 parameters with gradients that are not zero."""
    weights = {name: tensor.float() for name, tensor in new_state(graph, seed).items() if name.endswith(("weight", "bias"))}
    for tensor in weights.values():
        tensor.grad = torch.ones_like(tensor)
    return weights


def lasso_of(graph: LayerGraph, weights: Weights, groups: str) -> GroupLasso:
    return GroupLasso(graph, find_spaces(graph), weights, groups=groups)


def naive_groups(graph: LayerGraph, weights: Weights, groups: str) -> list[Tensor]:
    """The weights of each group, in a row."""
    spaces = find_spaces(graph)
    frozen = spaces.frozen_channels()
    slices: list[tuple[int, Tensor]] = []
    for layer in sliced_layers(graph):
        weight = weights[f"{layer.name}.weight"]
        for axis, dim in (("out", 0), ("in", 1)):
            ids = spaces.ids.get((layer.name, axis))
            if ids is not None:
                slices += [(int(channel), weight.select(dim, i).flatten()) for i, channel in enumerate(ids) if not frozen[channel]]
    if groups == "slices":
        return [weight for _, weight in slices]
    return [torch.cat([weight for other, weight in slices if other == channel]) for channel in sorted({channel for channel, _ in slices})]


def naive(graph: LayerGraph, weights: Weights, groups: str) -> tuple[Tensor, Weights]:
    """The penalty, and its gradient by autograd; float64."""
    leaves = {name: weight.detach().double().requires_grad_() for name, weight in weights.items()}
    penalty = sum((torch.linalg.vector_norm(group) for group in naive_groups(graph, leaves, groups)), torch.zeros((), dtype=torch.float64))
    if penalty.requires_grad:
        penalty.backward()
    return penalty.detach(), {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def assert_like_the_formula(graph: LayerGraph, weights: Weights, groups: str) -> None:
    lasso = lasso_of(graph, weights, groups)
    penalty, gradient = naive(graph, weights, groups)
    assert float(lasso.penalty()) == pytest.approx(float(penalty), rel=1e-5, abs=1e-6)
    before = {name: weight.clone() for name, weight in weights.items()}
    lasso.add_gradient_(0.25)
    for name, weight in weights.items():
        assert torch.equal(weight, before[name])
        assert weight.grad is not None
        assert torch.allclose(weight.grad.double(), 1 + 0.25 * gradient[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", ["slices", "coupled"])
@pytest.mark.parametrize("network", NETWORKS)
def test_penalty_and_gradient(network: str, groups: str) -> None:
    graph = NETWORKS[network]()
    assert_like_the_formula(graph, weights_of(graph), groups)


@pytest.mark.parametrize("groups", ["slices", "coupled"])
def test_depthwise_network_of_the_zoo(groups: str) -> None:
    graph = zoo_graph("mobilenet-v1-cifar", width=5)
    assert_like_the_formula(graph, weights_of(graph), groups)


@given(graph=layer_graphs(), seed=st.integers(0, 100), groups=st.sampled_from(["slices", "coupled"]))
@settings(max_examples=60, derandomize=True)
def test_any_network(graph: LayerGraph, seed: int, groups: str) -> None:
    assert_like_the_formula(graph, weights_of(graph, seed), groups)


def test_groups_of_a_residual_network() -> None:
    graph = residual(stem=8, inner=(8, 16), wide=16)
    sizes = {groups: len(naive_groups(graph, weights_of(graph), groups)) for groups in ("slices", "coupled")}
    filters, inputs = 8 + 8 + 8 + 16 + 16 + 16, 8 + 8 + 8 + 8 + 16 + 16
    assert sizes == {"slices": filters + inputs, "coupled": 8 + 8 + 16 + 16}


@pytest.mark.parametrize("groups", ["slices", "coupled"])
def test_input_output_and_depthwise_are_left_alone(groups: str) -> None:
    """Groups are the filters of the first layer and the inputs of the last."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("depthwise", net.conv("first", net.x, 2, kernel_size=1, bias=False), 2, kernel_size=1, groups=2, bias=False)
    graph = net.graph(net.conv("last", x, 2, kernel_size=1, bias=False))
    weights = weights_of(graph)
    weights["first.weight"].copy_(torch.tensor([[3.0, 4], [0, 0]])[:, :, None, None])
    weights["last.weight"].copy_(torch.tensor([[0.0, 5], [0, 12]])[:, :, None, None])
    lasso = lasso_of(graph, weights, groups)
    assert float(lasso.penalty()) == pytest.approx(5 + 13)
    lasso.add_gradient_(1.0)
    gradients = {name: (weight.grad - 1).flatten().tolist() for name, weight in weights.items() if weight.grad is not None}
    assert gradients["first.weight"] == pytest.approx([0.6, 0.8, 0, 0])
    assert gradients["last.weight"] == pytest.approx([0, 5 / 13, 0, 12 / 13])
    assert gradients["depthwise.weight"] == [0, 0]


@pytest.mark.parametrize("groups", ["slices", "coupled"])
def test_zero_groups_have_no_gradient(groups: str) -> None:
    graph = residual()
    weights = weights_of(graph)
    weights["conv1.weight"][2] = 0
    weights["layer1_0_conv2.weight"].zero_()
    weights["fc.weight"].zero_()
    lasso = lasso_of(graph, weights, groups)
    lasso.add_gradient_(3.0)
    assert all(torch.isfinite(weight.grad).all() for weight in weights.values() if weight.grad is not None)
    for name, index in (("conv1.weight", 2), ("layer1_0_conv2.weight", ...), ("fc.weight", ...)):
        assert (weights[name].grad[index] == 1).all()  # type: ignore[index]
    lasso.shrink_(0.1)
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_weight_without_a_gradient_gets_none() -> None:
    graph = residual()
    weights = weights_of(graph)
    weights["conv1.weight"].grad = None
    lasso_of(graph, weights, "slices").add_gradient_(1.0)
    assert weights["conv1.weight"].grad is None


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.9])
def test_strength_makes_the_penalty_this_share_of_the_whole(ratio: float) -> None:
    graph = residual()
    lasso = lasso_of(graph, weights_of(graph), "slices")
    loss = torch.tensor(2.5)
    penalty = lasso.strength_for(ratio, loss) * float(lasso.penalty())
    assert penalty / (float(loss) + penalty) == pytest.approx(ratio)


def test_strength_for_weights_that_are_all_zero() -> None:
    graph = residual()
    weights = {name: torch.zeros_like(weight) for name, weight in weights_of(graph).items()}
    assert lasso_of(graph, weights, "slices").strength_for(0.2, torch.tensor(1.0)) == 0.0


def chain_of_linear_layers() -> tuple[LayerGraph, Weights]:
    """fc1 (1 -> 2), fc2 (2 -> 2), fc3 (2 -> 1)."""
    net = Sketch("Toy", (1,))
    x = net.linear("fc2", net.linear("fc1", net.x, 2, bias=False), 2, bias=False)
    graph = net.graph(net.linear("fc3", x, 1, bias=False))
    weights = {
        "fc1.weight": torch.tensor([[2.0], [-0.5]]),
        "fc2.weight": torch.tensor([[3.0, -4], [0.3, 0]]),
        "fc3.weight": torch.tensor([[4.0, 1]]),
    }
    return graph, weights


def test_proximal_step_on_slices_by_hand() -> None:
    graph, weights = chain_of_linear_layers()
    lasso_of(graph, weights, "slices").shrink_(1.0)
    # fc1: filters of norms 2 and 0.5. fc3: input slices of norms 4 and 1.
    assert weights["fc1.weight"].tolist() == [[1.0], [0.0]]
    assert weights["fc3.weight"].flatten().tolist() == pytest.approx([3.0, 0.0])
    # fc2: filters of norms 5 and 0.3, input slices of norms sqrt(9.09) and 4.
    columns = torch.tensor([1 - 9.09**-0.5, 1 - 1 / 4])
    assert torch.allclose(weights["fc2.weight"][0], torch.tensor([3.0, -4]) * 0.8 * columns)
    assert weights["fc2.weight"][1].tolist() == [0, 0]


def test_proximal_step_on_coupled_groups_by_hand() -> None:
    graph, weights = chain_of_linear_layers()
    lasso_of(graph, weights, "coupled").shrink_(1.0)
    first = [1 - norm**-1 for norm in ((4 + 9.09) ** 0.5, (0.25 + 16) ** 0.5)]  # the channels between fc1 and fc2
    second = [1 - norm**-1 for norm in ((25 + 16) ** 0.5, (0.09 + 1) ** 0.5)]  # between fc2 and fc3
    assert weights["fc1.weight"].flatten().tolist() == pytest.approx([2 * first[0], -0.5 * first[1]])
    assert weights["fc2.weight"].flatten().tolist() == pytest.approx(
        [3 * second[0] * first[0], -4 * second[0] * first[1], 0.3 * second[1] * first[0], 0]
    )
    assert weights["fc3.weight"].flatten().tolist() == pytest.approx([4 * second[0], second[1]])


def test_proximal_step_spares_the_images_by_hand() -> None:
    """Of the second conv's five inputs two are the images': only its filters shrink them; one of norm 0.1 is a channel that goes."""
    graph = beside_the_images()
    weights = {name: torch.ones_like(tensor) for name, tensor in weights_of(graph).items()}
    weights["conv2.weight"][:, 2:] = 0.1 / 3**0.5
    norm = (2 + 3 * 0.1**2 / 3) ** 0.5  # of a filter
    lasso_of(graph, weights, "slices").shrink_(0.5)
    assert torch.allclose(weights["conv2.weight"][:, :2], torch.tensor(1 - 0.5 / norm))
    assert not weights["conv2.weight"][:, 2:].any()


@pytest.mark.parametrize("groups", ["slices", "coupled"])
def test_proximal_step_makes_zeros_and_flips_no_sign(groups: str) -> None:
    graph = residual()
    weights = weights_of(graph)
    before = {name: weight.clone() for name, weight in weights.items()}
    norms = torch.stack([torch.linalg.vector_norm(group) for group in naive_groups(graph, weights, groups)])
    amount = float(norms.median())
    lasso_of(graph, weights, groups).shrink_(amount)
    for name, weight in weights.items():
        assert (weight * before[name] >= 0).all()
        assert (weight.abs() <= before[name].abs()).all()
    dead = torch.stack([(group == 0).all() for group in naive_groups(graph, weights, groups)])
    assert dead[norms < amount * 0.999].all()
    assert dead.any() and not dead.all()


@pytest.mark.parametrize("amount", [0.0, -1.0])
def test_proximal_step_of_nothing(amount: float) -> None:
    graph, weights = chain_of_linear_layers()
    lasso_of(graph, weights, "slices").shrink_(amount)
    assert torch.equal(weights["fc2.weight"], torch.tensor([[3.0, -4], [0.3, 0]]))


@pytest.mark.parametrize("groups", ["slices", "coupled"])
def test_channels_last_makes_no_difference(groups: str) -> None:
    graph = residual()
    plain, other = weights_of(graph), weights_of(graph)
    for name, weight in other.items():
        if weight.dim() == 4:
            other[name] = weight.contiguous(memory_format=torch.channels_last)
            other[name].grad = torch.ones_like(other[name])
    assert other["layer1_0_conv1.weight"].stride() != plain["layer1_0_conv1.weight"].stride()
    penalties = []
    for weights in (plain, other):
        lasso = lasso_of(graph, weights, groups)
        penalties.append(float(lasso.penalty()))
        lasso.add_gradient_(0.5)
        lasso.shrink_(0.3)
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-6)
    for name, weight in plain.items():
        assert torch.allclose(weight, other[name], rtol=1e-5, atol=1e-7)
        assert weight.grad is not None
        assert torch.allclose(weight.grad, other[name].grad, rtol=1e-5, atol=1e-6)


def test_network_without_groups_has_no_penalty() -> None:
    net = Sketch("Toy", (3,))
    graph = net.graph(net.linear("fc", net.x, 2))
    for groups in ("slices", "coupled"):
        weights = weights_of(graph)
        lasso = lasso_of(graph, weights, groups)
        assert float(lasso.penalty()) == 0
        lasso.add_gradient_(1.0)
        lasso.shrink_(1.0)
        assert (weights["fc.weight"].grad == 1).all()
    only_norm = Sketch("Toy", (3,))
    graph = only_norm.graph(only_norm.norm("bn", only_norm.x))
    assert float(lasso_of(graph, weights_of(graph), "coupled").penalty()) == 0


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 100))
@settings(deadline=None)
def test_members_of_a_group_are_added_in_one_order(numbers: list[int], seed: int) -> None:
    """Every position is in the table of its group once, in its order; tables are at most twice as large as what is in them."""
    ids = torch.tensor(numbers)
    groups, tables = _group_members(ids)
    rows = [[place for place in row if place < len(ids)] for table in tables for row in table.tolist()]
    assert sorted(place for row in rows for place in row) == list(range(len(ids)))
    assert all(row == sorted(row) and len({numbers[place] for place in row}) == 1 for row in rows)
    assert all(groups[place] == number for number, row in enumerate(rows) for place in row)
    assert sum(table.numel() for table in tables) < 2 * len(ids)
    sums = torch.randn(len(ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    added = torch.cat([torch.cat([sums, torch.zeros(1)])[table].sum(1) for table in tables])
    assert torch.allclose(added[groups], torch.zeros(31, dtype=torch.float64).index_add_(0, ids, sums)[ids])
