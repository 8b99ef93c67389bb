"""What tests of cuts need: zoo networks made narrow, weights for any graph, damage to them, and what must hold of a cut.

All weights are float64. Damage makes exact zeros, as a cut takes them to be.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from prunetrain import zoo
from prunetrain.channels.reductions import reads_all_channels
from prunetrain.channels.slices import sliced_layers
from prunetrain.channels.slicing import Cut, slice_optimizer_state
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph, Step
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace

State = dict[str, Tensor]


ZOO_INPUTS = {
    **dict.fromkeys(zoo.names(), (3, 8, 8)),
    **dict.fromkeys(("alexnet", "lenet5"), (3, 20, 20)),
    **dict.fromkeys(("mobilenet-v1", "mobilenet-v1-0.75"), (3, 20, 20)),
    **dict.fromkeys(("mobilenet-v1-cifar", "mobilenet-v1-cifar-0.75"), (3, 12, 12)),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), (3, 40, 40)),
    **dict.fromkeys(("vgg8", "vgg11", "vgg13", "vgg16", "vgg19", "vgg16-bn"), (3, 32, 32)),
}


def zoo_graph(name: str, *, width: int) -> LayerGraph:
    """A network of the zoo with at most `width` channels in each space: the same steps, small enough to test everything on."""
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
        changes: dict[str, Any] = {
            size: sizes[layer.name, axis] for axis, size in layer.signature.sizes.items() if (layer.name, axis) in sizes
        }
        if layer.conv_groups > 1:  # depthwise
            changes |= {"in_channels": changes["out_channels"], "groups": changes["out_channels"]}
        layers.append(layer.with_arguments(**changes))
    return well_conditioned(replace(graph, layers=tuple(layers)))


def well_conditioned(graph: LayerGraph) -> LayerGraph:
    """The network such that two forms of it can be compared after a step in train mode: dropout has p = 0, and rounding stays small.

    A BatchNorm divides the noise of a constant channel by sqrt(eps), so eps is large; and it has a bias, without which the constant would
    lie at the kink of the next ReLU, where noise decides the gradient.
    """
    changes: dict[str, dict[str, Any]] = {
        **{kind: {"affine": True, "eps": 0.1} for kind in ("BatchNorm1d", "BatchNorm2d")},
        **{kind: {"eps": 0.1} for kind in ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm2d")},
        "MultiheadAttention": {"dropout": 0.0},
    }
    layers = tuple(layer.with_arguments(**changes.get(layer.kind, {})) for layer in graph.layers)
    steps = tuple(Step.make(s.target, **dict(s.arguments) | {"p": 0.0}) if s.target.startswith("F.dropout") else s for s in graph.steps)
    return replace(graph, layers=layers, steps=steps)


@lru_cache(maxsize=8)
def _built(graph: LayerGraph) -> nn.Module:
    return instantiate(render(graph), "<test>").double()


def network(graph: LayerGraph, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The network of a graph's file, float64, with a copy of these weights; loading is strict."""
    model = deepcopy(_built(graph))
    if state is not None:
        model.load_state_dict(state)
    return model


def new_state(graph: LayerGraph, seed: int) -> State:
    """Random weights; scales, biases and running means of both signs."""
    generator = torch.Generator().manual_seed(seed)
    state = network(graph).state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        match name.split(".")[-1]:
            case "running_var":
                drawn = drawn.square() + 0.5
            case "weight" if tensor.dim() > 1:
                drawn *= (2 / tensor[0].numel()) ** 0.5
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

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {  # eps is large, or the step follows the noise of zero gradients
    "sgd": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.02),
    "adamw": lambda parameters: AdamW(parameters, lr=0.01, eps=1e-4, weight_decay=0.1),
    "nesterov": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.02),
    "plain sgd": lambda parameters: SGD(parameters, lr=0.05),
    "adam": lambda parameters: Adam(parameters, lr=0.01, eps=1e-4),
    "amsgrad": lambda parameters: AdamW(parameters, lr=0.01, eps=1e-4, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda parameters: RMSprop(parameters, lr=0.001, eps=1e-4, momentum=0.9, centered=True),
    "adagrad": lambda parameters: Adagrad(parameters, lr=0.01, eps=1e-4, initial_accumulator_value=0.1),
    "nadam": lambda parameters: NAdam(parameters, lr=0.01, eps=1e-4),
}
MAIN_OPTIMIZERS = ("sgd", "adamw")


def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    """All that a network returns, a row an image."""
    outputs = model(images)
    return torch.cat([output.flatten(1) for output in outputs], 1) if isinstance(outputs, tuple) else outputs


def in_train_mode(model: nn.Module, always_eval: Collection[str] = ()) -> nn.Module:
    """The model in train mode but for some layers, those of these that it has."""
    model.train()
    for name, layer in model.named_children():
        layer.train(name not in always_eval)
    return model


def train_(model: nn.Module, optimizer: Optimizer, images: Tensor, always_eval: Collection[str] = ()) -> None:
    """One step on a batch."""
    optimizer.zero_grad()
    outputs = outputs_of(in_train_mode(model, always_eval), images)
    F.smooth_l1_loss(outputs, torch.linspace(-3, 3, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).backward()
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


def assert_same_function(graph: LayerGraph, state: State, *cuts: Cut) -> None:
    """Outputs in eval mode agree to 1e-10."""
    images = images_for(graph, seed=3)
    with torch.no_grad():
        expected = outputs_of(network(graph, state).eval(), images)
        for cut in cuts:
            difference = outputs_of(network(cut.graph, cut.state).eval(), images) - expected
            assert difference.abs().max() <= 1e-10 * expected.abs().max()


def assert_same_in_train_mode(graph: LayerGraph, state: State, *cuts: Cut, always_eval: Collection[str] = ()) -> None:
    """Outputs in train mode agree to 1e-10."""
    images = images_for(graph, seed=3)
    with torch.no_grad():
        expected = outputs_of(in_train_mode(network(graph, state), always_eval), images)
        for cut in cuts:
            difference = outputs_of(in_train_mode(network(cut.graph, cut.state), always_eval), images) - expected
            assert difference.abs().max() <= 1e-10 * expected.abs().max()


def assert_same_step(
    graph: LayerGraph, state: State, *cuts: Cut, optimizer: str, running_means: bool, always_eval: Collection[str] = ()
) -> None:
    """Cut then step gives what step then cut gives.

    With `running_means` these are compared as well: they agree if BatchNorm's two modes do.
    """
    model, made = in_training(graph, state, optimizer)
    going_on = [after_cut(cut, model, made, optimizer) for cut in cuts]
    images = images_for(graph, seed=4)
    train_(model, made, images, always_eval)
    calls = Counter(step.layer for step in graph.steps)
    for cut, (smaller, its_optimizer) in zip(cuts, going_on, strict=True):
        train_(smaller, its_optimizer, images, always_eval)
        compared = dict(smaller.named_parameters())
        for name, buffer in smaller.named_buffers():  # one call of two may go, and with it an update of the statistics
            if calls[name.split(".")[0]] == 1 and (running_means or not name.endswith("mean")):
                compared[name] = buffer
        _assert_same_update(cut, state, model.state_dict(), compared, made.param_groups[0])


def _assert_same_update(cut: Cut, before: State, after: State, smaller: Mapping[str, Tensor], settings: dict[str, Any]) -> None:
    """From `before` to `after` the larger network moved as the smaller one did from `cut.state` to `smaller`.

    A bias that absorbed a constant c is larger by c before the step, and by (1 - lr * weight decay) * c after it, with SGD as with AdamW. A
    running mean that absorbed one keeps its distance. A normalisation over all channels keeps the weights of those that went, which then no
    longer get gradients from a later reduction over the channels.
    """
    whole = {layer.name for layer in cut.graph.layers if reads_all_channels(layer)}
    for name, tensor in smaller.items():
        source = cut.sources[name]
        start = source.gather(before[source.name])
        update = (source.gather(after[source.name]) - start).double()
        absorbed = cut.state[name] - start
        if "running" not in name:
            assert not absorbed.any() or name.endswith("bias") or "_rest" in name
            update = update - settings["lr"] * settings["weight_decay"] * absorbed
        moved_apart = tensor - cut.state[name] - update
        if name.split(".")[0] in whole:
            moved_apart = moved_apart[cut.state[name] != 0]
        difference = moved_apart.abs().max() if moved_apart.numel() else torch.zeros(())
        assert difference <= 1e-9 * max(1, tensor.abs().max()), name
        assert difference <= 1e-7 * update.abs().max() + 1e-11, name
