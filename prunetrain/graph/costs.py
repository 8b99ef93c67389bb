"""What a network costs, from its graph alone: MACs, parameters, channels, elements of activations. No torch.

MACs are the multiply-accumulates of one image's forward pass in eval mode (without auxiliary heads), in conv and linear layers and in the
projections of attention layers. FLOPs = 2 * MACs. Training on an image costs three forward passes (as in PruneTrain, arXiv 1901.09290,
section 5).
"""

from dataclasses import dataclass
from math import prod

from prunetrain.graph.functions import WEIGHTED
from prunetrain.graph.layergraph import Layer, LayerGraph, Step, Value
from prunetrain.graph.shapes import infer_shapes
from prunetrain.graph.windows import Shape, pair

TRAIN_TO_FORWARD = 3  # forward, gradient of the input, gradient of the weight


@dataclass(frozen=True)
class LayerCost:
    """One call of a layer: its output shape, MACs of one image, and parameters (0 for later calls of a shared layer).

    A function that is given its weight, such as `F.conv2d`, has a row as well, under the name of the declared tensor that this comes from;
    its `kind` is the function. `channels` counts the outputs; it is None for layers that only pass channels on, such as BatchNorm.
    """

    name: str
    kind: str
    output_shape: Shape
    channels: int | None
    macs: int
    params: int


@dataclass(frozen=True)
class Costs:
    """Costs of a network, by layer and in total.

    `activation_elements` counts the elements of all results for one image.
    """

    layers: tuple[LayerCost, ...]
    macs: int
    params: int
    activation_elements: int

    @property
    def layer_channels(self) -> dict[str, int]:
        """How many channels each conv, linear layer and function with a weight makes, by name, in the order of their first calls."""
        return {row.name: row.channels for row in self.layers if row.channels is not None}

    @property
    def channels(self) -> int:
        """The channels of all these together."""
        return sum(self.layer_channels.values())


def costs(graph: LayerGraph) -> Costs:
    """Return the costs of a graph, layer by layer in forward order, and in total."""
    shapes, every_macs = infer_shapes(graph), step_macs(graph)
    layers = {layer.name: layer for layer in graph.layers}
    seen: set[str] = set()
    rows, macs = [], 0
    for value, step in graph.results():
        number = value.index - 1
        counted = 0 if number in graph.in_training_only else every_macs[number]
        macs += counted
        if step.layer is not None:
            layer = layers[step.layer]
            name, kind, channels, params = layer.name, layer.kind, out_channels(layer), parameters(layer)
        elif step.target in WEIGHTED and (weight := graph.weight_of(step)) is not None:
            name, kind, channels = weight.name, step.target, _weight_shape(step, graph, shapes)[0]
            params = prod(weight.shape) if weight.role == "parameter" else 0
        else:
            continue
        shape = shapes[value.index]
        rows.append(LayerCost(name, kind, shape[1:] if shape[0] == 1 else shape, channels, counted, 0 if name in seen else params))
        seen.add(name)
    return Costs(
        tuple(rows),
        macs=macs,
        params=sum(map(parameters, graph.layers)) + sum(prod(tensor.shape) for tensor in graph.declared if tensor.role == "parameter"),
        activation_elements=sum(prod(shape) for shape in shapes[1:]),
    )


def step_macs(graph: LayerGraph) -> tuple[int, ...]:
    """Return the MACs of every step for one image's forward pass in train mode, auxiliary heads included."""
    shapes, layers = infer_shapes(graph), {layer.name: layer for layer in graph.layers}
    return tuple(
        _macs(layers[step.layer], shapes[value.index]) if step.layer else _function_macs(step, graph, shapes, shapes[value.index])
        for value, step in graph.results()
    )


def out_channels(layer: Layer) -> int | None:
    """Return how many channels a layer makes, or None for layers that only pass them on, such as BatchNorm."""
    size = layer.signature.sizes.get("out")
    return None if size is None else int(layer[size])


def parameters(layer: Layer) -> int:
    """Return how many parameters a layer has, trained or not."""
    if layer.is_convolution:
        window = prod(pair(layer["kernel_size"], 1 if layer.kind == "Conv1d" else 2))
        return int(layer["out_channels"] * (layer["in_channels"] // layer["groups"] * window + layer["bias"]))
    match layer.kind:
        case "Linear":
            return int(layer["out_features"] * (layer["in_features"] + layer["bias"]))
        case "LayerNorm" | "RMSNorm":
            tensors = layer["elementwise_affine"] * (1 + (layer.kind == "LayerNorm" and layer["bias"]))
            return int(tensors * prod(pair(layer["normalized_shape"], 1)))
        case "GroupNorm":
            return int(2 * layer["num_channels"] if layer["affine"] else 0)
        case "PReLU":
            return int(layer["num_parameters"])
        case "MultiheadAttention":
            return int(4 * layer["embed_dim"] * (layer["embed_dim"] + layer["bias"]))
    return int(2 * layer["num_features"] if layer["affine"] else 0)


def _macs(layer: Layer, output_shape: Shape) -> int:
    """Return the MACs of a layer for one image; `output_shape` includes the batch of one."""
    if layer.kind == "MultiheadAttention":
        return int(4 * layer["embed_dim"] ** 2 * prod(output_shape[:-1]))
    made = out_channels(layer)
    if made is None:
        return 0
    weights = parameters(layer) - made * layer["bias"]
    positions = prod(output_shape) // made
    if layer.kind == "ConvTranspose2d":  # every weight is used once per input position; borders are ignored
        positions //= prod(pair(layer["stride"]))
    return int(weights * positions)


def _function_macs(step: Step, graph: LayerGraph, shapes: tuple[Shape, ...], output_shape: Shape) -> int:
    """Return the MACs of a convolution or linear map with computed weights, or 0 for other functions."""
    if step.target not in WEIGHTED:
        return 0
    return prod(output_shape) * prod(_weight_shape(step, graph, shapes)[1:])


def _weight_shape(step: Step, graph: LayerGraph, shapes: tuple[Shape, ...]) -> Shape:
    """The shape of the weight (out, in, ...) that a function is given."""
    weight = step["weight"]
    declared = {tensor.name: tensor.shape for tensor in graph.declared}
    return shapes[weight.index] if isinstance(weight, Value) else declared[weight.name]
