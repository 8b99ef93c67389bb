"""The shape of every value of a graph, without the batch: (C, H, W) for images, (F,) for features. Pure Python, no torch."""

from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

from prunetrain.graph.catalog import ELEMENTWISE
from prunetrain.graph.layergraph import TRAINING, Attribute, GraphError, Layer, LayerGraph, Step, Value

Shape: TypeAlias = tuple[int, ...]


class ShapeError(GraphError):
    """A step whose inputs do not fit; `part` is its number."""


def infer_shapes(graph: LayerGraph) -> tuple[Shape, ...]:
    """The shape of `Value(0)`, `Value(1)`, ..., each without the batch dimension.

    Raises:
        ShapeError: at the first step whose inputs do not fit.
    """
    layers = {layer.name: layer for layer in graph.layers}
    declared = {tensor.name: tensor.shape for tensor in graph.declared}
    shapes: list[Shape] = [graph.input_shape]
    for number, step in enumerate(graph.steps):
        operands = [
            shapes[a.index] if isinstance(a, Value) else declared[a.name]
            for _, a in step.arguments
            if isinstance(a, Value) or (isinstance(a, Attribute) and a != TRAINING)
        ]
        try:
            if step.layer is not None:
                layer = layers[step.layer]
                shape = _LAYER_SHAPES[layer.kind](layer, operands[0])
            else:
                shape = _FUNCTION_SHAPES[step.target](step, *operands)
            if min(shape) < 1:
                raise ValueError(f"nothing is left of the image: {_text(operands[0])} becomes {_text(shape)}")
        except ValueError as error:
            raise ShapeError(f"{step.target}: {error}", number) from None
        shapes.append(shape)
    return tuple(shapes)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"takes images (C, H, W), not {_text(shape)}")
    return shape[0], shape[1], shape[2]


def _check_channels(layer: Layer, axis: str, got: int) -> None:
    wanted = layer[layer.signature.sizes[axis]]
    if wanted != got:
        raise ValueError(f"takes {wanted} channels, but its input has {got}")


def _conv2d(layer: Layer, shape: Shape) -> Shape:
    channels, height, width = _image(shape)
    _check_channels(layer, "in", channels)
    if layer["in_channels"] % layer["groups"] or layer["out_channels"] % layer["groups"]:
        raise ValueError(f"{layer['groups']} groups do not divide {layer['in_channels']} and {layer['out_channels']} channels")
    kernel, stride, dilation = _pair(layer["kernel_size"]), _pair(layer["stride"]), _pair(layer["dilation"])
    if layer["padding"] == "same":
        if stride != (1, 1):
            raise ValueError("padding 'same' needs stride 1")
        _check_padding_mode(layer, (height, width), tuple((d * (k - 1) + 1) // 2 for k, d in zip(kernel, dilation, strict=True)))
        return layer["out_channels"], height, width
    padding = (0, 0) if layer["padding"] == "valid" else _pair(layer["padding"])
    _check_padding_mode(layer, (height, width), padding)
    spatial = zip((height, width), kernel, stride, padding, dilation, strict=True)
    return layer["out_channels"], *(_windows(n, k, s, p, d, ceil=False) for n, k, s, p, d in spatial)


def _check_padding_mode(layer: Layer, image: Shape, padding: Shape) -> None:
    """Padding made of the image itself cannot be wider than the image; reflected, it has one pixel less to give."""
    spared = {"reflect": 1, "circular": 0}.get(layer["padding_mode"])
    if spared is not None and any(p > n - spared for n, p in zip(image, padding, strict=True)):
        raise ValueError(f"padding {_text(padding)} is too wide for an image of {_text(image)}")


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool) -> int:
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil else 0)) // stride + 1
    # torch drops a last window that would start in the padding on the right
    return count - 1 if ceil and (count - 1) * stride >= size + padding else count


def _linear(layer: Layer, shape: Shape) -> Shape:
    _check_channels(layer, "in", shape[-1])
    return *shape[:-1], layer["out_features"]


def _batch_norm(rank: int) -> Callable[[Layer, Shape], Shape]:
    def shape_of(layer: Layer, shape: Shape) -> Shape:
        if len(shape) != rank:
            raise ValueError(f"takes {rank} dimensions beside the batch, not {_text(shape)}")
        _check_channels(layer, "features", shape[0])
        return shape

    return shape_of


def _pool2d(step: Step, shape: Shape) -> Shape:
    channels, height, width = _image(shape)
    kernel, padding = _pair(step["kernel_size"]), _pair(step["padding"])
    stride = kernel if step["stride"] is None else _pair(step["stride"])
    dilation = _pair(step["dilation"]) if step.target == "F.max_pool2d" else (1, 1)
    if any(p > k // 2 for k, p in zip(kernel, padding, strict=True)):
        raise ValueError(f"padding {_text(padding)} is more than half the kernel size {_text(kernel)}")
    spatial = zip((height, width), kernel, stride, padding, dilation, strict=True)
    return channels, *(_windows(n, k, s, p, d, ceil=step["ceil_mode"]) for n, k, s, p, d in spatial)


def _adaptive_pool2d(step: Step, shape: Shape) -> Shape:
    return _image(shape)[0], *_pair(step["output_size"])


def _flatten(step: Step, shape: Shape) -> Shape:
    rank = len(shape) + 1
    start, end = (d % rank if -rank <= d < rank else rank for d in (step["start_dim"], step["end_dim"]))
    if start == 0:
        raise ValueError("start_dim 0 would merge the images of a batch; use torch.flatten(x, 1)")
    if not start <= end < rank:
        raise ValueError(f"cannot flatten dimensions {start} to {end} of {rank}")
    return *shape[: start - 1], prod(shape[start - 1 : end]), *shape[end:]


def _broadcast(step: Step, left: Shape, right: Shape) -> Shape:
    rank = max(len(left), len(right))
    if any(isinstance(a, Value) and len(s) < rank for (_, a), s in zip(step.arguments, (left, right), strict=True)):
        raise ValueError(f"{_text(left)} and {_text(right)} do not fit")  # the shorter one's batch would meet another dimension
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    padded = (1,) * (len(longer) - len(shorter)) + shorter
    if any(a != b and 1 not in (a, b) for a, b in zip(longer, padded, strict=True)):
        raise ValueError(f"{_text(left)} and {_text(right)} do not fit")
    return tuple(max(a, b) for a, b in zip(longer, padded, strict=True))


def _same(_: Step, shape: Shape) -> Shape:
    return shape


_LAYER_SHAPES: dict[str, Callable[[Layer, Shape], Shape]] = {
    "Conv2d": _conv2d,
    "Linear": _linear,
    "BatchNorm1d": _batch_norm(1),
    "BatchNorm2d": _batch_norm(3),
}
_FUNCTION_SHAPES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(ELEMENTWISE, _same),
    "F.dropout": _same,
    "F.max_pool2d": _pool2d,
    "F.avg_pool2d": _pool2d,
    "F.adaptive_avg_pool2d": _adaptive_pool2d,
    "torch.flatten": _flatten,
    "+": _broadcast,
    "*": _broadcast,
}
