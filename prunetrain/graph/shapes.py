"""The shape of every value of a graph, including the batch: (N, C, H, W) for images. Pure Python, no torch.

Results computed from declared tensors alone have no batch. Where the batch dimension is merged with another (windows of an image), a size
is a multiple of N; comparing two batch sizes shows which one.
"""

from collections.abc import Callable, Mapping

from prunetrain.graph.function_shapes import FUNCTION_SHAPES, ShapeOf
from prunetrain.graph.layergraph import Attribute, GraphError, Layer, LayerGraph, Operand, Step, Value
from prunetrain.graph.windows import Shape, check_padding, pair, shape_text, window_count

MAX_DIMENSIONS = 64  # torch's own limit
MAX_CHANNELS = 2**26  # the largest dimensions of all results, added up; a ResNet-50 has 100,000


class ShapeError(GraphError):
    """A step whose inputs do not fit; `part` is its number."""


def infer_shapes(graph: LayerGraph, batch_size: int = 1) -> tuple[Shape, ...]:
    """Return the shapes of `Value(0)`, `Value(1)`, ..., including the batch.

    Args:
        graph: the network.
        batch_size: N.

    Raises:
        ShapeError: at the first step whose inputs do not fit.
    """
    if batch_size not in graph.known_shapes:
        graph.known_shapes[batch_size] = _infer_shapes(graph, batch_size)
    return graph.known_shapes[batch_size]


def _infer_shapes(graph: LayerGraph, batch_size: int) -> tuple[Shape, ...]:
    layers = {layer.name: layer for layer in graph.layers}
    declared = {tensor.name: tensor.shape for tensor in graph.declared}
    indices = {tensor.name: max(tensor.values) for tensor in graph.declared if tensor.values}
    shapes: list[Shape] = [(batch_size, *graph.input_shape)]

    def shape_of(operand: Operand) -> Shape:
        return shapes[operand.index] if isinstance(operand, Value) else declared[operand.name]

    for number, step in enumerate(graph.steps):
        try:
            _check_positions(step, indices, shape_of)
            if step.layer is not None:
                shape = layer_shape(layers[step.layer], shape_of(step.operands()[0]))
            else:
                shape = FUNCTION_SHAPES[step.target](step, shape_of)
            if min(shape, default=1) < 1:
                first = shape_of(step.operands()[0])
                raise ValueError(f"nothing is left of the image: {shape_text(first)} becomes {shape_text(shape)}")
        except ValueError as error:
            raise ShapeError(f"{step.target}: {error}", number) from None
        shapes.append(shape)
    return tuple(shapes)


def _check_positions(step: Step, last: Mapping[str, int], shape_of: ShapeOf) -> None:
    """Refuse positions beyond the end of a dimension; `last` has the largest position of each index."""
    if step.target not in ("torch.index_select", "torch.index_add"):
        return
    if not isinstance(step["index"], Attribute) or step["index"].name not in last:
        raise ValueError("needs positions that the network declares: nn.Buffer(torch.tensor([...]), persistent=False)")
    shape, name = shape_of(step["input"]), step["index"].name
    if -len(shape) <= step["dim"] < len(shape) and last[name] >= shape[step["dim"]]:
        raise ValueError(f"{name} has position {last[name]}, but the dimension has size {shape[step['dim']]}")


def check_shapes(graph: LayerGraph) -> None:
    """Check that all shapes fit at any batch size, and that each output has one row per image.

    Raises:
        ShapeError: at the first step that does not fit, or that exceeds MAX_DIMENSIONS or MAX_CHANNELS.
        GraphError: for an output that mixes the images of a batch.
    """
    one, two = infer_shapes(graph, 1), infer_shapes(graph, 2)
    total = 0
    for index, shape in enumerate(one):
        total += max(shape, default=1)
        if total > MAX_CHANNELS or len(shape) > MAX_DIMENSIONS:
            what = f"{MAX_DIMENSIONS} dimensions" if len(shape) > MAX_DIMENSIONS else f"{MAX_CHANNELS:,} channels in all of its results"
            raise ShapeError(f"the network has more than {what}", max(0, index - 1))
    for value in graph.outputs:
        if two[value.index] != (2, *one[value.index][1:]) or one[value.index][0] != 1:
            number = value.index - 1 if value.index else None
            raise ShapeError(f"an output must have one row per image, but has shape {shape_text(two[value.index])} for two images", number)


def layer_shape(layer: Layer, shape: Shape) -> Shape:
    """Return the output shape of a layer for an input shape.

    Raises:
        ValueError: if the layer cannot take it.
    """
    ranks = layer.signature.ranks
    if ranks and len(shape) not in ranks:
        beside = " or ".join(str(rank - 1) for rank in ranks)
        raise ValueError(f"takes {beside} dimensions besides the batch, not {shape_text(shape[1:])}")
    return _LAYER_SHAPES[layer.kind](layer, shape)


def _check_channels(layer: Layer, axis: str, got: int) -> None:
    wanted = layer[layer.signature.sizes[axis]]
    if wanted != got:
        raise ValueError(f"takes {wanted} channels, but its input has {got}")


def _check_groups(layer: Layer) -> None:
    if layer["in_channels"] % layer["groups"] or layer["out_channels"] % layer["groups"]:
        raise ValueError(f"{layer['groups']} groups do not divide {layer['in_channels']} and {layer['out_channels']} channels")


def _convolution(layer: Layer, shape: Shape) -> Shape:
    batch, channels, *image = shape
    _check_channels(layer, "in", channels)
    _check_groups(layer)
    rank = len(image)
    kernel, stride, dilation = (pair(layer[name], rank) for name in ("kernel_size", "stride", "dilation"))
    if layer["padding"] == "same":
        if set(stride) != {1}:
            raise ValueError("padding 'same' needs stride 1")
        check_padding(layer["padding_mode"], tuple(image), tuple((d * (k - 1) + 1) // 2 for k, d in zip(kernel, dilation, strict=True)))
        return batch, layer["out_channels"], *image
    padding = (0,) * rank if layer["padding"] == "valid" else pair(layer["padding"], rank)
    check_padding(layer["padding_mode"], tuple(image), padding)
    spatial = zip(image, kernel, stride, padding, dilation, strict=True)
    return batch, layer["out_channels"], *(window_count(n, k, s, p, d) for n, k, s, p, d in spatial)


def _transposed(layer: Layer, shape: Shape) -> Shape:
    batch, channels, height, width = shape
    _check_channels(layer, "in", channels)
    _check_groups(layer)
    options = (pair(layer[name], 2) for name in ("kernel_size", "stride", "padding", "output_padding", "dilation"))
    spatial = zip((height, width), *options, strict=True)
    return batch, layer["out_channels"], *((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in spatial)


def _linear(layer: Layer, shape: Shape) -> Shape:
    if not shape:
        raise ValueError("takes features, not a single number")
    _check_channels(layer, "in", shape[-1])
    return *shape[:-1], layer["out_features"]


def _per_channel(layer: Layer, shape: Shape) -> Shape:
    _check_channels(layer, "features", shape[1])
    return shape


def _group_norm(layer: Layer, shape: Shape) -> Shape:
    _check_channels(layer, "features", shape[1] if len(shape) > 1 else 0)
    if layer["num_channels"] % layer["num_groups"]:
        raise ValueError(f"{layer['num_groups']} groups do not divide {layer['num_channels']} channels")
    return shape


def _layer_norm(layer: Layer, shape: Shape) -> Shape:
    wanted = pair(layer["normalized_shape"], 1)
    if shape[-len(wanted) :] != wanted:
        raise ValueError(f"normalises {shape_text(wanted)}, but its input ends in {shape_text(shape[-len(wanted) :])}")
    return shape


def _prelu(layer: Layer, shape: Shape) -> Shape:
    if layer["num_parameters"] > 1:
        _check_channels(layer, "features", shape[1] if len(shape) > 1 else 0)
    return shape


def _attention(layer: Layer, shape: Shape) -> Shape:
    if layer["embed_dim"] != shape[-1]:
        raise ValueError(f"takes {layer['embed_dim']} channels, but its input has {shape[-1]}")
    if not layer["batch_first"] or layer["embed_dim"] % layer["num_heads"]:
        raise ValueError("needs batch_first=True and a num_heads that divides embed_dim")
    if not {layer["kdim"], layer["vdim"]} <= {None, layer["embed_dim"]} or layer["add_bias_kv"] or layer["add_zero_attn"]:
        raise ValueError("needs kdim and vdim equal to embed_dim, and neither add_bias_kv nor add_zero_attn")
    return shape


_LAYER_SHAPES: dict[str, Callable[[Layer, Shape], Shape]] = {
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "ConvTranspose2d": _transposed,
    "Linear": _linear,
    "BatchNorm1d": _per_channel,
    "BatchNorm2d": _per_channel,
    "InstanceNorm2d": _per_channel,
    "LayerNorm": _layer_norm,
    "RMSNorm": _layer_norm,
    "GroupNorm": _group_norm,
    "PReLU": _prelu,
    "MultiheadAttention": _attention,
}
