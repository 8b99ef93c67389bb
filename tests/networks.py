"""Networks for tests of channels and lasso: toys written line by line, zoo networks made narrow, random ones, weights for them, and damage.

All weights are float64. Damage makes exact zeros, as a cut takes them to be.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from prunetrain import zoo
from prunetrain.channels.slices import sliced_layers
from prunetrain.channels.slicing import Cut, slice_optimizer_state
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import Attribute, Declared, Layer, LayerGraph, Step, Value
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace

State = dict[str, Tensor]


class Net:
    """A network written down line by line: `x = net.conv("conv1", net.input, 3, 8)` defines a layer and calls it."""

    def __init__(self, *input_shape: int) -> None:
        self.input = Value(0)
        self._shape = input_shape
        self._layers: list[Layer] = []
        self._steps: list[Step] = []
        self._declared: list[Declared] = []

    def call(self, target: str, x: Value | Attribute, **arguments: Any) -> Value:
        self._steps.append(Step.make(target, input=x, **arguments))
        return Value(len(self._steps))

    def layer(self, kind: str, name: str, x: Value, **arguments: Any) -> Value:
        self._layers.append(Layer.make(name, kind, **arguments))
        return self.call(f"self.{name}", x)

    def conv(self, name: str, x: Value, in_channels: int, out_channels: int, kernel_size: int = 1, **arguments: Any) -> Value:
        arguments = {"bias": False, **arguments}
        return self.layer("Conv2d", name, x, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, **arguments)

    def linear(self, name: str, x: Value, in_features: int, out_features: int, **arguments: Any) -> Value:
        return self.layer("Linear", name, x, in_features=in_features, out_features=out_features, **arguments)

    def bn(self, name: str, x: Value, channels: int, *, kind: str = "BatchNorm2d", **arguments: Any) -> Value:
        return self.layer(kind, name, x, num_features=channels, **arguments)

    def relu(self, x: Value) -> Value:
        return self.call("F.relu", x)

    def add(self, left: Value | Attribute, right: Value | Attribute) -> Value:
        return self.call("+", left, other=right)

    def flatten(self, x: Value) -> Value:
        return self.call("torch.flatten", x, start_dim=1)

    def declare(self, name: str, *shape: int) -> Attribute:
        self._declared.append(Declared(name, shape))
        return Attribute(name)

    def graph(self, output: Value) -> LayerGraph:
        return LayerGraph("Toy", self._shape, tuple(self._layers), tuple(self._steps), output, tuple(self._declared))


def chain(*, batch_norm: bool = True, padding: int = 0, bias: bool = False) -> LayerGraph:
    """conv1 (3 -> 4), conv2 (4 -> 5), pooling to 2x2, flatten, fc (20 -> 3)."""
    net = Net(3, 6, 6)
    x = net.input
    for name, in_channels, out_channels in (("1", 3, 4), ("2", 4, 5)):
        x = net.conv(f"conv{name}", x, in_channels, out_channels, 3, padding=padding, bias=bias)
        x = net.relu(net.bn(f"bn{name}", x, out_channels) if batch_norm else x)
    x = net.flatten(net.call("F.adaptive_avg_pool2d", x, output_size=2))
    return net.graph(net.linear("fc", x, 20, 3))


def residual(*, projection: bool = False) -> LayerGraph:
    """A stem of 4 channels, a block (4 -> 6 -> 4, or 6 -> 5 with a projection), a classifier."""
    net = Net(3, 6, 6)
    shortcut = stem = net.relu(net.bn("bn1", net.conv("conv1", net.input, 3, 4, 3, padding=1), 4))
    width = 5 if projection else 4
    x = net.relu(net.bn("block_bn1", net.conv("block_conv1", stem, 4, 6, 3, padding=1), 6))
    x = net.bn("block_bn2", net.conv("block_conv2", x, 6, width, 3, padding=1), width)
    if projection:
        shortcut = net.bn("block_bn3", net.conv("block_conv3", stem, 4, width), width)
    x = net.relu(net.add(x, shortcut))
    x = net.flatten(net.call("F.adaptive_avg_pool2d", x, output_size=1))
    return net.graph(net.linear("fc", x, width, 3))


def depthwise(*, multiplier: int = 1) -> LayerGraph:
    """A pointwise conv (3 -> 4), a depthwise one, a pointwise one, a classifier."""
    net = Net(3, 6, 6)
    width = 4 * multiplier
    x = net.relu(net.bn("bn1", net.conv("conv1", net.input, 3, 4), 4))
    x = net.relu(net.bn("bn2", net.conv("depthwise", x, 4, width, 3, padding=1, groups=4), width))
    x = net.relu(net.bn("bn3", net.conv("pointwise", x, width, 5), 5))
    x = net.flatten(net.call("F.adaptive_avg_pool2d", x, output_size=1))
    return net.graph(net.linear("fc", x, 5, 3))


ZOO_INPUTS = {
    **dict.fromkeys(zoo.names(), (3, 8, 8)),
    **dict.fromkeys(("alexnet", "lenet5"), (3, 20, 20)),
    **dict.fromkeys(("mobilenet-v1", "mobilenet-v1-0.75"), (3, 20, 20)),
    **dict.fromkeys(("mobilenet-v1-cifar", "mobilenet-v1-cifar-0.75"), (3, 12, 12)),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), (3, 40, 40)),
    **dict.fromkeys(("vgg8", "vgg11", "vgg13", "vgg16", "vgg19", "vgg16-bn"), (3, 32, 32)),
}


def zoo_graph(name: str, *, width: int) -> LayerGraph:
    """A network of the zoo with at most `width` channels in each space: the same steps, and small enough to test everything on.

    Dropout has p = 0, so that two networks can be compared in train mode.
    """
    shape = ZOO_INPUTS[name]
    with torch.device("meta"):
        graph = trace(zoo.build(name, input_shape=shape, num_classes=3), torch.zeros(1, *shape))
    spaces = find_spaces(graph)
    keep = np.ones(spaces.num_channels, dtype=bool)
    for space in spaces.spaces:
        if not space.frozen:
            keep[space.channels[width:]] = False
    sizes = {axis: int(keep[ids].sum()) for axis, ids in spaces.ids.items()}
    layers = []
    for layer in graph.layers:
        changes: dict[str, Any] = {size: sizes[layer.name, axis] for axis, size in layer.signature.sizes.items() if (layer.name, axis) in sizes}
        if layer.is_depthwise:
            changes |= {"in_channels": changes["out_channels"], "groups": changes["out_channels"]}
        layers.append(layer.with_arguments(**changes))
    steps = tuple(Step.make(s.target, **dict(s.arguments) | {"p": 0.0}) if s.target == "F.dropout" else s for s in graph.steps)
    return LayerGraph(graph.class_name, graph.input_shape, tuple(layers), steps, graph.output)


def network(graph: LayerGraph, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The network of a graph's file, float64, with a copy of these weights; loading is strict."""
    model = instantiate(render(graph), "<test>").double()
    if state is not None:
        model.load_state_dict(state)
    return model


def new_state(graph: LayerGraph, seed: int) -> State:
    """Random weights; scales, biases and running means of both signs."""
    generator = torch.Generator().manual_seed(seed)
    state = network(graph).state_dict()
    fans = {layer.name: max(1, state[f"{layer.name}.weight"][0].numel()) for layer in graph.layers if f"{layer.name}.weight" in state}
    for name, tensor in state.items():
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        match name.split(".")[-1]:
            case "num_batches_tracked":
                continue
            case "running_var":
                drawn = drawn.square() + 0.5
            case "weight" if tensor.dim() > 1:
                drawn *= (2 / fans[name.split(".")[0]]) ** 0.5
            case "weight":
                drawn = drawn.sign() * (0.5 + drawn.abs())
        tensor.copy_(drawn)
    return state


def settle_(graph: LayerGraph, state: State, images: Tensor) -> None:
    """Set every running mean to the mean of a batch in train mode, so that constants are the same in both modes."""
    model = network(graph, state).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    model(images)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            state[name].copy_(tensor)


def images_for(graph: LayerGraph, *, seed: int = 0, count: int = 5) -> Tensor:
    return torch.randn(count, *graph.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Damage. Everything is changed in place, on average a third of what could be.


def kill_filters_(graph: LayerGraph, state: State, rng: random.Random) -> None:
    """Zero filters at random, those of depthwise convs too."""
    for layer in graph.layers:
        if layer.kind in ("Conv2d", "Linear"):
            weight = state[f"{layer.name}.weight"]
            weight[[o for o in range(len(weight)) if rng.random() < 1 / 3]] = 0


def kill_slices_(graph: LayerGraph, state: State, rng: random.Random) -> None:
    """Zero input slices at random, all that read the same channel together."""
    spaces = find_spaces(graph)
    for layer in sliced_layers(graph):
        if (layer.name, "in") in spaces.ids:
            ids = spaces.ids[layer.name, "in"]
            dead = [i for i in np.unique(ids).tolist() if rng.random() < 1 / 3]
            state[f"{layer.name}.weight"][:, np.isin(ids, dead)] = 0


def kill_filters_and_slices_(graph: LayerGraph, state: State, rng: random.Random) -> None:
    """Zero filters and input slices at random, independently."""
    kill_filters_(graph, state, rng)
    kill_slices_(graph, state, rng)


def kill_channels_(graph: LayerGraph, state: State, rng: random.Random) -> None:
    """Zero all filters and all input slices of channels at random."""
    spaces = find_spaces(graph)
    dead = [i for i in range(spaces.num_channels) if rng.random() < 1 / 3]
    for layer in sliced_layers(graph):
        weight = state[f"{layer.name}.weight"]
        weight[np.isin(spaces.ids[layer.name, "out"], dead)] = 0
        if (layer.name, "in") in spaces.ids:
            weight[:, np.isin(spaces.ids[layer.name, "in"], dead)] = 0


def kill_layers_(graph: LayerGraph, state: State, rng: random.Random) -> None:
    """Zero the weights of one to three layers."""
    layers = [layer for layer in graph.layers if layer.kind in ("Conv2d", "Linear")]
    for layer in rng.sample(layers, min(len(layers), rng.randint(1, 3))):
        state[f"{layer.name}.weight"].zero_()


DAMAGES: dict[str, Callable[[LayerGraph, State, random.Random], None]] = {
    "filters": kill_filters_,
    "slices": kill_slices_,
    "filters and slices": kill_filters_and_slices_,
    "channels": kill_channels_,
    "layers": kill_layers_,
}


# What must hold of a cut (DESIGN, section 7).

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.02),
    "adamw": lambda parameters: AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def train_(model: nn.Module, optimizer: Optimizer, images: Tensor) -> None:
    """One step on a batch."""
    optimizer.zero_grad()
    logits = model.train()(images).flatten(1)
    F.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1]).backward()
    optimizer.step()


def in_training(graph: LayerGraph, state: State, optimizer: str) -> tuple[nn.Module, Optimizer]:
    """A network with these weights, and an optimizer that has made two steps on it."""
    model = network(graph, state)
    made = OPTIMIZERS[optimizer](model.parameters())
    for seed in (1, 2):
        train_(model, made, images_for(graph, seed=seed))
    model.load_state_dict(state)
    return model, made


def after_cut(cut: Cut, model: nn.Module, made: Optimizer, optimizer: str) -> tuple[nn.Module, Optimizer]:
    """The smaller network and its optimizer, which goes on where the larger one's is; these stay as they are."""
    smaller = network(cut.graph, cut.state)
    state = slice_optimizer_state(
        made.state_dict(),
        [name for name, _ in model.named_parameters()],
        [name for name, _ in smaller.named_parameters()],
        cut.sources,
        {name: parameter.shape for name, parameter in model.named_parameters()},
    )
    going_on = OPTIMIZERS[optimizer](smaller.parameters())
    going_on.load_state_dict(deepcopy(state))
    return smaller, going_on


def assert_same_function(graph: LayerGraph, state: State, cut: Cut) -> None:
    """Outputs in eval mode agree to 1e-10."""
    images = images_for(graph, seed=3)
    with torch.no_grad():
        before, after = network(graph, state).eval()(images), network(cut.graph, cut.state).eval()(images)
    assert (after - before).abs().max() <= 1e-10 * before.abs().max()


def assert_same_step(graph: LayerGraph, state: State, cut: Cut, optimizer: str, *, statistics: bool) -> None:
    """Cut then step gives what step then cut gives.

    A bias that absorbed a constant c is larger by c before the step, and by (1 - lr * weight decay) * c after it, with SGD as with AdamW.
    With `statistics`, the BatchNorms' running statistics are compared as well; one that absorbed a constant keeps the distance.
    """
    model, made = in_training(graph, state, optimizer)
    smaller, going_on = after_cut(cut, model, made, optimizer)
    images = images_for(graph, seed=4)
    train_(model, made, images)
    train_(smaller, going_on, images)
    after, group = model.state_dict(), made.param_groups[0]
    parameters = dict(smaller.named_parameters())
    for name, tensor in smaller.state_dict().items():
        source = cut.sources[name]
        step = (source.gather(after[source.name]) - source.gather(state[source.name])).double()
        absorbed = cut.state[name] - source.gather(state[source.name])
        if name in parameters:
            assert not absorbed.any() or name.endswith("bias")
            step = step - group["lr"] * group["weight_decay"] * absorbed
        elif not statistics:
            continue
        difference = (tensor - cut.state[name] - step).abs().max()
        assert difference <= 1e-9 * tensor.abs().max() + 1e-12, name
        assert difference <= 1e-6 * step.abs().max() + 1e-12, name
