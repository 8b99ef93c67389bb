"""What `layer_graphs()` may do next to a value: one function a move, for images (N, C, H, W), sequences (N, L, C) and features (N, C).

A move raises ShapeError where it does not fit. Numbers stay small and finite, so that results can be compared.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from hypothesis import strategies as st
from sketch import Sketch

from prunetrain.graph.functions import ELEMENTWISE
from prunetrain.graph.layergraph import TRAINING, Attribute, BatchSize, Value

Draw = Callable[[st.SearchStrategy[Any]], Any]
Move = Callable[[Draw, Sketch, Value], Value]

_PREFIXES = ("", "layer1_0_", "layer1_1_", "stage2_", "head_", "block_3_4_")
_UNSAFE = {"torch.exp", "torch.log", "torch.log1p", "torch.rsqrt", "torch.sqrt"}  # leave the finite numbers
_JUMPS = {"F.hardshrink", "torch.sign"}  # make large differences of rounding


def new_name(net: Sketch, prefix: str, kind: str) -> str:
    return f"{prefix}{kind}{len(net.layers) + len(net.declared) + 1}"


def _name(draw: Draw, net: Sketch, kind: str) -> str:
    return new_name(net, draw(st.sampled_from(_PREFIXES)), kind)


def _pair(low: int, high: int) -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(low, high), st.tuples(st.integers(low, high), st.integers(low, high)))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


# Layers.


def _conv(draw: Draw, net: Sketch, value: Value) -> Value:
    channels = net.shape(value)[0]
    groups = draw(st.sampled_from([1, 1, channels, *_divisors(channels)]))  # `channels` groups: depthwise
    out_channels = groups * draw(st.integers(1, max(1, 4 // groups)))
    kernel_size, stride = draw(_pair(1, 3)), draw(_pair(1, 2))
    odd = kernel_size in (1, 3, (1, 1), (1, 3), (3, 1), (3, 3))  # torch warns of even kernels with padding 'same'
    padding = draw(st.one_of(_pair(0, 2), st.sampled_from(["valid", "same"] if odd and stride in (1, (1, 1)) else ["valid"])))
    options = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": draw(st.sampled_from([1, 1, 2])),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])),
    }
    return net.conv(_name(draw, net, "conv"), value, out_channels, **options)


def _conv_transpose(draw: Draw, net: Sketch, value: Value) -> Value:
    channels = net.shape(value)[0]
    groups = draw(st.sampled_from([1, *_divisors(channels)]))
    options = {
        "out_channels": groups * draw(st.integers(1, max(1, 4 // groups))),
        "kernel_size": draw(_pair(1, 3)),
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 1)),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    return net.layer(_name(draw, net, "up"), "ConvTranspose2d", value, in_channels=channels, **options)


def _conv1d(draw: Draw, net: Sketch, value: Value) -> Value:
    """On a sequence, or on an image whose rows and columns are made one dimension."""
    if len(net.shape(value)) == 3:
        value = net.call("torch.flatten", value, start_dim=2)
    channels = net.shape(value)[0]
    options = {"out_channels": draw(st.integers(1, 4)), "kernel_size": draw(st.integers(1, 3)), "padding": draw(st.integers(0, 1))}
    return net.layer(_name(draw, net, "conv"), "Conv1d", value, in_channels=channels, bias=draw(st.booleans()), **options)


def _norm(draw: Draw, net: Sketch, value: Value) -> Value:
    options = {"eps": draw(st.sampled_from([1e-5, 0.001])), "momentum": draw(st.sampled_from([0.1, 0.01])), "affine": draw(st.booleans())}
    return net.norm(_name(draw, net, "bn"), value, **options)


def _layer_norm(draw: Draw, net: Sketch, value: Value) -> Value:
    """Over the last dimension; over the channels of images by way of permutations."""
    kind = draw(st.sampled_from(["LayerNorm", "LayerNorm", "RMSNorm"]))
    images = len(net.shape(value)) == 3
    if images:
        value = net.call("torch.permute", value, dims=(0, 2, 3, 1))
    value = net.layer(_name(draw, net, "norm"), kind, value, normalized_shape=net.full_shape(value)[-1])
    return net.call("torch.permute", value, dims=(0, 3, 1, 2)) if images else value


def _group_norm(draw: Draw, net: Sketch, value: Value) -> Value:
    channels = net.shape(value)[0]
    groups = draw(st.sampled_from(_divisors(channels)))
    if prod(net.shape(value)) == groups:  # torch refuses to normalise single numbers
        return _activation(draw, net, value)
    name, affine = _name(draw, net, "norm"), draw(st.booleans())
    return net.layer(name, "GroupNorm", value, num_groups=groups, num_channels=channels, affine=affine)


def _instance_norm(draw: Draw, net: Sketch, value: Value) -> Value:
    if min(net.shape(value)[1:]) < 2:  # torch refuses to normalise a single pixel
        return _activation(draw, net, value)
    options = {"affine": draw(st.booleans()), "track_running_stats": draw(st.booleans())}
    return net.layer(_name(draw, net, "norm"), "InstanceNorm2d", value, num_features=net.shape(value)[0], **options)


def _prelu(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.layer(_name(draw, net, "act"), "PReLU", value, num_parameters=draw(st.sampled_from([1, net.shape(value)[0]])))


def _conv_bn_relu(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.call("F.relu", _norm(draw, net, _conv(draw, net, value)))


def _linear(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.linear(_name(draw, net, "fc"), value, draw(st.integers(1, 5)), bias=draw(st.booleans()))


def _again(draw: Draw, net: Sketch, value: Value) -> Value:
    """Call a layer that is there already, if one fits."""
    name = draw(st.sampled_from(sorted(net.layers) or [""]))
    if not name or (net.layers[name].kind == "GroupNorm" and prod(net.shape(value)) == net.layers[name]["num_groups"]):
        return value
    return net.layer(name, net.layers[name].kind, value)


# Element by element.


def _activation(draw: Draw, net: Sketch, value: Value) -> Value:
    target = draw(st.sampled_from(["F.relu", "F.relu", *sorted(set(ELEMENTWISE) - _UNSAFE - _JUMPS)]))
    options = {
        "F.leaky_relu": {"negative_slope": draw(st.sampled_from([0.01, 0.2]))},
        "F.elu": {"alpha": draw(st.sampled_from([1.0, 0.5]))},
        "F.gelu": {"approximate": draw(st.sampled_from(["none", "tanh"]))},
        "F.hardtanh": {"min_val": draw(st.sampled_from([-1.0, 0.0])), "max_val": draw(st.sampled_from([1.0, 2.5]))},
        "torch.clamp": {"min": draw(st.sampled_from([-0.5, 0])), "max": draw(st.sampled_from([None, 1.5]))},
        "torch.pow": {"exponent": draw(st.sampled_from([2, 3]))},
    }
    if target in ("torch.pow", "torch.square"):
        value = net.call("torch.tanh", value)
    return net.call(target, value, **options.get(target, {}))


def _unsafe_activation(draw: Draw, net: Sketch, value: Value) -> Value:
    """What is not finite everywhere, where it is."""
    target = draw(st.sampled_from(sorted(_UNSAFE)))
    if target == "torch.exp":
        return net.call(target, net.call("torch.tanh", value))
    return net.call(target, net.call("+", net.call("torch.abs", value), draw(st.sampled_from([1, 0.5]))))


def _number(draw: Draw, net: Sketch, value: Value) -> Value:
    target = draw(st.sampled_from(["+", "-", "*", "/"]))
    number = draw(st.sampled_from([1, 2, 0.5, -0.03, 3.0]))
    backwards = target != "/" and draw(st.booleans())
    return net.call(target, number, value) if backwards else net.call(target, value, number)


def _dropout(draw: Draw, net: Sketch, value: Value) -> Value:
    p, training = draw(st.sampled_from([0.5, 0.0, 1, 0.25])), draw(st.sampled_from([TRAINING, TRAINING, False]))
    return net.call("F.dropout", value, p=p, training=training)


def _stochastic_depth(draw: Draw, net: Sketch, value: Value) -> Value:
    dropped = net.stochastic_depth(net.call("torch.tanh", value), draw(st.sampled_from([0.1, 0.5])))
    return net.call("+", value, dropped) if draw(st.booleans()) else dropped


def _softmax(draw: Draw, net: Sketch, value: Value) -> Value:
    dim = draw(st.sampled_from([1, -1]))
    if draw(st.sampled_from([False, False, True])):
        return net.call("F.normalize", value, dim=dim)
    return net.call(draw(st.sampled_from(["F.softmax", "F.log_softmax"])), value, dim=dim)


def _combine(draw: Draw, net: Sketch, value: Value) -> Value:
    """Add an earlier value of the same shape, perhaps the same one, or multiply with its tanh (so that numbers stay small)."""
    shapes = (net.full_shape(value), net.full_shape(value, 2))
    others = [v for v in map(Value, range(len(net.steps) + 1)) if (net.full_shape(v), net.full_shape(v, 2)) == shapes]
    other = draw(st.sampled_from(others))
    target = draw(st.sampled_from(["+", "+", "-", "*", "/", "torch.maximum", "torch.minimum"]))
    if target in "*/":
        other = net.call("torch.tanh", other)
    if target == "/":
        return net.call("/", value, net.call("+", other, 2))
    operands = draw(st.sampled_from([(value, other), (other, value)]))
    return net.call(target, *operands)


def _declared_tensor(draw: Draw, net: Sketch, value: Value) -> Value:
    """A bias or a scale of the channels, or of the last dimension; a buffer that is added."""
    shape = net.shape(value)
    each = draw(st.sampled_from([(shape[0], *(1 for _ in shape[1:])), shape[-1:], ()]))
    role = draw(st.sampled_from(["parameter", "parameter", "buffer"]))
    tensor = net.declare(_name(draw, net, "bias"), each, role)
    if draw(st.sampled_from([False, False, False, True])):
        return net.step("torch.addcmul", input=tensor, tensor1=net.declare(_name(draw, net, "scale"), each, role), tensor2=value)
    operands = draw(st.sampled_from([(value, tensor), (value, tensor), (tensor, value)]))
    return net.call(draw(st.sampled_from(["+", "+", "*"])), *operands)


def _constant(draw: Draw, net: Sketch, value: Value) -> Value:
    """A bias that is computed from declared tensors alone: looked up in a table, as the bias of relative positions is."""
    channels = net.shape(value)[-1]
    table = net.declare(_name(draw, net, "table"), (3, channels))
    positions = net.declare(_name(draw, net, "positions"), (2,), "buffer", "int64")
    bias = net.call("torch.sum", net.step("F.embedding", input=positions, weight=table), dim=0)
    if draw(st.booleans()):
        bias = net.call("*", 2, net.call("torch.sigmoid", bias))
    return net.call("+", value, bias)


def _declared_bias(draw: Draw, net: Sketch, value: Value) -> Value:
    """What a cut leaves of a residual branch."""
    shape = net.shape(value)
    bias = net.declare(_name(draw, net, "bias"), (shape[0], *(1 for _ in shape[1:])))
    return net.call("+", value, bias)


# Moves of elements.


def _slices(draw: Draw, net: Sketch, value: Value) -> Value:
    dim = draw(st.integers(1, len(net.shape(value))))
    size, dim = net.full_shape(value)[dim], draw(st.sampled_from([dim, dim - len(net.full_shape(value))]))
    cut = draw(st.integers(1, size))
    way = draw(st.sampled_from(["parts", "every other", "both", "rest"]))
    if way == "parts" and cut < size:  # torch.chunk, and back in the other order
        return net.cat(net.slice(value, dim, cut), net.slice(value, dim, stop=draw(st.sampled_from([cut, cut - size]))), dim=dim)
    if way == "both" and len(net.shape(value)) == 3:
        return net.slice(net.slice(value, 2, step=2), 3, step=2)
    return net.slice(value, dim, step=2) if way == "every other" else net.slice(value, dim, draw(st.integers(0, size - 1)))


def _one_of_them(draw: Draw, net: Sketch, value: Value) -> Value:
    """One index of a dimension; images keep theirs."""
    dim = draw(st.integers(1, len(net.shape(value))))
    index = draw(st.sampled_from([0, -1, net.full_shape(value)[dim] - 1]))
    if len(net.shape(value)) == 3:
        return net.call("torch.unsqueeze", net.call("[]", value, dim=dim, index=index), dim=dim)
    return net.call("[]", value, dim=draw(st.sampled_from([dim, dim - len(net.full_shape(value))])), index=index)


def _cat(draw: Draw, net: Sketch, value: Value) -> Value:
    """With what differs in its channels only."""
    shape = net.full_shape(value)
    others = [v for v in map(Value, range(len(net.steps) + 1)) if net.has_rows(v) and _fits(net.full_shape(v), shape)]
    values = [value, *(draw(st.sampled_from(others)) for _ in range(draw(st.integers(0, 3))))]
    return net.cat(*draw(st.permutations(values)), dim=draw(st.sampled_from([1, 1 - len(shape)])))


def _fits(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(shape) == len(other) and shape[:1] + shape[2:] == other[:1] + other[2:]


def _stack(draw: Draw, net: Sketch, value: Value) -> Value:
    stacked = net.step("torch.stack", tensors=(value, net.call("torch.tanh", value)), dim=1)
    if len(net.shape(value)) == 1:
        return stacked
    return net.call("torch.flatten", stacked, start_dim=1, end_dim=2)


def _rearranged(draw: Draw, net: Sketch, value: Value) -> Value:
    rank = len(net.full_shape(value))
    way = draw(st.sampled_from(["permute", "transpose", "roll", "flip", "unflatten", "reshape", "scatter"]))
    if way == "permute":
        return net.call("torch.permute", value, dims=(0, *draw(st.permutations(range(1, rank)))))
    if way == "transpose":
        dims = draw(st.permutations([*range(1, rank)] * 2))[:2]
        return net.call("torch.transpose", value, dim0=dims[0] - rank, dim1=dims[1])
    if way == "roll":
        return net.call("torch.roll", value, shifts=draw(st.integers(-2, 2)), dims=draw(st.integers(1, rank - 1)))
    if way == "flip" and rank > 2:
        return net.call("torch.flip", value, dims=draw(st.sampled_from([(1, 2), (-1, 1)])))
    if way == "unflatten":
        split = draw(st.sampled_from(_divisors(net.shape(value)[0])))
        value = net.call("torch.unflatten", value, dim=1, sizes=draw(st.sampled_from([(split, -1), (-1, split)])))
        return value if rank < 4 else net.call("torch.flatten", value, start_dim=1, end_dim=2)
    if way == "scatter":
        return net.call("torch.slice_scatter", value, src=net.call("torch.tanh", net.slice(value, 1, stop=1)), dim=1, start=0, end=1)
    first = draw(st.sampled_from([-1, BatchSize(value)]))
    shape = net.shape(value)
    return net.call("torch.reshape", value, shape=(first, *shape[1:], shape[0]))


def _gating(draw: Draw, net: Sketch, value: Value) -> Value:
    """Some channels are read, changed and added back."""
    channels = net.shape(value)[0]
    index = draw(st.lists(st.integers(0, channels - 1), min_size=1, max_size=3, unique=True))
    part = net.call("torch.index_select", value, dim=1, index=net.index(_name(draw, net, "reads"), *index))
    if draw(st.booleans()):
        return part
    part = _activation(draw, net, part)
    return net.call("torch.index_add", value, dim=1, index=net.index(_name(draw, net, "writes"), *index), source=part)


# Images.


def _pool(draw: Draw, net: Sketch, value: Value) -> Value:
    options = {
        "kernel_size": draw(_pair(1, 3)),
        "stride": draw(st.one_of(st.none(), _pair(1, 3))),
        "padding": draw(_pair(0, 1)),
        "ceil_mode": draw(st.booleans()),
    }
    if draw(st.sampled_from(["average", "maximum"])) == "average":
        divisor = draw(st.sampled_from([None, None, 3]))
        return net.call("F.avg_pool2d", value, count_include_pad=draw(st.booleans()), divisor_override=divisor, **options)
    widest = 2 if options["padding"] in (0, (0, 0)) else 1  # no window of padding alone: its maximum is minus infinity
    return net.call("F.max_pool2d", value, dilation=draw(_pair(1, widest)), **options)


def _adaptive_pool(draw: Draw, net: Sketch, value: Value) -> Value:
    target = draw(st.sampled_from(["F.adaptive_avg_pool2d", "F.adaptive_avg_pool2d", "F.adaptive_max_pool2d"]))
    return net.call(target, value, output_size=draw(_pair(1, 3)))


def _interpolate(draw: Draw, net: Sketch, value: Value) -> Value:
    if draw(st.booleans()):
        return net.call("F.interpolate", value, size=draw(_pair(2, 4)), mode=draw(st.sampled_from(["nearest", "nearest-exact", "area"])))
    return net.call("F.interpolate", value, scale_factor=draw(st.sampled_from([2, (1, 2)])), mode="bilinear", align_corners=False)


def _pad(draw: Draw, net: Sketch, value: Value) -> Value:
    amounts = draw(st.sampled_from([(1, 1), (0, 1, 2, 0), (0, 0, 0, 0, 1, 0)]))
    mode = draw(st.sampled_from(["constant", "constant", "reflect", "replicate"])) if len(amounts) == 4 else "constant"
    return net.call("F.pad", value, pad=amounts, mode=mode, **({"value": 0.5} if mode == "constant" and draw(st.booleans()) else {}))


def _shuffle(draw: Draw, net: Sketch, value: Value) -> Value:
    target, factor = draw(
        st.sampled_from([("F.channel_shuffle", "groups"), ("F.pixel_shuffle", "upscale_factor"), ("F.pixel_unshuffle", "downscale_factor")])
    )
    return net.call(target, value, **{factor: draw(st.sampled_from([1, 2]))})


def _flatten(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.call("torch.flatten", value, start_dim=draw(st.sampled_from([1, 1, -3, 2])), end_dim=draw(st.sampled_from([-1, 3])))


def _reduce(draw: Draw, net: Sketch, value: Value) -> Value:
    dims = draw(st.sampled_from([(2, 3), (-2, -1), 3] if len(net.shape(value)) == 3 else [1, -1]))
    targets = ["torch.mean", "torch.mean", "torch.sum", "torch.amax", "torch.amin", "torch.var_mean", "torch.linalg.vector_norm"]
    target = draw(st.sampled_from(targets if isinstance(dims, tuple) else [*targets, "torch.max", "torch.min"]))
    keepdim = len(net.shape(value)) == 1 or draw(st.booleans())
    options = {"correction": 0} if target == "torch.var_mean" else {}  # else torch warns of a variance of one number
    return net.call(target, value, dim=dims, keepdim=keepdim, **options)


def _variance(draw: Draw, net: Sketch, value: Value) -> Value:
    """Standardised by hand."""
    mean = net.call("torch.mean", value, dim=1, keepdim=True)
    variance = net.call("torch.var", value, dim=1, correction=0, keepdim=True)
    return net.call("*", net.call("-", value, mean), net.call("torch.rsqrt", net.call("+", variance, 0.1)))


def _computed_weight(draw: Draw, net: Sketch, value: Value) -> Value:
    """A convolution or linear layer with a weight that is declared or computed, as in weight standardisation and normalisation."""
    images = len(net.shape(value)) == 3
    channels = net.shape(value)[0] if images else net.full_shape(value)[-1]
    groups = draw(st.sampled_from(_divisors(channels))) if images else 1
    made = groups * draw(st.integers(1, 3))
    window = (draw(st.sampled_from([1, 3])),) * 2 if images else ()
    weight: Value | Attribute = net.declare(_name(draw, net, "weight"), (made, channels // groups, *window))
    several = prod(window) * channels // groups > 1  # numbers in a filter, which torch's BatchNorm demands
    way = draw(st.sampled_from(["declared", "bounded", "by hand", "length", *["batch norm"] * several]))
    if way in ("batch norm", "length"):
        gain = net.declare(_name(draw, net, "gain"), (made,))
    match way:
        case "bounded":
            weight = net.call("*", net.call("torch.tanh", weight), net.declare(_name(draw, net, "scale"), ()))
        case "batch norm":
            flat = net.call("torch.reshape", weight, shape=(1, made, -1))
            options = {"running_mean": None, "running_var": None, "training": True, "momentum": 0.0, "eps": 0.1}
            flat = net.step("F.batch_norm", input=flat, weight=gain, **options)
            weight = net.call("torch.reshape", flat, shape=(made, channels // groups, *window))
        case "by hand":
            dims = (1, 2, 3) if images else (1,)
            weight = net.call("-", weight, net.call("torch.mean", weight, dim=dims, keepdim=True))
            spread = net.call("torch.mean", net.call("torch.square", weight), dim=dims, keepdim=True)
            weight = net.call("*", weight, net.call("torch.rsqrt", net.call("+", spread, 0.1)))
        case "length":
            dims = (1, 2, 3) if images else (1,)
            scale = net.call("torch.reshape", gain, shape=(made, *(1,) * len(dims)))
            length = net.call("torch.linalg.vector_norm", weight, dim=dims, keepdim=True)
            weight = net.call("*", weight, net.call("/", scale, length))
    bias = {"bias": net.declare(_name(draw, net, "bias"), (made,))} if draw(st.booleans()) else {}
    if not images:
        return net.call("F.linear", value, weight=weight, **bias)
    return net.call("F.conv2d", value, weight=weight, padding=window[0] // 2, groups=groups, **bias)


def _residual(draw: Draw, net: Sketch, value: Value) -> Value:
    channels = net.shape(value)[0]
    options = {"kernel_size": 3, "padding": 1, "bias": draw(st.booleans())}
    branch = net.call("F.relu", net.norm(_name(draw, net, "bn"), net.conv(_name(draw, net, "conv"), value, 2, **options)))
    branch = net.norm(_name(draw, net, "bn"), net.conv(_name(draw, net, "conv"), branch, channels, **options))
    return net.call("F.relu", net.call("+", branch, value))


def _gate(draw: Draw, net: Sketch, value: Value) -> Value:
    """One number a channel, from all of them or from its neighbours, or one a pixel, times the image."""
    if draw(st.sampled_from([False, False, True])):
        read = value
        if draw(st.booleans()):
            largest = draw(st.sampled_from(["torch.max", "torch.amax", "torch.min"]))
            read = net.cat(*(net.call(target, value, dim=1, keepdim=True) for target in ("torch.mean", largest)))
        return net.call("*", value, net.call("torch.sigmoid", net.conv(_name(draw, net, "mask"), read, 1, kernel_size=1)))
    if draw(st.sampled_from([False, False, False, True])):
        means = net.call("torch.unsqueeze", net.call("torch.mean", value, dim=(2, 3)), dim=1)
        size, options = draw(st.sampled_from([1, 3])), {"in_channels": 1, "out_channels": 1, "bias": draw(st.booleans())}
        slid = net.layer(_name(draw, net, "slide"), "Conv1d", means, kernel_size=size, padding=size // 2, **options)
        gate = net.call("torch.sigmoid", net.call("torch.squeeze", slid, dim=1))
        return net.call("*", value, net.call("torch.unflatten", gate, dim=1, sizes=(-1, 1, 1)))
    squeezed = net.call("F.adaptive_avg_pool2d", value, output_size=1)
    excited = net.conv(_name(draw, net, "excite"), squeezed, net.shape(value)[0], kernel_size=1)
    return net.call("*", value, net.call(draw(st.sampled_from(["torch.sigmoid", "F.hardsigmoid"])), excited))


def _global_context(draw: Draw, net: Sketch, value: Value) -> Value:
    """The image plus what it sums up to, each pixel with a weight of its own."""
    channels = net.shape(value)[0]
    mask = net.call("torch.flatten", net.conv(_name(draw, net, "mask"), value, 1, kernel_size=1), start_dim=2)
    weights = net.call("F.softmax", mask, dim=2)
    pixels = net.call("torch.flatten", value, start_dim=2)
    if draw(st.booleans()):
        context = net.call("@", pixels, net.call("torch.transpose", weights, dim0=1, dim1=2))
    else:
        context = net.call("torch.transpose", net.call("@", weights, net.call("torch.transpose", pixels, dim0=1, dim1=2)), dim0=1, dim1=2)
    context = net.call("torch.unsqueeze", context, dim=-1)
    if draw(st.booleans()):
        context = net.conv(_name(draw, net, "transform"), context, channels, kernel_size=1)
    return net.call("+", value, context)


def _non_local(draw: Draw, net: Sketch, value: Value) -> Value:
    """Every pixel attends to all others, with one head."""
    channels, height, width = net.shape(value)
    inner = draw(st.integers(1, 4))
    query, key, values = (
        net.call("torch.flatten", net.conv(_name(draw, net, name), value, inner, kernel_size=1, bias=draw(st.booleans())), start_dim=2)
        for name in ("query", "key", "value")
    )
    weights = net.call("@", net.call("torch.transpose", query, dim0=1, dim1=2), key)
    weights = net.call("F.softmax", weights, dim=-1) if draw(st.booleans()) else net.call("torch.tanh", weights)  # else numbers overflow
    read = net.call("@", values, net.call("torch.transpose", weights, dim0=1, dim1=2))
    read = net.call("torch.unflatten", read, dim=2, sizes=(height, width))
    return net.call("+", value, net.conv(_name(draw, net, "project"), read, channels, kernel_size=1))


def _windows(draw: Draw, net: Sketch, value: Value) -> Value:
    """Halves of an image become rows of their own, pass a layer, and are put back."""
    channels, height, width = net.shape(value)
    halves = net.call("torch.unflatten", value, dim=2, sizes=(2, -1))
    rows = net.call("torch.flatten", net.call("torch.transpose", halves, dim0=1, dim1=2), start_dim=0, end_dim=1)
    rows = net.call("F.relu", net.conv(_name(draw, net, "conv"), rows, channels, kernel_size=1))
    first = draw(st.sampled_from([-1, BatchSize(value)]))
    halves = net.call("torch.reshape", rows, shape=(first, 2, channels, height // 2, width))
    return net.call("torch.flatten", net.call("torch.transpose", halves, dim0=1, dim1=2), start_dim=2, end_dim=3)


def _sequence(draw: Draw, net: Sketch, value: Value) -> Value:
    """Pixels become places of a sequence, with a class token in front or not."""
    if draw(st.sampled_from([False, False, True])):
        return net.call("torch.transpose", net.call("F.unfold", value, kernel_size=2, stride=2), dim0=1, dim1=2)
    sequence = net.call("torch.transpose", net.call("torch.flatten", value, start_dim=2), dim0=1, dim1=2)
    if draw(st.booleans()):
        return sequence
    token = net.declare(_name(draw, net, "token"), (1, 1, net.full_shape(sequence)[-1]))
    batch = BatchSize(draw(st.sampled_from([value, sequence])))
    return net.cat(net.call("torch.broadcast_to", token, size=(batch, -1, -1)), sequence)


def _local_response(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.call("F.local_response_norm", value, size=draw(st.integers(1, 3)))


# Sequences.


def _attention_layer(draw: Draw, net: Sketch, value: Value) -> Value:
    width = net.full_shape(value)[-1]
    options = {"num_heads": draw(st.sampled_from(_divisors(width))), "bias": draw(st.booleans())}
    attended = net.layer(_name(draw, net, "attn"), "MultiheadAttention", value, embed_dim=width, batch_first=True, **options)
    return net.call("+", value, attended) if draw(st.booleans()) else attended


def _attention(draw: Draw, net: Sketch, value: Value) -> Value:
    """Queries, keys and values of one linear layer; by products or by torch's function."""
    length, width = net.shape(value)
    heads = draw(st.sampled_from(_divisors(width)))
    qkv = net.linear(_name(draw, net, "qkv"), value, 3 * width)
    qkv = net.call("torch.unflatten", qkv, dim=2, sizes=(3, heads, width // heads))
    qkv = net.call("torch.permute", qkv, dims=(2, 0, 3, 1, 4))
    query, key, values = (net.call("[]", qkv, dim=0, index=number) for number in range(3))
    way = draw(st.sampled_from(["products", "function", "einsum"]))
    if way == "function":
        mask: dict[str, Attribute] = {}
        if draw(st.booleans()):
            mask["attn_mask"] = net.declare(_name(draw, net, "mask"), (length, length), "buffer")
        attended = net.step("F.scaled_dot_product_attention", query=query, key=key, value=values, **mask)
    elif way == "einsum":
        scores = net.step("torch.einsum", equation="bhnd,bhmd->bhnm", operands=(query, key))
        attended = net.step("torch.einsum", equation="bhnm,bhmd->bhnd", operands=(net.call("F.softmax", scores, dim=-1), values))
    else:
        scores = net.call("@", net.call("*", query, 0.5), net.call("torch.transpose", key, dim0=-2, dim1=-1))
        attended = net.call("@", net.call("F.softmax", scores, dim=-1), values)
    attended = net.call("torch.flatten", net.call("torch.transpose", attended, dim0=1, dim1=2), start_dim=2)
    return net.linear(_name(draw, net, "proj"), attended, width)


def _mlp(draw: Draw, net: Sketch, value: Value) -> Value:
    width = net.full_shape(value)[-1]
    branch = net.layer_norm(_name(draw, net, "norm"), value)
    branch = net.call("F.gelu", net.linear(_name(draw, net, "fc"), branch, 2 * width))
    branch = net.linear(_name(draw, net, "fc"), branch, width)
    if draw(st.booleans()):
        branch = net.call("*", branch, net.declare(_name(draw, net, "gamma"), (width,)))
    if draw(st.booleans()):
        branch = net.stochastic_depth(branch, 0.25)
    return net.call("+", value, branch)


def _to_image(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.call("torch.unsqueeze", value, dim=draw(st.sampled_from([1, -1])))


# Groups of moves: a group is drawn first, then a move of it.

_COMMON: tuple[Move, ...] = (_norm, _activation, _combine, _declared_bias, _cat, _slices, _dropout, _again, _gating)
_RARE: tuple[Move, ...] = (
    *(_unsafe_activation, _number, _stochastic_depth, _softmax, _declared_tensor, _constant, _one_of_them, _stack, _rearranged, _reduce),
    *(_variance, _computed_weight, _prelu),
)
_CONVOLUTIONS: tuple[Move, ...] = (_conv, _conv, _conv_bn_relu, _conv_bn_relu, _residual, _residual, _gate, _pool)
_OF_IMAGES: tuple[Move, ...] = (
    *(_adaptive_pool, _flatten, _flatten, _layer_norm, _group_norm, _instance_norm, _conv1d, _conv_transpose, _interpolate, _pad),
    *(_shuffle, _shuffle, _windows, _sequence, _sequence, _local_response, _global_context, _non_local),
)
_OF_SEQUENCES: tuple[Move, ...] = (_linear, _layer_norm, _attention_layer, _attention, _mlp, _conv1d, _group_norm, _to_image)
_OF_FEATURES: tuple[Move, ...] = (_linear, _linear, _linear, _layer_norm, _to_image)

MOVES: dict[int, tuple[tuple[Move, ...], ...]] = {  # by the number of dimensions, the batch included
    2: (_OF_FEATURES, _COMMON, _RARE),
    3: (_OF_SEQUENCES, _OF_SEQUENCES, _COMMON, _RARE),
    4: (_CONVOLUTIONS, _CONVOLUTIONS, _CONVOLUTIONS, _COMMON, _COMMON, _OF_IMAGES, _RARE),
}
