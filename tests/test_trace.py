"""Tracing: one graph for all spellings, names, refusals in one line, and generated networks that compute bit for bit the same."""

import copy
import operator
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from graphs import residual
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from traced import IMAGES, check_same, network, targets

from prunetrain import zoo
from prunetrain.errors import TraceError
from prunetrain.graph.layergraph import Declared
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace, trace_with_state
from prunetrain.models.assembling import assemble


class Swish(torch.autograd.Function):
    """Saves memory: only the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return gradient * (gate * (1 + x * (1 - gate)))


class Sum(torch.autograd.Function):
    """In torch's newer form, with a number among the arguments."""

    @staticmethod
    def forward(factor: float, x: Tensor, y: Tensor) -> Tensor:
        return factor * x + y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, ctx.factor * gradient, gradient


class SumInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor: float, x: Tensor, y: Tensor) -> Tensor:
        ctx.factor = factor
        ctx.mark_dirty(x)
        return x.mul_(factor).add_(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, ctx.factor * gradient, gradient


class Chosen(torch.autograd.Function):
    """Arguments without gradients: an index, and a mask of constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(index, mask)
        return x.index_select(1, index) * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        index, mask = ctx.saved_tensors
        return torch.zeros_like(gradient).index_add_(1, index, gradient * mask), None, None


class Strongest(torch.autograd.Function):
    """A second result that has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        largest, index = x.max(1, keepdim=True)
        ctx.save_for_backward(index)
        ctx.mark_non_differentiable(index)
        ctx.shape = x.shape
        return largest, index

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        return torch.zeros(ctx.shape, dtype=gradient.dtype).scatter(1, *ctx.saved_tensors, gradient)


SPELLINGS: dict[str, list[nn.Module]] = {
    "relu": [
        network(lambda self, x: self.relu(x), relu=nn.ReLU()),
        network(lambda self, x: self.relu(input=x), relu=nn.ReLU(inplace=True)),
        network(lambda self, x: F.relu(x)),
        network(lambda self, x: F.relu(x, inplace=True)),
        network(lambda self, x: torch.relu(x)),
        network(lambda self, x: x.relu()),
        network(lambda self, x: self.same(self.relu(x)), same=nn.Identity(), relu=nn.ReLU()),
    ],
    "flatten": [
        network(lambda self, x: self.flatten(x), flatten=nn.Flatten()),
        network(lambda self, x: torch.flatten(x, 1)),
        network(lambda self, x: torch.flatten(x, start_dim=1, end_dim=-1)),
        network(lambda self, x: x.flatten(1)),
        network(lambda self, x: x.flatten(start_dim=1)),
    ],
    "add": [
        network(lambda self, x: x.relu() + x),
        network(lambda self, x: torch.add(x.relu(), x)),
        network(lambda self, x: x.relu().add(x)),
        network(lambda self, x: x.relu().add_(x)),
        network(lambda self, x: operator.iadd(x.relu(), x)),
    ],
    "mul": [
        network(lambda self, x: x.sigmoid() * x),
        network(lambda self, x: torch.mul(self.sigmoid(x), x), sigmoid=nn.Sigmoid()),
        network(lambda self, x: operator.imul(torch.sigmoid(x), x)),
    ],
    "dropout": [
        network(lambda self, x: self.dropout(x), dropout=nn.Dropout(0.3)),
        network(lambda self, x: self.dropout(x), dropout=nn.Dropout(np.float64(0.3))),
        network(lambda self, x: F.dropout(x, 0.3, self.training)),
        network(lambda self, x: F.dropout(x, p=0.3, training=self.training, inplace=True)),
    ],
    "max pooling": [
        network(lambda self, x: self.pool(x), pool=nn.MaxPool2d(2)),
        network(lambda self, x: self.pool(x), pool=nn.MaxPool2d((2, 2), stride=[2, 2], padding=0)),
        network(lambda self, x: F.max_pool2d(x, 2)),
        network(lambda self, x: F.max_pool2d(x, 2, 2)),
        network(lambda self, x: F.max_pool2d(x, kernel_size=(2, 2), stride=2)),
    ],
    "average pooling": [
        network(lambda self, x: self.pool(x), pool=nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)),
        network(lambda self, x: F.avg_pool2d(x, 3, 2, 1, True, False)),
        network(lambda self, x: F.avg_pool2d(x, (3, 3), stride=2, padding=1, ceil_mode=True, count_include_pad=False)),
    ],
    "global pooling": [
        network(lambda self, x: self.pool(x), pool=nn.AdaptiveAvgPool2d(1)),
        network(lambda self, x: self.pool(x), pool=nn.AdaptiveAvgPool2d((1, 1))),
        network(lambda self, x: F.adaptive_avg_pool2d(x, 1)),
        network(lambda self, x: F.adaptive_avg_pool2d(x, [1, 1])),
    ],
    "softmax": [
        network(lambda self, x: self.softmax(x), softmax=nn.Softmax(1)),
        network(lambda self, x: F.softmax(x, dim=1)),
        network(lambda self, x: torch.softmax(x, 1)),
        network(lambda self, x: x.softmax(1)),
        network(lambda self, x: F.softmax(x)),
        network(lambda self, x: self.softmax(x), softmax=nn.Softmax()),
    ],
    "checkpoint": [
        network(lambda self, x: self.conv(x).exp(), conv=nn.Conv2d(3, 4, 1)),
        network(lambda self, x: checkpoint(self.conv, x, use_reentrant=True).exp(), conv=nn.Conv2d(3, 4, 1)),
        network(lambda self, x: checkpoint(self.conv, x, use_reentrant=False).exp(), conv=nn.Conv2d(3, 4, 1)),
    ],
    "gradients written by hand": [
        network(lambda self, x: x * torch.sigmoid(x) + (3.0 * x.relu() + x)),
        network(lambda self, x: Swish.apply(x) + Sum.apply(3.0, x.relu(), x)),
        network(lambda self, x: Swish.apply(x) + SumInPlace.apply(3.0, x.relu(), x)),
        network(lambda self, x: Swish.apply(x) + Sum.apply(3.0, x.relu(), y=x)),
    ],
    "gradients written by hand for some arguments": [
        network(
            lambda self, x: x.index_select(1, self.index) * self.mask, index=torch.tensor([2, 0, 1]), mask=torch.eye(3)[0].view(3, 1, 1)
        ),
        network(lambda self, x: Chosen.apply(x, self.index, self.mask), index=torch.tensor([2, 0, 1]), mask=torch.eye(3)[0].view(3, 1, 1)),
    ],
    "gradients written by hand for some results": [
        network(lambda self, x: x.max(1, keepdim=True)[0] * x),
        network(lambda self, x: Strongest.apply(x)[0] * x),
    ],
    "variable": [
        network(lambda self, x: x + 2 * torch.ones(3, 1, 1)),
        network(lambda self, x: Variable(x) + 2 * Variable(torch.ones(3, 1, 1), requires_grad=False)),
    ],
    "silu": [
        network(lambda self, x: self.act(x), act=nn.SiLU(inplace=True)),
        network(lambda self, x: F.silu(x)),
        network(lambda self, x: F.silu(x, inplace=True)),
    ],
    "relu6": [
        network(lambda self, x: self.act(x), act=nn.ReLU6(inplace=True)),
        network(lambda self, x: F.relu6(x)),
        network(lambda self, x: F.hardtanh(x, 0.0, 6.0)),
    ],
    "subtraction": [
        network(lambda self, x: 1 - x),
        network(lambda self, x: torch.rsub(x, 1)),
        network(lambda self, x: torch.tensor(1) - x),
    ],
    "division": [
        network(lambda self, x: x / 2),
        network(lambda self, x: torch.div(x, 2)),
        network(lambda self, x: torch.true_divide(x, 2)),
        network(lambda self, x: x.clone().div_(2)),
    ],
    "powers": [
        network(lambda self, x: x**2),
        network(lambda self, x: x.pow(2)),
        network(lambda self, x: torch.pow(x, exponent=2)),
    ],
    "mean": [
        network(lambda self, x: x.mean((2, 3), keepdim=True)),
        network(lambda self, x: torch.mean(x, dim=[2, 3], keepdim=True)),
        network(lambda self, x: x.mean(axis=(2, 3), keepdims=True)),
    ],
    "largest": [
        network(lambda self, x: x.max(2)[0]),
        network(lambda self, x: torch.max(x, dim=2).values),
        network(lambda self, x: x.max(axis=2).values),
    ],
    "norm": [
        network(lambda self, x: x.norm(p=2, dim=1, keepdim=True)),
        network(lambda self, x: torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    ],
    "leaky relu": [
        network(lambda self, x: self.relu(x), relu=nn.LeakyReLU(0.2)),
        network(lambda self, x: F.leaky_relu(x, 0.2)),
        network(lambda self, x: F.leaky_relu(x, negative_slope=0.2)),
    ],
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_give_one_graph(spelling: str) -> None:
    first, *others = [trace(model, IMAGES) for model in SPELLINGS[spelling]]
    assert [other == first for other in others] == [True] * len(others)
    assert len(first.steps) >= 1


@pytest.mark.parametrize(
    ("module", "target"),
    [
        (nn.ReLU6(), "F.relu6"),
        (nn.ELU(0.5), "F.elu"),
        (nn.GELU("tanh"), "F.gelu"),
        (nn.SiLU(), "F.silu"),
        (nn.Hardswish(), "F.hardswish"),
        (nn.Hardsigmoid(), "F.hardsigmoid"),
        (nn.Sigmoid(), "torch.sigmoid"),
        (nn.Tanh(), "torch.tanh"),
        (nn.Softshrink(0.3), "F.softshrink"),
        (nn.Hardshrink(0.3), "F.hardshrink"),
        (nn.Tanhshrink(), "F.tanhshrink"),
    ],
)
def test_activations_compute_the_same(module: nn.Module, target: str) -> None:
    graph = trace(network(lambda self, x: self.f(x), f=module), IMAGES)
    assert targets(graph) == [target]
    x = torch.linspace(-5, 5, 192).reshape(1, 3, 8, 8)
    assert torch.equal(instantiate(render(graph), "net.py")(x), module(x))


def test_the_models_modes_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[1].eval()
    trace(model, IMAGES)
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_settings_that_repr_hides_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="circular", padding=1), nn.BatchNorm2d(4, affine=False, eps=0.01))
    graph = trace(model, IMAGES)
    assert graph.layers[0]["padding_mode"] == "circular"
    assert (graph.layers[1]["affine"], graph.layers[1]["eps"], graph.layers[1]["momentum"]) == (False, 0.01, 0.1)


def test_numbers_of_numpy_become_plain() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, (np.int64(1), 3)), nn.BatchNorm2d(4, eps=np.float64(0.001)))
    graph = trace(model, IMAGES)
    assert type(graph.layers[1]["eps"]) is float
    assert graph.layers[0]["kernel_size"] == (1, 3)
    assert "np." not in render(graph)


def test_a_shared_module_is_defined_once() -> None:
    conv = nn.Conv2d(3, 3, 1)
    graph = trace(network(lambda self, x: self.conv(F.relu(self.conv(x))), conv=conv), IMAGES)
    assert [layer.name for layer in graph.layers] == ["conv"]
    assert targets(graph) == ["self.conv", "F.relu", "self.conv"]
    under_two_names = network(lambda self, x: self.second(F.relu(self.first(x))), first=conv, second=conv)
    traced = trace_with_state(under_two_names, IMAGES)
    assert len(traced.graph.layers) == 1
    assert set(traced.state) == {f"{traced.graph.layers[0].name}.weight", f"{traced.graph.layers[0].name}.bias"}


def test_layers_are_in_the_models_order_and_unused_ones_left_out() -> None:
    modules = {name: nn.Conv2d(3, 3, 1) for name in ("a", "b", "c")}
    traced = trace_with_state(network(lambda self, x: self.a(self.c(x)), **modules), IMAGES)
    assert [layer.name for layer in traced.graph.layers] == ["a", "c"]
    assert targets(traced.graph) == ["self.c", "self.a"]
    assert sorted(traced.state) == ["a.bias", "a.weight", "c.bias", "c.weight"]


def test_results_that_nobody_needs_are_left_out() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        F.relu(self.side(x)).sigmoid()
        return self.conv(x)

    graph = trace(network(forward, side=nn.Conv2d(3, 3, 1), conv=nn.Conv2d(3, 4, 1)), IMAGES)
    assert targets(graph) == ["self.conv"]


def test_names_of_nested_modules() -> None:
    block = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1), inner=nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity())))
    model = nn.Sequential(OrderedDict(layer1=nn.Sequential(block)))
    assert [layer.name for layer in trace(model, IMAGES).layers] == ["layer1_0_conv", "layer1_0_inner_0"]


def test_names_that_start_with_digits_or_underscores() -> None:
    model = network(lambda self, x: self._stem(self.body(x)), body=nn.Sequential(nn.Conv2d(3, 3, 1)), _stem=nn.Conv2d(3, 3, 1))
    assert [layer.name for layer in trace(model, IMAGES).layers] == ["body_0", "layer__stem"]
    assert [layer.name for layer in trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), IMAGES).layers] == ["layer_0", "layer_1"]


def test_names_that_collide() -> None:
    nested = nn.Sequential(OrderedDict(b=nn.Conv2d(3, 4, 1)))
    model = network(lambda self, x: self.a_b_2(self.a_b(self.a(x))), a=nested, a_b=nn.Conv2d(4, 5, 1), a_b_2=nn.Conv2d(5, 6, 1))
    traced = trace_with_state(model, IMAGES)
    assert [(layer.name, layer["out_channels"]) for layer in traced.graph.layers] == [("a_b", 4), ("a_b_2", 5), ("a_b_2_2", 6)]
    assert traced.state["a_b_2.weight"].data_ptr() == model.a_b.weight.data_ptr()
    assert torch.equal(traced.state["a_b_2_2.bias"], model.a_b_2.bias)


def test_a_hand_made_graph_traces_to_itself() -> None:
    network = instantiate(render(residual()), "residual.py")
    assert trace(network, IMAGES) == residual()


def test_layers_called_as_functions_are_layers() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, self.conv.bias, stride=(2, 2), padding=1)
        x = F.batch_norm(x, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, self.training, 0.1, 1e-5)
        x = F.prelu(F.group_norm(x, 2, self.gn.weight, self.gn.bias), self.act.weight)
        x = F.layer_norm(x.mean((2, 3)), (4,), self.ln.weight, self.ln.bias)
        return F.linear(x, self.fc_weight, self.fc_bias)

    modules = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "gn": nn.GroupNorm(2, 4), "act": nn.PReLU(), "ln": nn.LayerNorm(4)}
    weights = {"fc_weight": nn.Parameter(torch.rand(5, 4)), "fc_bias": nn.Parameter(torch.rand(5))}
    model = network(forward, **modules, **weights)
    graph = trace(model, IMAGES)
    assert [(layer.name, layer.kind) for layer in graph.layers] == [
        ("fc", "Linear"),
        ("conv", "Conv2d"),
        ("bn", "BatchNorm2d"),
        ("gn", "GroupNorm"),
        ("act", "PReLU"),
        ("ln", "LayerNorm"),
    ]
    assert (graph.layer("conv")["stride"], graph.layer("conv")["padding"], graph.declared) == (2, 1, ())
    with torch.no_grad():
        model.bn.num_batches_tracked += 3
    traced = trace_with_state(model, IMAGES)
    assert traced.state["bn.num_batches_tracked"] == 3
    assert traced.names["fc_weight"] == "fc.weight"


def test_a_batch_norm_with_an_activation_is_both() -> None:
    class BatchNormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps)
            return F.relu(x, inplace=True)

    graph = check_same(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BatchNormAct(4)), (2, 3, 8, 8))
    assert [layer.kind for layer in graph.layers] == ["Conv2d", "BatchNorm2d"]
    assert targets(graph) == ["self.layer_0", "self.layer_1", "F.relu"]


def test_layers_whose_weights_are_not_trained_say_so() -> None:
    """Those of which one weight is trained do not: a file cannot freeze a part."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return F.conv2d(self.norm(self.frozen(x)), self.filter)

    parts = {"frozen": nn.Conv2d(3, 4, 3).requires_grad_(False), "norm": nn.BatchNorm2d(4), "filter": torch.rand(2, 4, 1, 1)}
    graph = check_same(network(forward, **parts), (2, 3, 8, 8))
    assert [(layer.name, layer.trainable) for layer in graph.layers] == [("filter", False), ("frozen", False), ("norm", True)]
    module = instantiate(render(graph), "file")
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["filter.weight", "frozen.weight", "frozen.bias"]
    part = nn.Conv2d(3, 4, 3)
    part.weight.requires_grad_(False)
    assert trace(nn.Sequential(part), IMAGES).layers[0].trainable


def test_declared_parameters_that_are_not_trained_say_so() -> None:
    parts = {"scale": nn.Parameter(torch.ones(3, 1, 1), requires_grad=False), "shift": nn.Parameter(torch.zeros(3, 1, 1))}
    traced = trace_with_state(network(lambda self, x: x * self.scale + self.shift, **parts), IMAGES)
    assert [(tensor.name, tensor.role, tensor.trainable) for tensor in traced.graph.declared] == [
        ("scale", "parameter", False),
        ("shift", "parameter", True),
    ]
    source = render(traced.graph)
    for module in (instantiate(source, "file"), assemble(source, "file", traced.graph, traced.state)):
        assert [(name, p.requires_grad) for name, p in module.named_parameters()] == [("scale", False), ("shift", True)]


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_a_layer_with_a_method_of_its_own_is_followed(method: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    before = getattr(model[0], method)
    setattr(model[0], method, lambda *args: before(*args) * 2)
    assert targets(check_same(model, (2, 3, 8, 8))) == ["self.layer_0", "*"]


def test_a_layer_with_another_method_of_its_own_is_a_layer_still() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU())
    for module in model:
        module.reset_parameters = lambda: None
    graph = check_same(model, (2, 3, 8, 8))
    assert [layer.kind for layer in graph.layers] == ["Conv2d", "BatchNorm2d", "PReLU"]


def test_a_fixed_weight_with_a_learned_bias_is_a_function() -> None:
    """No layer of a file trains a part of its weights."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return F.linear(F.conv2d(x, self.filter, self.bias).mean((2, 3)), self.fixed, self.shift)

    fixed = {"filter": torch.rand(4, 3, 3, 3), "fixed": torch.rand(2, 4)}
    graph = check_same(network(forward, **fixed, bias=nn.Parameter(torch.rand(4)), shift=nn.Parameter(torch.rand(2))), (2, 3, 8, 8))
    assert {tensor.name: tensor.role for tensor in graph.declared} == {
        "filter": "buffer",
        "bias": "parameter",
        "fixed": "buffer",
        "shift": "parameter",
    }


def test_computed_weights_stay_functions() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        weight = self.conv.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / torch.std(weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.conv.bias, padding=1) * self.scale.view(1, -1, 1, 1)

    graph = check_same(network(forward, conv=nn.Conv2d(3, 4, 3), scale=nn.Parameter(torch.ones(4))), (2, 3, 8, 8), (1, 3, 6, 9))
    assert graph.layers == ()
    assert graph.declared == (Declared("conv_weight", (4, 3, 3, 3)), Declared("conv_bias", (4,)), Declared("scale", (4,)))


@pytest.mark.parametrize("function", [torch.var_mean, torch.std_mean])
def test_both_results_of_var_mean(function: Any) -> None:
    """Weight standardisation as it is often written; torch.mean would add in another order, as the gradients do."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        weight = self.conv.weight
        spread, mean = function(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(x, (weight - mean) / torch.sqrt(spread + 1e-10))

    model = network(forward, conv=nn.Conv2d(3, 4, 3, bias=False))
    graph = check_same(model, (2, 3, 8, 8), (1, 3, 6, 9), same_in_training=False)
    assert "torch.var_mean" in targets(graph)


def test_attention_is_a_layer() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    model = network(lambda self, x: self.attention(*[self.conv(x).flatten(2).transpose(1, 2)] * 3, need_weights=False)[0])
    model.conv, model.attention = nn.Conv2d(3, 4, 1), attention
    graph = check_same(model, (2, 3, 8, 8), (1, 3, 4, 4))
    assert (graph.layers[1].kind, dict(graph.layers[1].arguments)) == (
        "MultiheadAttention",
        {"embed_dim": 4, "num_heads": 2, "batch_first": True},
    )


def test_tied_weights_are_one_layer_called_twice() -> None:
    model = network(lambda self, x: self.b(F.relu(self.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    model.b.weight, model.b.bias = model.a.weight, model.a.bias
    traced = trace_with_state(model, IMAGES)
    assert targets(traced.graph) == ["self.a", "F.relu", "self.a"]
    assert traced.names["b.weight"] == traced.names["a.weight"] == "a.weight"
    model.b.bias = None
    with pytest.raises(TraceError, match=r"a\.weight would belong to both self\.a and self\.b: let one module own it"):
        trace(model, IMAGES)


def test_what_forward_stores_is_undone() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        self.seen = x
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias.exp()
        self.calls.append(1)
        return self.conv(x) + self.cache["bias"]

    model = network(forward, conv=nn.Conv2d(3, 4, 1), bias=nn.Parameter(torch.ones(1)))
    model.cache, model.calls = {}, []
    assert targets(trace(model, IMAGES)) == ["torch.exp", "self.conv", "+"]
    assert (hasattr(model, "seen"), model.cache, model.calls) == (False, {}, [])


def test_class_names_become_legal() -> None:
    for name, legal in (("_Net", "Net"), ("F", "NetworkF"), ("class", "Networkclass"), ("Sequential", "Sequential")):
        assert trace(type(name, (nn.Sequential,), {})(nn.ReLU()), IMAGES).class_name == legal


# Every network of the zoo: what is generated computes what was traced. Shapes are the smallest that give BatchNorm more than one value.

SHAPES = {"vgg": (3, 32, 32), "mobilenet-v1": (3, 33, 33), "resnet": (3, 16, 16), "alexnet": (3, 16, 16)}


def zoo_network(name: str) -> tuple[nn.Module, Tensor]:
    shape = next((shape for prefix, shape in SHAPES.items() if name.startswith(prefix)), (1, 28, 28))
    side = zoo._load(name).smallest
    shape = (shape[0], max(shape[1], side), max(shape[2], side))
    with torch.device("meta"):
        model = zoo.build(name, input_shape=shape, num_classes=5)
    fill(model)
    return model, torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))


def fill(model: nn.Module) -> None:
    """Random numbers in all tensors, quickly: a small network's are drawn, a large one's are the same few over and over."""
    numbers = torch.randn(99991, generator=torch.Generator().manual_seed(0)) / 20
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.view(-1).copy_(numbers.repeat(tensor.numel() // len(numbers) + 1)[: tensor.numel()])
                if name.endswith(("running_var", "weight")) and tensor.ndim == 1:
                    tensor.abs_().add_(0.5)
            else:
                tensor.zero_()


def generated(model: nn.Module, example: Tensor) -> nn.Module:
    traced = trace_with_state(model, example)
    with torch.device("meta"):
        network = instantiate(render(traced.graph), "net.py")
    network.load_state_dict({name: tensor.detach() for name, tensor in traced.state.items()}, assign=True)
    return network


def train_once(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients in train mode; of huge classifiers only the biases' gradients."""
    torch.manual_seed(0)
    output = model.train()(images)
    parameters = [parameter for parameter in model.parameters() if parameter.numel() < 3_000_000]
    return output.detach(), list(torch.autograd.grad(output.square().sum(), parameters))


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_networks_compute_bit_for_bit_the_same(name: str) -> None:
    model, images = zoo_network(name)
    network = generated(model, images[:1])
    assert trace(network, images) == trace(model, images)
    assert list(network.state_dict()) == [name.replace(".", "_", name.count(".") - 1) for name in model.state_dict()]

    with torch.inference_mode():
        for batch in (images[:1], images):
            expected = model.eval()(batch)
            assert expected.std() > 0
            assert torch.equal(network.eval()(batch), expected)

    before = copy.deepcopy(dict(model.named_buffers()))
    expected, gradients = train_once(model, images)
    statistics = copy.deepcopy(dict(model.named_buffers()))
    for buffer_name, buffer in model.named_buffers():
        assert not torch.equal(buffer, before[buffer_name])
        buffer.copy_(before[buffer_name])  # the generated network has the same tensors
    output, same_gradients = train_once(network, images)
    assert torch.equal(output, expected)
    assert all(map(torch.equal, same_gradients, gradients))
    assert all(map(torch.equal, network.buffers(), statistics.values()))
    assert sum(bool(gradient.any()) for gradient in gradients) > len(gradients) // 2
