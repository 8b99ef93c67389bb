"""The shapes that functions and operators make: one rule per function, or per family. Pure Python, no torch.

A rule takes the step and `shape_of`, which returns the shape of a result or declared tensor. It raises ValueError if they do not fit.
"""

from collections.abc import Callable
from math import floor, prod
from typing import Final, TypeAlias

from prunetrain.graph.functions import FAMILY_OF, Family
from prunetrain.graph.layergraph import BatchSize, Operand, Step
from prunetrain.graph.windows import Shape, check_padding, image_of, pair, shape_text, window_count

ShapeOf: TypeAlias = Callable[[Operand], Shape]
Rule: TypeAlias = Callable[[Step, ShapeOf], Shape]


def _on_input(rule: Callable[[Step, Shape], Shape]) -> Rule:
    return lambda step, shape_of: rule(step, shape_of(step["input"]))


def _dim(dim: int, rank: int) -> int:
    if not -rank <= dim < rank:
        raise ValueError(f"dimension {dim} is out of range for {rank} dimensions")
    return dim % rank


def dims_of(dims: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return dimensions counted from the front.

    Raises:
        ValueError: for one that is out of range or given twice.
    """
    found = tuple(_dim(dim, rank) for dim in pair(dims, 1))
    if len(set(found)) < len(found):
        raise ValueError(f"dimensions {dims} contain a duplicate")
    return found


def _same(step: Step, shape: Shape) -> Shape:
    return shape


def _dropout(step: Step, shape: Shape) -> Shape:
    rank = {"F.dropout1d": 3, "F.dropout2d": 4, "F.dropout3d": 5}.get(step.target, len(shape))
    if len(shape) != rank:
        raise ValueError(f"takes {rank} dimensions including the batch, not {shape_text(shape)}")
    return shape


def broadcast(*shapes: Shape) -> Shape:
    """Return the shape that shapes broadcast to.

    Raises:
        ValueError: if they do not fit.
    """
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    sizes = [max(column, key=lambda size: size != 1) for column in zip(*padded, strict=True)]
    if any(size not in (1, wanted) for shape in padded for size, wanted in zip(shape, sizes, strict=True)):
        raise ValueError(" and ".join(map(shape_text, shapes)) + " cannot be broadcast")
    return tuple(sizes)


def _binary(step: Step, shape_of: ShapeOf) -> Shape:
    shapes = [shape_of(operand) for operand in step.operands()]
    return broadcast(*shapes)


def _pool2d(step: Step, shape: Shape) -> Shape:
    batch, channels, height, width = image_of(shape)
    kernel, padding = pair(step["kernel_size"]), pair(step["padding"])
    stride = kernel if step["stride"] is None else pair(step["stride"])
    dilation = pair(step["dilation"]) if step.target == "F.max_pool2d" else (1, 1)
    if any(p > k // 2 for k, p in zip(kernel, padding, strict=True)):
        raise ValueError(f"padding {shape_text(padding)} is more than half the kernel size {shape_text(kernel)}")
    spatial = zip((height, width), kernel, stride, padding, dilation, strict=True)
    return batch, channels, *(window_count(n, k, s, p, d, ceil=step["ceil_mode"]) for n, k, s, p, d in spatial)


def _adaptive_pool2d(step: Step, shape: Shape) -> Shape:
    batch, channels, _, _ = image_of(shape)
    return batch, channels, *pair(step["output_size"])


def _interpolate(step: Step, shape: Shape) -> Shape:
    batch, channels, height, width = image_of(shape)
    if (step["size"] is None) == (step["scale_factor"] is None):
        raise ValueError("takes either size or scale_factor")
    if step["size"] is not None:
        return batch, channels, *pair(step["size"])
    factor = step["scale_factor"]
    factors = factor if isinstance(factor, tuple) else (factor, factor)
    return batch, channels, *(floor(n * f) for n, f in zip((height, width), factors, strict=True))


def _reduce(step: Step, shape: Shape) -> Shape:
    dims = dims_of(tuple(range(len(shape))) if step["dim"] is None else step["dim"], len(shape))
    if step["keepdim"]:
        return tuple(1 if dim in dims else size for dim, size in enumerate(shape))
    return tuple(size for dim, size in enumerate(shape) if dim not in dims)


def _normalize(step: Step, shape: Shape) -> Shape:
    _dim(step["dim"], len(shape))
    return shape


# Moves.


def _slice(step: Step, shape: Shape) -> Shape:
    dim = _dim(step["dim"], len(shape))
    count = len(range(*slice(step["start"], step["stop"], step["step"]).indices(shape[dim])))
    return *shape[:dim], count, *shape[dim + 1 :]


def _index(step: Step, shape: Shape) -> Shape:
    dim = _dim(step["dim"], len(shape))
    if not -shape[dim] <= step["index"] < shape[dim]:
        raise ValueError(f"index {step['index']} is out of range for size {shape[dim]}")
    return *shape[:dim], *shape[dim + 1 :]


def _flatten(step: Step, shape: Shape) -> Shape:
    start, end = _dim(step["start_dim"], len(shape)), _dim(step["end_dim"], len(shape))
    if start > end:
        raise ValueError(f"cannot flatten dimensions {start} to {end} of {len(shape)}")
    return *shape[:start], prod(shape[start : end + 1]), *shape[end + 1 :]


def _sizes(sizes: tuple[object, ...], shape_of: ShapeOf) -> list[int]:
    return [shape_of(size.value)[0] if isinstance(size, BatchSize) else size for size in sizes]  # type: ignore[misc]


def _infer_missing_size(sizes: list[int], total: int) -> Shape:
    """Return sizes with -1 filled in, so that they hold `total` elements."""
    if sizes.count(-1) > 1:
        raise ValueError("only one size can be -1")
    known = prod(size for size in sizes if size != -1)
    if -1 in sizes and known and total % known == 0:
        sizes = [total // known if size == -1 else size for size in sizes]
    if prod(sizes) != total:
        raise ValueError(f"{total} elements do not fit into {shape_text(tuple(sizes))}")
    return tuple(sizes)


def _unflatten(step: Step, shape_of: ShapeOf) -> Shape:
    shape = shape_of(step["input"])
    dim = _dim(step["dim"], len(shape))
    return *shape[:dim], *_infer_missing_size(_sizes(step["sizes"], shape_of), shape[dim]), *shape[dim + 1 :]


def _reshape(step: Step, shape_of: ShapeOf) -> Shape:
    return _infer_missing_size(_sizes(step["shape"], shape_of), prod(shape_of(step["input"])))


def _broadcast_to(step: Step, shape_of: ShapeOf) -> Shape:
    shape, sizes = shape_of(step["input"]), _sizes(step["size"], shape_of)
    if len(sizes) < len(shape) or -1 in sizes[: len(sizes) - len(shape)]:
        raise ValueError(f"{shape_text(shape)} cannot be broadcast to {shape_text(tuple(sizes))}")
    padded = (1,) * (len(sizes) - len(shape)) + shape
    wanted = tuple(old if new == -1 else new for old, new in zip(padded, sizes, strict=True))
    if broadcast(shape, wanted) != wanted:
        raise ValueError(f"{shape_text(shape)} cannot be broadcast to {shape_text(wanted)}")
    return wanted


def _permute(step: Step, shape: Shape) -> Shape:
    dims = dims_of(step["dims"], len(shape))
    if len(dims) != len(shape):
        raise ValueError(f"must name all {len(shape)} dimensions")
    return tuple(shape[dim] for dim in dims)


def _transpose(step: Step, shape: Shape) -> Shape:
    first, second = _dim(step["dim0"], len(shape)), _dim(step["dim1"], len(shape))
    sizes = list(shape)
    sizes[first], sizes[second] = sizes[second], sizes[first]
    return tuple(sizes)


def _squeeze(step: Step, shape: Shape) -> Shape:
    dims = dims_of(step["dim"], len(shape))
    return tuple(size for dim, size in enumerate(shape) if dim not in dims or size != 1)


def _unsqueeze(step: Step, shape: Shape) -> Shape:
    dim = _dim(step["dim"], len(shape) + 1)
    return *shape[:dim], 1, *shape[dim:]


def _cat(step: Step, shape_of: ShapeOf) -> Shape:
    shapes = [shape_of(tensor) for tensor in step["tensors"]]
    dim = _dim(step["dim"], len(shapes[0]))
    if len({(*shape[:dim], *shape[dim + 1 :]) for shape in shapes}) > 1 or len(set(map(len, shapes))) > 1:
        raise ValueError(" and ".join(map(shape_text, shapes)) + f" differ in more than dimension {dim}")
    return *shapes[0][:dim], sum(shape[dim] for shape in shapes), *shapes[0][dim + 1 :]


def _stack(step: Step, shape_of: ShapeOf) -> Shape:
    shapes = [shape_of(tensor) for tensor in step["tensors"]]
    if len(set(shapes)) > 1:
        raise ValueError(" and ".join(map(shape_text, shapes)) + " differ")
    dim = _dim(step["dim"], len(shapes[0]) + 1)
    return *shapes[0][:dim], len(shapes), *shapes[0][dim:]


def _roll(step: Step, shape: Shape) -> Shape:
    if len(dims_of(step["dims"], len(shape))) != len(pair(step["shifts"], 1)):
        raise ValueError("needs a shift for each dimension")
    return shape


def _flip(step: Step, shape: Shape) -> Shape:
    dims_of(step["dims"], len(shape))
    return shape


def _index_select(step: Step, shape_of: ShapeOf) -> Shape:
    shape, index = shape_of(step["input"]), shape_of(step["index"])
    dim = _dim(step["dim"], len(shape))
    return *shape[:dim], index[0], *shape[dim + 1 :]


def _pad(step: Step, shape: Shape) -> Shape:
    amounts = pair(step["pad"], 1)
    if len(amounts) % 2 or len(amounts) > 2 * len(shape):
        raise ValueError("needs an amount before and an amount after, for each of the last dimensions")
    if step["mode"] != "constant" and (len(shape) - len(amounts) // 2 not in (1, 2) or not 2 <= len(amounts) <= 6):
        raise ValueError(
            f"mode={step['mode']!r} needs an amount before and an amount after, for each dimension but the first, or the first two"
        )
    sizes = list(shape)
    for number, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        check_padding(step["mode"], (sizes[-number],) * 2, (before, after))
        sizes[-number] += before + after
    return tuple(sizes)


def _pixel_shuffle(step: Step, shape: Shape) -> Shape:
    batch, channels, height, width = image_of(shape)
    factor = step["upscale_factor"]
    if channels % factor**2:
        raise ValueError(f"{channels} channels are not a multiple of {factor**2}")
    return batch, channels // factor**2, height * factor, width * factor


def _pixel_unshuffle(step: Step, shape: Shape) -> Shape:
    batch, channels, height, width = image_of(shape)
    factor = step["downscale_factor"]
    if height % factor or width % factor:
        raise ValueError(f"{height}x{width} is not a multiple of {factor}")
    return batch, channels * factor**2, height // factor, width // factor


def _channel_shuffle(step: Step, shape: Shape) -> Shape:
    if shape[1] % step["groups"]:
        raise ValueError(f"{shape[1]} channels are not a multiple of {step['groups']}")
    return shape


# Others.


def _matmul(step: Step, shape_of: ShapeOf) -> Shape:
    left, right = shape_of(step["input"]), shape_of(step["other"])
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        raise ValueError(f"{shape_text(left)} and {shape_text(right)} cannot be multiplied")
    return *broadcast(left[:-2], right[:-2]), left[-2], right[-1]


def _index_add(step: Step, shape_of: ShapeOf) -> Shape:
    shape, source = shape_of(step["input"]), shape_of(step["source"])
    dim = _dim(step["dim"], len(shape))
    if source != (*shape[:dim], shape_of(step["index"])[0], *shape[dim + 1 :]):
        raise ValueError(f"{shape_text(source)} cannot be added to {shape_text(shape)} at these positions")
    return shape


def _slice_scatter(step: Step, shape_of: ShapeOf) -> Shape:
    shape, dim = shape_of(step["input"]), step["dim"]
    count = len(range(*slice(step["start"], step["end"], step["step"]).indices(shape[_dim(dim, len(shape))])))
    if shape_of(step["src"]) != (*shape[:dim], count, *shape[dim + 1 :]):
        raise ValueError(f"{shape_text(shape_of(step['src']))} does not fill the slice")
    return shape


def _einsum(step: Step, shape_of: ShapeOf) -> Shape:
    left, arrow, result = step["equation"].replace(" ", "").partition("->")
    terms, shapes = left.split(","), [shape_of(operand) for operand in step["operands"]]
    if not arrow or not left.replace(",", "").isalpha() or [len(t) for t in terms] != [len(s) for s in shapes]:
        raise ValueError(f"{step['equation']} does not fit its operands, or is not of the form 'ab,bc->ac'")
    sizes: dict[str, int] = {}
    for letter, size in (
        (letter, size) for term, shape in zip(terms, shapes, strict=True) for letter, size in zip(term, shape, strict=True)
    ):
        if sizes.setdefault(letter, size) != size:
            raise ValueError(f"{letter} in {step['equation']} has sizes {sizes[letter]} and {size}")
    if not set(result) <= sizes.keys():
        raise ValueError(f"{step['equation']} has a letter in its result that no operand has")
    return tuple(sizes[letter] for letter in result)


def _attention(step: Step, shape_of: ShapeOf) -> Shape:
    query, key, value = (shape_of(step[name]) for name in ("query", "key", "value"))
    if query[-1] != key[-1] or key[-2] != value[-2]:
        raise ValueError(f"{shape_text(query)}, {shape_text(key)} and {shape_text(value)} do not fit")
    return *broadcast(query[:-2], key[:-2], value[:-2]), query[-2], value[-1]


def _linear(step: Step, shape_of: ShapeOf) -> Shape:
    shape, weight = shape_of(step["input"]), shape_of(step["weight"])
    if len(weight) != 2 or shape[-1] != weight[1]:
        raise ValueError(f"a weight of {shape_text(weight)} does not fit {shape_text(shape)}")
    return *shape[:-1], weight[0]


def _convolution(step: Step, shape_of: ShapeOf) -> Shape:
    (batch, channels, *image), weight = shape_of(step["input"]), shape_of(step["weight"])
    rank = len(image)
    if len(weight) != rank + 2 or channels != weight[1] * step["groups"] or weight[0] % step["groups"]:
        raise ValueError(f"a weight of {shape_text(weight)} does not fit {channels} channels in {step['groups']} groups")
    if step["padding"] == "same":
        return batch, weight[0], *image
    padding = (0,) * rank if step["padding"] == "valid" else pair(step["padding"], rank)
    spatial = zip(image, weight[2:], pair(step["stride"], rank), padding, pair(step["dilation"], rank), strict=True)
    return batch, weight[0], *(window_count(n, k, s, p, d) for n, k, s, p, d in spatial)


def _embedding(step: Step, shape_of: ShapeOf) -> Shape:
    return *shape_of(step["input"]), shape_of(step["weight"])[1]


def _unfold(step: Step, shape: Shape) -> Shape:
    batch, channels, height, width = image_of(shape)
    options = [pair(step[name]) for name in ("kernel_size", "stride", "padding", "dilation")]
    counts = [window_count(*numbers) for numbers in zip((height, width), *options, strict=True)]
    return batch, channels * prod(options[0]), prod(counts)


_BY_FAMILY: Final[dict[Family, Rule]] = {
    Family.ELEMENTWISE: _on_input(_same),
    Family.RANDOM: _on_input(_dropout),
    Family.BINARY: _binary,
    Family.REDUCE: _on_input(_reduce),
    Family.NORMALIZE: _on_input(_normalize),
}
_BY_NAME: Final[dict[str, Rule]] = {
    "F.max_pool2d": _on_input(_pool2d),
    "F.avg_pool2d": _on_input(_pool2d),
    "F.adaptive_avg_pool2d": _on_input(_adaptive_pool2d),
    "F.adaptive_max_pool2d": _on_input(_adaptive_pool2d),
    "F.interpolate": _on_input(_interpolate),
    "[:]": _on_input(_slice),
    "[]": _on_input(_index),
    "torch.flatten": _on_input(_flatten),
    "torch.unflatten": _unflatten,
    "torch.reshape": _reshape,
    "torch.broadcast_to": _broadcast_to,
    "torch.permute": _on_input(_permute),
    "torch.transpose": _on_input(_transpose),
    "torch.squeeze": _on_input(_squeeze),
    "torch.unsqueeze": _on_input(_unsqueeze),
    "torch.cat": _cat,
    "torch.stack": _stack,
    "torch.roll": _on_input(_roll),
    "torch.flip": _on_input(_flip),
    "torch.index_select": _index_select,
    "F.pad": _on_input(_pad),
    "F.pixel_shuffle": _on_input(_pixel_shuffle),
    "F.pixel_unshuffle": _on_input(_pixel_unshuffle),
    "F.channel_shuffle": _on_input(_channel_shuffle),
    "@": _matmul,
    "torch.addcmul": _binary,
    "torch.Tensor.type_as": _on_input(_same),
    "torch.index_add": _index_add,
    "torch.slice_scatter": _slice_scatter,
    "torch.einsum": _einsum,
    "F.scaled_dot_product_attention": _attention,
    "F.linear": _linear,
    "F.conv1d": _convolution,
    "F.conv2d": _convolution,
    "F.embedding": _embedding,
    "F.layer_norm": _on_input(_same),
    "F.batch_norm": _on_input(_same),
    "F.local_response_norm": _on_input(_same),
    "F.unfold": _on_input(_unfold),
}
FUNCTION_SHAPES: Final[dict[str, Rule]] = {name: _BY_NAME.get(name) or _BY_FAMILY[family] for name, family in FAMILY_OF.items()}
