"""Functions of one tensor, their arguments in the catalog's form: activations, pooling, reductions, and those that return their input."""

from math import inf
from typing import Any, Final

import torch

from prunetrain.graph.layergraph import Operand, Value
from prunetrain.graph.tracing.builder import Builder, ConvertedResult, UnsupportedResult
from prunetrain.graph.tracing.calls import CONVERSIONS, arguments
from prunetrain.graph.tracing.records import Call

# torch's name: the function that it is written as, and torch's parameters after the input.
_SIMPLE: Final = {
    "relu": ("F.relu", "inplace"),
    "relu_": ("F.relu", ""),
    "relu6": ("F.relu6", "inplace"),
    "leaky_relu": ("F.leaky_relu", "negative_slope inplace"),
    "leaky_relu_": ("F.leaky_relu", "negative_slope"),
    "elu": ("F.elu", "alpha inplace"),
    "elu_": ("F.elu", "alpha"),
    "celu": ("F.celu", "alpha inplace"),
    "selu": ("F.selu", "inplace"),
    "gelu": ("F.gelu", "approximate"),
    "silu": ("F.silu", "inplace"),
    "mish": ("F.mish", "inplace"),
    "hardswish": ("F.hardswish", "inplace"),
    "hardsigmoid": ("F.hardsigmoid", "inplace"),
    "logsigmoid": ("F.logsigmoid", ""),
    "log_sigmoid": ("F.logsigmoid", ""),
    "softplus": ("F.softplus", "beta threshold"),
    "softshrink": ("F.softshrink", "lambd"),
    "hardshrink": ("F.hardshrink", "lambd"),
    "tanhshrink": ("F.tanhshrink", ""),
    "softsign": ("F.softsign", ""),
    "sigmoid": ("torch.sigmoid", ""),
    "tanh": ("torch.tanh", ""),
    "abs": ("torch.abs", ""),
    "absolute": ("torch.abs", ""),
    "__abs__": ("torch.abs", ""),
    "cos": ("torch.cos", ""),
    "erf": ("torch.erf", ""),
    "exp": ("torch.exp", ""),
    "log": ("torch.log", ""),
    "log1p": ("torch.log1p", ""),
    "neg": ("torch.neg", ""),
    "negative": ("torch.neg", ""),
    "__neg__": ("torch.neg", ""),
    "rsqrt": ("torch.rsqrt", ""),
    "sign": ("torch.sign", ""),
    "sin": ("torch.sin", ""),
    "sqrt": ("torch.sqrt", ""),
    "square": ("torch.square", ""),
    "clamp": ("torch.clamp", "min max"),
    "clip": ("torch.clamp", "min max"),
    "clamp_min": ("torch.clamp", "min"),
    "clamp_max": ("torch.clamp", "max"),
    "normalize": ("F.normalize", "p dim eps"),
    "linalg_vector_norm": ("torch.linalg.vector_norm", "ord dim keepdim dtype"),
    "interpolate": ("F.interpolate", "size scale_factor mode align_corners recompute_scale_factor antialias"),
    "upsample": ("F.interpolate", "size scale_factor mode align_corners"),
    "pixel_shuffle": ("F.pixel_shuffle", "upscale_factor"),
    "pixel_unshuffle": ("F.pixel_unshuffle", "downscale_factor"),
    "channel_shuffle": ("F.channel_shuffle", "groups"),
    "native_channel_shuffle": ("F.channel_shuffle", "groups"),
    "roll": ("torch.roll", "shifts dims"),
    "flip": ("torch.flip", "dims"),
    "local_response_norm": ("F.local_response_norm", "size alpha beta k"),
    "unfold": ("F.unfold", "kernel_size dilation padding stride"),
}
_IN_PLACE: Final = {f"{name}_": value for name, value in _SIMPLE.items() if f"{name}_" not in _SIMPLE and not name.endswith("_")}
_REDUCTIONS: Final = {
    "mean": ("torch.mean", "dim keepdim dtype"),
    "sum": ("torch.sum", "dim keepdim dtype"),
    "amax": ("torch.amax", "dim keepdim"),
    "amin": ("torch.amin", "dim keepdim"),
}
_SOFTMAX: Final = {
    "log_softmax": ("F.log_softmax", "dim dtype"),
    "softmax": ("F.softmax", "dim dtype"),
}
_POOLS: Final = {
    "max_pool2d": ("F.max_pool2d", "kernel_size stride padding dilation ceil_mode return_indices"),
    "avg_pool2d": ("F.avg_pool2d", "kernel_size stride padding ceil_mode count_include_pad divisor_override"),
    "adaptive_avg_pool2d": ("F.adaptive_avg_pool2d", "output_size"),
    "adaptive_max_pool2d": ("F.adaptive_max_pool2d", "output_size return_indices"),
}


def _supported_arguments(call: Call, parameters: str) -> dict[str, Any]:
    """Return the arguments of a call by torch's parameters, the input among them, without those that must be at their defaults.

    Raises:
        ValueError: if one of these is not.
    """
    given = arguments(call, f"input {parameters}")
    if given.pop("dtype", None) not in (None, torch.float32):
        raise ValueError("dtype= is not supported")
    if given.pop("return_indices", False):
        raise ValueError("return_indices=True is not supported")
    return given


def simple(build: Builder, call: Call) -> Value:
    """A function of `_SIMPLE` or `_IN_PLACE`, its arguments as they are."""
    target, parameters = (_SIMPLE | _IN_PLACE)[call.name]
    given = _supported_arguments(call, parameters)
    return build.add(target, input=build.tensor(given.pop("input")), **given)


def reduction(build: Builder, call: Call) -> Value:
    """A function of `_REDUCTIONS`, which runs over all dimensions if none is given."""
    target, parameters = _REDUCTIONS[call.name]
    given = _supported_arguments(call, parameters)
    image = build.tensor(given.pop("input"))
    if given.get("dim") in (None, ()):
        given["dim"] = tuple(range(build.rank(image)))
    return build.add(target, input=image, **given)


def softmax(build: Builder, call: Call) -> Value:
    """A function of `_SOFTMAX`. Without a dimension it runs over the channels, as torch guesses."""
    target, parameters = _SOFTMAX[call.name]
    given = _supported_arguments(call, parameters)
    image = build.tensor(given.pop("input"))
    if given.get("dim") is None:
        if build.rank(image) not in (2, 4):
            raise ValueError("needs dim=")
        given["dim"] = 1
    return build.add(target, input=image, **given)


def pool(build: Builder, call: Call) -> Value:
    """A function of `_POOLS` on a batch of images (N, C, H, W)."""
    target, parameters = _POOLS[call.name]
    given = _supported_arguments(call, parameters)
    image = build.tensor(given.pop("input"))
    if build.rank(image) != 4:
        raise ValueError("is supported only for a batch of images (N, C, H, W)")
    if "stride" in given and (not given["stride"] or _pair(given["stride"]) == _pair(given["kernel_size"])):
        given["stride"] = None  # the default: the kernel's own size
    if "output_size" in given:
        given["output_size"] = build.traced.sizes[call.results[0]][0][-2:]
    return build.add(target, input=image, **given)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value[:1] * 2 if len(value) == 1 else value


def identity(build: Builder, call: Call) -> ConvertedResult:
    """A function that returns what it reads: contiguous, clone, and conversions to the type that a tensor already has."""
    return build.converted(call.arguments[0])


def hardtanh(build: Builder, call: Call) -> Value:
    """F.hardtanh, which is F.relu6 between 0 and 6."""
    given = arguments(call, "input min_val max_val inplace")
    image = build.tensor(given.pop("input"))
    if (given.get("min_val"), given.get("max_val")) == (0, 6):
        return build.add("F.relu6", input=image)
    return build.add("F.hardtanh", input=image, **given)


def pad(build: Builder, call: Call) -> Operand:
    """F.pad, or its input if it adds nothing."""
    given = arguments(call, "input pad mode value")
    image, amounts = build.tensor(given["input"]), given["pad"]
    if not any(amounts):
        return image
    mode, value = given.get("mode", "constant"), given.get("value") or None
    while mode == "constant" and amounts[-2:] == (0, 0):  # the other modes need an amount for each of their dimensions
        amounts = amounts[:-2]
    if value == -inf and all(reader.name == "max_pool2d" for reader in build.readers(call)):
        value = torch.finfo(torch.float32).min  # a finite literal that no maximum picks either
    return build.add("F.pad", input=image, pad=amounts, mode=mode, value=value)


def pool1d(build: Builder, call: Call) -> Value:
    """One-dimensional pooling, as torch does it: on an image one pixel high."""
    target, parameters = _POOLS[call.name.replace("1d", "2d")]
    given = _supported_arguments(call, parameters)
    image = build.tensor(given.pop("input"))

    def flat(value: Any, beside: int) -> tuple[int, int]:
        return (beside, value[0] if isinstance(value, tuple) else value)

    around = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "output_size": 1}
    if not given.get("stride", True):
        given["stride"] = given["kernel_size"]
    options = {name: flat(value, around[name]) if name in around else value for name, value in given.items()}
    wide = build.add("torch.unsqueeze", input=image, dim=-2)
    return build.add("torch.squeeze", input=build.add(target, input=wide, **options), dim=-2)


def variance(build: Builder, call: Call) -> Value | tuple[Value, Value]:
    """torch.var and torch.std, and torch.var_mean and torch.std_mean, which also return the mean."""
    given = arguments(call, "input dim unbiased keepdim correction")
    image, keepdim = build.tensor(given["input"]), given.get("keepdim", False)
    dim = given.get("dim")
    if isinstance(dim, bool):  # torch.var(x, unbiased)
        raise ValueError("needs dim: unbiased alone is not supported")
    dims = tuple(range(build.rank(image))) if dim is None else dim
    correction = given.get("correction")
    correction = int(given.get("unbiased", True)) if correction is None else correction
    name, _, mean = call.name.partition("_")
    options = {"input": image, "dim": dims, "correction": correction, "keepdim": keepdim}
    spread = build.add(f"torch.{name}", **options)
    return (spread, build.add("torch.var_mean", **options)) if mean else spread


def norm(build: Builder, call: Call) -> Value:
    """Tensor.norm and torch.norm over some dimensions."""
    given = arguments(call, "input p dim keepdim dtype")
    order = given.get("p", 2)
    if order == "fro" or order is None:
        order = 2
    dims = given.get("dim")
    if isinstance(order, str) or given.get("dtype") is not None:
        raise ValueError("these arguments are not supported")
    return build.add(
        "torch.linalg.vector_norm", input=build.tensor(given["input"]), ord=order, dim=dims, keepdim=given.get("keepdim", False)
    )


def attention(build: Builder, call: Call) -> Value:
    """F.scaled_dot_product_attention."""
    given = arguments(call, "query key value attn_mask dropout_p is_causal scale enable_gqa")
    if given.pop("enable_gqa", False):
        raise ValueError("enable_gqa=True is not supported")
    tensors = {name: build.optional(given.pop(name, None)) for name in ("query", "key", "value", "attn_mask")}
    return build.add("F.scaled_dot_product_attention", **tensors, **given)


def dropout(build: Builder, call: Call) -> ConvertedResult:
    """Dropout: its input if it is off, else a step with training=True; `merge` finds out whether it follows the mode."""
    given = arguments(call, "input p training inplace")
    image = build.tensor(given["input"])
    if not given.get("training", True) or given.get("p", 0.5) == 0:
        return image
    name = "dropout" if call.name.endswith("_") else call.name
    return build.add(f"F.{name}", input=image, p=given.get("p", 0.5), training=True)


def empty(build: Builder, call: Call) -> ConvertedResult:
    """A tensor without values yet."""
    return UnsupportedResult("was made with empty() and never filled")


SIMPLE = {
    **dict.fromkeys((*_SIMPLE, *_IN_PLACE), simple),
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(_SOFTMAX, softmax),
    **dict.fromkeys(_POOLS, pool),
    **dict.fromkeys(("contiguous", "clone", "positive", "alias", "detach", "data", *CONVERSIONS), identity),
    **dict.fromkeys(("hardtanh", "hardtanh_"), hardtanh),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_max_pool1d", "avg_pool1d", "max_pool1d"), pool1d),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), variance),
    "norm": norm,
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d"), dropout),
    **dict.fromkeys(("empty", "new_empty", "empty_like", "empty_strided"), empty),
}
