"""The group lasso's Triton kernels do what torch does: by Triton's interpreter, which runs them on the CPU.

`test_fused_layers.py` runs this file in a process of its own: the interpreter must be asked for before anything imports Triton.
"""

from typing import Any

import pytest
import torch
from graphs import Sketch, depthwise, gate, layer_graphs, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from test_group_lasso import Weights, weights_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.regularizers import fused_layers, triton_kernels
from prunetrain.regularizers.fused_layers import FusedLayers
from prunetrain.regularizers.group_lasso import GroupLasso

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "kernels_work", lambda device: True)


def wide() -> LayerGraph:
    """Filters of more weights than a program reads at once, more inputs than it has columns."""
    net = Sketch("Toy", (4, 6, 6))
    x = net.conv("conv2", net.conv("conv1", net.x, 42, kernel_size=1), 3, kernel_size=5)
    return net.graph(net.linear("fc2", net.linear("fc1", net.call("torch.flatten", x, start_dim=1), 6), 2))


NETWORKS = {"residual": residual, "depthwise": depthwise, "gate": gate, "wide": wide}


def lassos(graph: LayerGraph, weights: Weights, groups: str = "coupled") -> tuple[GroupLasso, GroupLasso, Weights]:
    """The lasso by kernels, the one by torch's operations, and the latter's weights."""
    others = {name: weight.clone() for name, weight in weights.items()}
    fused, plain = (GroupLasso(graph, find_spaces(graph), tensors, groups=groups) for tensors in (weights, others))
    fused.use_kernels()
    assert (fused._fused is None, plain._fused) == (False, None)
    return fused, plain, others


def assert_close(one: Weights, other: Weights) -> None:
    for name, weight in one.items():
        assert torch.allclose(weight, other[name], rtol=1e-5, atol=1e-7), name
        assert ((weight == 0) == (other[name] == 0)).all(), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", ["slices", "coupled"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_proximal_step_by_kernels_is_that_of_torch(network: str, groups: str, layout: torch.memory_format) -> None:
    graph = NETWORKS[network]()
    weights = {name: w.to(memory_format=layout) if w.dim() == 4 else w for name, w in weights_of(graph).items()}
    fused, plain, others = lassos(graph, weights, groups)
    norms = plain._norms()
    for amount in (0.5 * float(norms.mean()), 0.9 * float(norms.max())):
        assert float(fused.penalty()) == pytest.approx(float(plain.penalty()), rel=1e-5)
        fused.shrink_(amount)
        plain.shrink_(amount)
        assert_close(weights, others)
    assert sum(int((weight == 0).sum()) for weight in weights.values()) > 0


@pytest.mark.parametrize("layout", ["of the weight", "none", "channels last"])
@pytest.mark.parametrize("groups", ["slices", "coupled"])
@pytest.mark.parametrize("network", ["residual", "wide"])
def test_a_subgradient_by_kernels_is_that_of_torch(network: str, groups: str, layout: str) -> None:
    graph = NETWORKS[network]()
    weights = weights_of(graph)
    fused, plain, others = lassos(graph, weights, groups)
    for step in range(2):
        for number, (name, weight) in enumerate(weights.items()):
            gradient: Tensor | None = torch.full_like(weight, 1.0 + step)
            if layout == "none" and (number + step) % 3:
                gradient = None
            if layout == "channels last" and weight.dim() == 4:
                gradient = torch.full_like(weight, 1.0 + step, memory_format=torch.channels_last)
            weight.grad, others[name].grad = gradient, None if gradient is None else gradient.clone()
        fused.add_gradient_(0.25, scale=torch.tensor(2.0))
        plain.add_gradient_(0.25, scale=torch.tensor(2.0))
        for name, weight in weights.items():
            theirs = others[name].grad
            assert (weight.grad is None) == (theirs is None)
            assert weight.grad is None or (theirs is not None and torch.allclose(weight.grad, theirs, rtol=1e-5))
            assert torch.equal(weight, others[name])


@given(layer_graphs(), st.integers(0, 100), st.sampled_from(["slices", "coupled"]))
@settings(max_examples=10, deadline=None)
def test_any_network(graph: LayerGraph, seed: int, groups: str) -> None:
    weights = weights_of(graph, seed)
    others = {name: weight.clone() for name, weight in weights.items()}
    for tensors, kernels in ((weights, True), (others, False)):
        lasso = GroupLasso(graph, find_spaces(graph), tensors, groups=groups)
        if kernels:
            lasso.use_kernels()
        lasso.shrink_(0.2)
    assert_close(weights, others)


def test_a_skipped_step_and_layers_with_a_rate_of_their_own() -> None:
    graph = residual()
    weights = weights_of(graph)
    before = {name: weight.clone() for name, weight in weights.items()}
    fused, plain, others = lassos(graph, weights)
    fused.shrink_(0.3, unless=torch.tensor(True))
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    names = [layer.name for layer in fused._layers]
    amounts = {name: 0.1 * (number % 3) for number, name in enumerate(names)}
    fused.shrink_(amounts)
    plain.shrink_(amounts)
    assert_close(weights, others)


def test_weights_that_were_moved_or_laid_out_anew_are_found() -> None:
    graph = residual()
    weights = weights_of(graph)
    fused, plain, others = lassos(graph, weights)
    name = "layer1_0_conv1.weight"
    old = weights[name].data
    weights[name].data = (2 * old).contiguous(memory_format=torch.channels_last)
    others[name].data = 2 * others[name].data
    untouched = old.clone()
    fused.shrink_(0.3)
    plain.shrink_(0.3)
    assert_close(weights, others)
    assert torch.equal(old, untouched)
    assert fused._fused is not None
    tables = fused._fused
    kept = weights[name].data
    weights[name].data = kept[:2]
    assert not tables.is_current
    weights[name].data = kept.transpose(2, 3)  # a layout that the kernels do not know
    others[name].data = others[name].data.transpose(2, 3)
    fused.shrink_(0.1)
    plain.shrink_(0.1)
    assert fused._fused is None
    assert_close(weights, others)


def test_other_types_and_layouts_and_networks_without_groups_are_left_to_torch() -> None:
    graph = residual()
    double = {name: weight.double() for name, weight in weights_of(graph).items()}
    turned = {name: weight.transpose(-1, -2) if weight.dim() == 4 else weight for name, weight in weights_of(graph).items()}
    frozen = Sketch("Toy", (3,))
    linear = frozen.graph(frozen.linear("fc", frozen.x, 2))
    for network, weights in ((graph, double), (graph, turned), (graph, {}), (linear, weights_of(linear))):
        lasso = GroupLasso(network, find_spaces(network), weights, groups="coupled")
        lasso.use_kernels()
        assert lasso._fused is None
        lasso.shrink_(0.1)


class _Operations(TorchDispatchMode):
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


class _Unlaunched:
    """A kernel that notes its launches, and does nothing."""

    def __init__(self, name: str, launched: list[str]) -> None:
        self._name, self._launched = name, launched

    def __getitem__(self, grid: tuple[int]) -> Any:
        return lambda *arguments, **options: self._launched.append(self._name)


def test_a_step_takes_as_many_operations_for_many_layers_as_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    for layers in (4, 40):
        net = Sketch("Toy", (3, 4, 4))
        x = net.x
        for number in range(layers):
            x = net.conv(f"conv{number}", x, 8, kernel_size=1)
        graph = net.graph(net.linear("fc", net.call("torch.flatten", x, start_dim=1), 2))
        fused, plain, _ = lassos(graph, weights_of(graph))
        launched: list[str] = []
        for kernel in ("sum_filters", "sum_inputs", "scale_filters"):
            monkeypatch.setattr(triton_kernels, kernel, _Unlaunched(kernel, launched))
        fused.add_gradient_(0.1)  # the first notes where gradients are
        found = []
        for step in (fused.shrink_, fused.add_gradient_, plain.shrink_, plain.add_gradient_):
            launched.clear()
            with _Operations() as operations:
                step(0.1)
            assert launched == (["sum_filters", "sum_inputs", "scale_filters"] if len(found) < 2 else [])
            found.append(operations.count)
        counts[layers] = found
    assert counts[4][:2] == counts[40][:2]
    assert max(counts[40][:2]) < 20
    assert min(counts[40][2:]) > 5 * 40


def test_equal_weights_give_equal_bits() -> None:
    sums = []
    for _ in range(2):
        weights = weights_of(wide())
        lasso, _, _ = lassos(wide(), weights)
        sums.append(lasso._norms().clone())
    assert torch.equal(*sums)


def test_the_trial_passes() -> None:
    assert fused_layers._agree_with_torch(CPU)


@pytest.mark.parametrize("name", ["sum_squares", "scale_", "add_to_gradients_"])
def test_a_wrong_kernel_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(FusedLayers, name)

    def wrong(tables: FusedLayers, numbers: Tensor) -> None:
        right(tables, numbers)
        gradient = tables._weights[2].grad
        assert gradient is not None
        {"sum_squares": numbers, "scale_": tables._weights[1][1], "add_to_gradients_": gradient[3, 2, 1]}[name][-2] += 0.01

    monkeypatch.setattr(FusedLayers, name, wrong)
    assert not fused_layers._agree_with_torch(CPU)


def test_the_trial_does_not_depend_on_the_default_type() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert fused_layers._agree_with_torch(CPU)
    finally:
        torch.set_default_dtype(torch.float32)


def test_tables_that_were_made_in_inference_mode_serve_training() -> None:
    graph = residual()
    weights = weights_of(graph)
    fused, plain, others = lassos(graph, weights)
    for tensors in (weights, others):
        tensors["layer1_0_conv1.weight"].data = 2 * tensors["layer1_0_conv1.weight"].data
    with torch.inference_mode():
        fused.penalty()
    fused.add_gradient_(0.25)
    fused.shrink_(0.1)
    for weight in others.values():
        weight.grad = torch.ones_like(weight)
    plain.add_gradient_(0.25)
    plain.shrink_(0.1)
    assert_close(weights, others)
    assert_close(*({name: weight.grad for name, weight in tensors.items() if weight.grad is not None} for tensors in (weights, others)))
