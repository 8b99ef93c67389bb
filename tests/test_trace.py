"""Tracing: one graph for all spellings, names, refusals in one line, and generated networks that compute bit for bit the same."""

import copy
import operator
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from graphs import residual
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain import zoo
from prunetrain.errors import TraceError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace, trace_with_state

IMAGES = torch.zeros(2, 3, 8, 8)


def network(forward: Callable[..., Tensor], **modules: nn.Module) -> nn.Module:
    """A module `Net` with these submodules; `forward` takes it and the images."""
    return type("Net", (nn.Module,), {"__init__": lambda self: _fill(self, modules), "forward": forward})()


def _fill(module: nn.Module, modules: dict[str, nn.Module]) -> None:
    nn.Module.__init__(module)
    for name, child in modules.items():
        setattr(module, name, child)


def targets(graph: LayerGraph) -> list[str]:
    return [step.target for step in graph.steps]


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
    "leaky relu": [
        network(lambda self, x: self.relu(x), relu=nn.LeakyReLU(0.2)),
        network(lambda self, x: F.leaky_relu(x, 0.2)),
        network(lambda self, x: F.leaky_relu(x, negative_slope=0.2)),
    ],
}


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
    ],
)
def test_activations_compute_the_same(module: nn.Module, target: str) -> None:
    graph = trace(network(lambda self, x: self.f(x), f=module), IMAGES)
    assert targets(graph) == [target]
    x = torch.linspace(-5, 5, 192).reshape(1, 3, 8, 8)
    assert torch.equal(instantiate(render(graph), "net.py")(x), module(x))


def test_dropout_that_is_always_on_stays_on() -> None:
    always = trace(network(lambda self, x: F.dropout(x, 0.5)), IMAGES)
    never = trace(network(lambda self, x: F.dropout(x, 0.5, False)), IMAGES)
    assert [graph.steps[0]["training"] for graph in (always, never)] == [True, False]


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


def conv_net(forward: Callable[..., Tensor]) -> nn.Module:
    return network(forward, conv=nn.Conv2d(3, 3, 1), relu=nn.ReLU(inplace=True), drop=nn.Dropout(), same=nn.Identity())


def read_after_an_activation_in_place(self: nn.Module, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.relu(y) + y


def read_after_an_addition_in_place(self: nn.Module, x: Tensor) -> Tensor:
    y = self.conv(x)
    return y.add_(x) + y


def read_through_a_view(self: nn.Module, x: Tensor) -> Tensor:
    y = self.same(self.drop(self.conv(x)))
    flat = y.flatten(2)
    F.relu(y, inplace=True)
    return flat


def write_through_a_view(self: nn.Module, x: Tensor) -> Tensor:
    y = self.conv(x)
    flat = torch.flatten(y, 2).mul_(torch.flatten(x, 2))
    return torch.flatten(y, 2) + flat


@pytest.mark.parametrize(
    "forward",
    [read_after_an_activation_in_place, read_after_an_addition_in_place, read_through_a_view, write_through_a_view],
    ids=lambda forward: forward.__name__,
)
def test_a_result_changed_in_place_and_read_again_is_refused(forward: Callable[..., Tensor]) -> None:
    with pytest.raises(TraceError, match=r"^(module|function|method) \w+ changes \w+ in place, which is read again later$"):
        trace(conv_net(forward), IMAGES)


def test_changes_in_place_that_nobody_sees_are_fine() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.drop(self.relu(self.conv(x)))
        return self.relu(y.add_(x)).flatten(1)

    assert targets(trace(conv_net(forward), IMAGES)) == ["self.conv", "F.relu", "F.dropout", "+", "F.relu", "torch.flatten"]


def in_train_mode_only(self: nn.Module, x: Tensor) -> Tensor:
    return F.relu(self.conv(x)) if self.training else self.conv(x)


def branch_on_data(self: nn.Module, x: Tensor) -> Tensor:
    return self.conv(x) if x.sum() > 0 else x


def silent_assertion(self: nn.Module, x: Tensor) -> Tensor:
    raise AssertionError


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network(lambda self, x, y: x + y), "Net.forward takes more than one argument; networks take one image batch"),
        (network(lambda self, x: (x, x.relu())), "Net.forward must return one tensor"),
        (network(lambda self, x: {"out": x.relu()}), "Net.forward must return one tensor"),
        (
            conv_net(branch_on_data),
            "Net cannot be traced by torch.fx: symbolically traced variables cannot be used",
        ),
        (conv_net(silent_assertion), "Net cannot be traced by torch.fx: AssertionError"),
        (conv_net(in_train_mode_only), "Net.forward takes other steps in train mode than in eval mode"),
        (network(lambda self, x: self.rnn(x), rnn=nn.LSTM(8, 8)), "module rnn: nn.LSTM is not a layer that prunetrain knows yet"),
        (network(lambda self, x: self.f(x), f=nn.PReLU()), "module f: nn.PReLU is not a layer that prunetrain knows yet"),
        (network(lambda self, x: torch.softmax(x, 1)), "function softmax is nothing that prunetrain knows yet"),
        (network(lambda self, x: x.view(2, -1)), "method view is nothing that prunetrain knows yet"),
        (network(lambda self, x: x + self.bias, bias=nn.Parameter(torch.zeros(8))), "attribute bias is nothing that prunetrain knows yet"),
        (network(lambda self, x: x * 2), "function mul: other must be a tensor, not 2"),
        (network(lambda self, x: torch.add(x, x, alpha=2)), "function add: unknown argument 'alpha'"),
        (network(lambda self, x: torch.flatten(x)), "Net does not fit an input of 3x8x8: torch.flatten: start_dim 0 would merge"),
        (network(lambda self, x: self.conv(x), conv=nn.Conv2d(4, 4, 1)), "Net does not fit an input of 3x8x8: self.conv: takes 4 channels"),
        (network(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 4, 9)), "Net does not fit an input of 3x8x8: self.conv: nothing is left"),
        (network(lambda self, x: self.bn(x), bn=nn.BatchNorm2d(3, momentum=None)), "module bn: momentum must be a finite number, not None"),
        (nn.Sequential(OrderedDict([("in", nn.Conv2d(3, 3, 1))])), "module in: 'in' cannot name a layer"),
        (type("_Net", (nn.Sequential,), {})(nn.ReLU()), "_Net cannot be a network file: '_Net' cannot name a class"),
    ],
)
def test_refusals_are_one_line(model: nn.Module, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        trace(model, IMAGES)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_subclass_of_a_layer_is_not_taken_for_the_layer() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    with pytest.raises(TraceError, match="prunetrain knows"):
        trace(nn.Sequential(Scaled(3, 3, 1)), IMAGES)


def test_a_namesake_of_a_layer_is_not_taken_for_the_layer() -> None:
    namesake = type("Conv2d", (nn.Conv2d,), {"__module__": "torch.nn.elsewhere"})  # torch.fx does not look inside it
    with pytest.raises(TraceError, match=r"module 0: nn\.Conv2d is not a layer that prunetrain knows yet"):
        trace(nn.Sequential(namesake(3, 3, 1)), IMAGES)


def test_batch_norm_without_bias_is_refused() -> None:
    bn = nn.BatchNorm2d(3)
    bn.bias = None
    with pytest.raises(TraceError, match="bias=False is not supported yet"):
        trace(nn.Sequential(bn), IMAGES)


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
