"""What a network costs, from its graph alone: MACs, parameters, activation bytes. No torch.

MACs are multiply-accumulates of one image's forward pass in conv and linear layers; FLOPs = 2 * MACs; training an image costs three
forward passes (DESIGN section 12, as in PruneTrain, arXiv 1901.09290, section 5).
"""

from dataclasses import dataclass
from math import prod

from prunetrain.graph.layergraph import Layer, LayerGraph
from prunetrain.graph.shapes import Shape, infer_shapes

TRAIN_TO_FORWARD = 3  # forward, gradient of the input, gradient of the weight


@dataclass(frozen=True)
class LayerCost:
    """One call of a layer: its output shape, MACs of one image, and parameters (0 at a second call of a shared layer)."""

    layer: Layer
    output_shape: Shape
    macs: int
    params: int


@dataclass(frozen=True)
class Costs:
    """Totals of a network.

    `channels` counts the outputs of conv and linear layers; `activation_elements` the results of all steps, for one image.
    """

    layers: tuple[LayerCost, ...]
    macs: int
    params: int
    channels: int
    activation_elements: int


def costs(graph: LayerGraph) -> Costs:
    """Costs of a graph, layer by layer in forward order, and in total."""
    shapes = infer_shapes(graph)
    layers = {layer.name: layer for layer in graph.layers}
    seen: set[str] = set()
    rows = []
    for value, step in graph.results():
        if step.layer is None:
            continue
        layer, shape = layers[step.layer], shapes[value.index]
        params = 0 if layer.name in seen else parameters(layer)
        rows.append(LayerCost(layer, shape, _macs(layer, shape), params))
        seen.add(layer.name)
    return Costs(
        tuple(rows),
        macs=sum(row.macs for row in rows),
        params=sum(row.params for row in rows) + sum(prod(tensor.shape) for tensor in graph.declared),
        channels=sum(out_channels(layer) or 0 for layer in graph.layers),
        activation_elements=sum(prod(shape) for shape in shapes[1:]),
    )


def out_channels(layer: Layer) -> int | None:
    """How many channels a layer makes; None for layers that only pass them on, such as BatchNorm."""
    size = layer.signature.sizes.get("out")
    return None if size is None else int(layer[size])


def parameters(layer: Layer) -> int:
    """Trainable parameters of a layer."""
    if layer.kind == "Conv2d":
        kernel = layer["kernel_size"]
        window = kernel**2 if isinstance(kernel, int) else prod(kernel)
        return int(layer["out_channels"] * (layer["in_channels"] // layer["groups"] * window + layer["bias"]))
    if layer.kind == "Linear":
        return int(layer["out_features"] * (layer["in_features"] + layer["bias"]))
    return int(2 * layer["num_features"] if layer["affine"] else 0)


def _macs(layer: Layer, output_shape: Shape) -> int:
    if out_channels(layer) is None:
        return 0
    weights = parameters(layer) - (out_channels(layer) or 0) * layer["bias"]
    positions = prod(output_shape[1:]) if layer.kind == "Conv2d" else prod(output_shape[:-1])
    return int(weights * positions)
