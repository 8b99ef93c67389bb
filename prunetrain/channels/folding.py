"""Prepare networks for inference: remove what only training needs, and fold BatchNorm into the layer before it.

In: a graph and its state dict. Out: both, smaller, with the same outputs in eval mode. Nothing is changed in place.

    BatchNorm(W x + b) = gamma * (W x + b - mean) / sqrt(var + eps) + beta = (s W) x + (s (b - mean) + beta),    s = gamma / sqrt(var + eps)

In train mode BatchNorm uses the statistics of the batch, so the folded network is for eval mode only.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from prunetrain.channels.editing import filter_state, rebuild_graph
from prunetrain.graph.layergraph import Layer, LayerGraph, Step, Value
from prunetrain.graph.shapes import infer_shapes

_FOLDS = {"Conv1d": "BatchNorm1d", "Conv2d": "BatchNorm2d", "Linear": "BatchNorm1d"}


def count_batch_norms(graph: LayerGraph) -> int:
    """The number of BatchNorm layers in a graph."""
    return sum(layer.kind.startswith("BatchNorm") for layer in graph.layers)


def remove_training_heads(graph: LayerGraph, state: Mapping[str, Tensor]) -> tuple[LayerGraph, dict[str, Tensor]]:
    """Remove the heads that exist in train mode only."""
    smaller = rebuild_graph(graph, graph.steps, (graph.output, *graph.extra), graph.layers, graph.declared)
    return smaller, filter_state(smaller, state)


def fold_batch_norm(graph: LayerGraph, state: Mapping[str, Tensor]) -> tuple[LayerGraph, dict[str, Tensor]]:
    """Fold every BatchNorm that is the only reader of a conv or linear layer; the others stay.

    Both layers must be called exactly once, and the BatchNorm must keep running statistics. The arithmetic is in float64; weights keep
    their type.

    Args:
        graph: the network.
        state: its state dict, on any device.
    """
    folds = _foldable(graph)
    gone = {norm.name for norm in folds.values()}
    folded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, part = name.partition(".")
        if layer in folds and part == "weight":
            folded[name], folded[f"{layer}.bias"] = _fold(state, layer, folds[layer])
        elif layer not in folds and layer not in gone:
            folded[name] = tensor
    biased = {layer.name: layer.with_arguments(bias=True) for layer in graph.layers if layer.name in folds}
    calls = {value: step["input"] for value, step in graph.results() if step.layer in gone}
    return _remove_steps(graph, calls, biased), folded


def _foldable(graph: LayerGraph) -> dict[str, Layer]:
    """The BatchNorm that can be folded into each layer, by the layer's name."""
    shapes, uses = infer_shapes(graph), graph.uses()
    layers = {layer.name: layer for layer in graph.layers}
    calls = Counter(step.layer for step in graph.steps)
    folds = {}
    for value, step in graph.results():
        producer = layers.get(step.layer or "")
        if producer is None or producer.kind not in _FOLDS or len(uses[value]) != 1 or value in graph.outputs:
            continue
        reader = graph.steps[uses[value][0]]
        norm = layers.get(reader.layer or "")
        if norm is None or norm.kind != _FOLDS[producer.kind] or not norm["track_running_stats"]:
            continue
        rows = producer.kind == "Linear" and len(shapes[value.index]) > 2  # there BatchNorm's channels are rows, not features
        if calls[producer.name] == calls[norm.name] == 1 and not rows:
            folds[producer.name] = norm
    return folds


def _fold(state: Mapping[str, Tensor], producer: str, norm: Layer) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer with its BatchNorm folded in."""
    weight = state[f"{producer}.weight"]
    mean, variance = (state[f"{norm.name}.running_{what}"].double() for what in ("mean", "var"))
    scale = torch.rsqrt(variance + norm["eps"])
    shift = torch.zeros_like(mean)
    if norm["affine"]:
        scale = scale * state[f"{norm.name}.weight"].double()
        shift = state[f"{norm.name}.bias"].double()
    bias = state[f"{producer}.bias"].double() if f"{producer}.bias" in state else torch.zeros_like(mean)
    by_filter = scale.view(-1, *(1 for _ in weight.shape[1:]))
    return (weight.double() * by_filter).to(weight.dtype), (shift + scale * (bias - mean)).to(weight.dtype)


def _remove_steps(graph: LayerGraph, gone: Mapping[Value, Value], layers: Mapping[str, Layer]) -> LayerGraph:
    """Return the graph without some steps.

    Args:
        graph: a graph.
        gone: the result of each removed step, and the value that is read in its place.
        layers: replacements of some layers, by name.
    """
    now = {Value(0): Value(0)}
    steps: list[Step] = []
    for value, step in graph.results():
        if value in gone:
            now[value] = now[gone[value]]
        else:
            steps.append(step.map_values(now.__getitem__))
            now[value] = Value(len(steps))
    outputs = [now[value] for value in graph.outputs]
    return rebuild_graph(graph, steps, outputs, [layers.get(layer.name, layer) for layer in graph.layers], graph.declared)
