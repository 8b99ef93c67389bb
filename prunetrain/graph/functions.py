"""The functions and operators that a network file may call, with their parameters and the family that says how channels pass through them.

Functions are written as in torch (`F.relu`, `torch.cat`), operators with their symbol; `[:]` is a slice of one dimension and `[]` one
index of it. No torch here; `tests/test_catalog.py` compares the list with torch's own signatures.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from prunetrain.graph.signatures import Kind, Parameter, Signature


class Family(Enum):
    """How an operation treats the elements of its inputs. Analyses have one rule per family, and one per function in OTHER.

    ELEMENTWISE: each element by itself. RANDOM: the same, with random zeros in train mode. BINARY: two operands, broadcast. POOL: windows
    of each channel of images. REDUCE: over the dimensions in `dim`. NORMALIZE: over the dimensions in `dim`, shape unchanged. MOVE:
    elements change places, are dropped or repeated, or zeros are inserted.
    """

    ELEMENTWISE = "elementwise"
    RANDOM = "random"
    BINARY = "binary"
    POOL = "pool"
    REDUCE = "reduce"
    NORMALIZE = "normalize"
    MOVE = "move"
    OTHER = "other"


_INPUT = Parameter("input", Kind.TENSOR)
_DIM = Parameter("dim", Kind.INTEGER)
_KERNEL = (
    _INPUT,
    Parameter("kernel_size", Kind.SIZE),
    Parameter("stride", Kind.SIZE, None),
    Parameter("padding", Kind.MARGIN, 0),
)


def _tensor(name: str, *, optional: bool = False) -> Parameter:
    return Parameter(name, Kind.TENSOR, None) if optional else Parameter(name, Kind.TENSOR)


def _takes(*parameters: Parameter, positional: int = 2) -> Signature:
    return Signature((_INPUT, *parameters), positional)


_DROPOUT = _takes(Parameter("p", Kind.PROBABILITY, 0.5), Parameter("training", Kind.TRAINING, True), positional=3)
_REDUCE = _takes(Parameter("dim", Kind.INTEGERS), Parameter("keepdim", Kind.FLAG, False))
_LARGEST = _takes(_DIM, Parameter("keepdim", Kind.FLAG, False))
_SPREAD = _takes(Parameter("dim", Kind.INTEGERS), Parameter("correction", Kind.NUMBER, 1), Parameter("keepdim", Kind.FLAG, False))
_SOFTMAX = _takes(_DIM)

_OPERATOR = Signature((Parameter("input", Kind.OPERAND), Parameter("other", Kind.OPERAND)), positional=2)
OPERATORS: Final[Mapping[str, Signature]] = {
    **dict.fromkeys(("+", "-", "*", "/", "**"), _OPERATOR),
    "@": _takes(_tensor("other")),
}

_BY_FAMILY: Final[Mapping[Family, Mapping[str, Signature]]] = {
    Family.ELEMENTWISE: {
        "F.relu": _takes(),
        "F.relu6": _takes(),
        "F.leaky_relu": _takes(Parameter("negative_slope", Kind.NUMBER, 0.01)),
        "F.elu": _takes(Parameter("alpha", Kind.NUMBER, 1.0)),
        "F.celu": _takes(Parameter("alpha", Kind.NUMBER, 1.0)),
        "F.selu": _takes(),
        "F.gelu": _takes(Parameter("approximate", Kind.WORD, "none", ("none", "tanh")), positional=1),
        "F.silu": _takes(),
        "F.mish": _takes(),
        "F.hardswish": _takes(),
        "F.hardsigmoid": _takes(),
        "F.hardtanh": _takes(Parameter("min_val", Kind.NUMBER, -1.0), Parameter("max_val", Kind.NUMBER, 1.0), positional=3),
        "F.logsigmoid": _takes(),
        "F.softplus": _takes(Parameter("beta", Kind.NUMBER, 1), Parameter("threshold", Kind.NUMBER, 20), positional=1),
        "F.softshrink": _takes(Parameter("lambd", Kind.NUMBER, 0.5)),
        "F.hardshrink": _takes(Parameter("lambd", Kind.NUMBER, 0.5)),
        "F.tanhshrink": _takes(),
        "F.softsign": _takes(),
        "torch.sigmoid": _takes(),
        "torch.tanh": _takes(),
        "torch.abs": _takes(),
        "torch.clamp": _takes(Parameter("min", Kind.NUMBER, None), Parameter("max", Kind.NUMBER, None), positional=1),
        "torch.cos": _takes(),
        "torch.erf": _takes(),
        "torch.exp": _takes(),
        "torch.log": _takes(),
        "torch.log1p": _takes(),
        "torch.neg": _takes(),
        "torch.pow": _takes(Parameter("exponent", Kind.NUMBER)),
        "torch.rsqrt": _takes(),
        "torch.sign": _takes(),
        "torch.sin": _takes(),
        "torch.sqrt": _takes(),
        "torch.square": _takes(),
        "torch.zeros_like": _takes(),
    },
    Family.RANDOM: dict.fromkeys(("F.dropout", "F.dropout1d", "F.dropout2d", "F.dropout3d"), _DROPOUT),
    Family.BINARY: {
        **{symbol: signature for symbol, signature in OPERATORS.items() if symbol != "@"},
        "torch.maximum": _takes(_tensor("other")),
        "torch.minimum": _takes(_tensor("other")),
    },
    Family.POOL: {
        "F.max_pool2d": _takes(*_KERNEL[1:], Parameter("dilation", Kind.SIZE, 1), Parameter("ceil_mode", Kind.FLAG, False)),
        "F.avg_pool2d": _takes(
            *_KERNEL[1:],
            Parameter("ceil_mode", Kind.FLAG, False),
            Parameter("count_include_pad", Kind.FLAG, True),
            Parameter("divisor_override", Kind.COUNT, None),
        ),
        "F.adaptive_avg_pool2d": _takes(Parameter("output_size", Kind.SIZE)),
        "F.adaptive_max_pool2d": _takes(Parameter("output_size", Kind.SIZE)),
        "F.interpolate": _takes(
            Parameter("size", Kind.SIZE, None),
            Parameter("scale_factor", Kind.NUMBERS, None),
            Parameter("mode", Kind.WORD, "nearest", ("nearest", "nearest-exact", "bilinear", "bicubic", "area")),
            Parameter("align_corners", Kind.FLAG, None),
            Parameter("recompute_scale_factor", Kind.FLAG, None),
            Parameter("antialias", Kind.FLAG, False),
            positional=1,
        ),
    },
    Family.REDUCE: {
        "torch.mean": _REDUCE,
        "torch.sum": _REDUCE,
        "torch.amax": _REDUCE,
        "torch.amin": _REDUCE,
        "torch.max": _LARGEST,
        "torch.min": _LARGEST,
        "torch.linalg.vector_norm": _takes(
            Parameter("ord", Kind.NUMBER, 2), Parameter("dim", Kind.INTEGERS, None), Parameter("keepdim", Kind.FLAG, False)
        ),
        **dict.fromkeys(("torch.var", "torch.std", "torch.var_mean"), _SPREAD),
    },
    Family.NORMALIZE: {
        "F.softmax": _SOFTMAX,
        "F.log_softmax": _SOFTMAX,
        "F.normalize": _takes(
            Parameter("p", Kind.NUMBER, 2.0), Parameter("dim", Kind.INTEGER, 1), Parameter("eps", Kind.NUMBER, 1e-12), positional=1
        ),
    },
    Family.MOVE: {
        "[:]": _takes(
            _DIM, Parameter("start", Kind.INTEGER, 0), Parameter("stop", Kind.INTEGER, None), Parameter("step", Kind.COUNT, 1), positional=5
        ),
        "[]": _takes(_DIM, Parameter("index", Kind.INTEGER), positional=3),
        "torch.flatten": _takes(Parameter("start_dim", Kind.INTEGER, 0), Parameter("end_dim", Kind.INTEGER, -1), positional=3),
        "torch.unflatten": _takes(_DIM, Parameter("sizes", Kind.SHAPE), positional=3),
        "torch.reshape": _takes(Parameter("shape", Kind.SHAPE)),
        "torch.broadcast_to": _takes(Parameter("size", Kind.SHAPE)),
        "torch.permute": _takes(Parameter("dims", Kind.INTEGERS)),
        "torch.transpose": _takes(Parameter("dim0", Kind.INTEGER), Parameter("dim1", Kind.INTEGER), positional=3),
        "torch.squeeze": _takes(Parameter("dim", Kind.INTEGERS)),
        "torch.unsqueeze": _takes(_DIM),
        "torch.cat": Signature((Parameter("tensors", Kind.TENSORS), Parameter("dim", Kind.INTEGER, 0)), positional=2),
        "torch.stack": Signature((Parameter("tensors", Kind.TENSORS), Parameter("dim", Kind.INTEGER, 0)), positional=2),
        "torch.roll": _takes(Parameter("shifts", Kind.INTEGERS), Parameter("dims", Kind.INTEGERS), positional=3),
        "torch.flip": _takes(Parameter("dims", Kind.INTEGERS)),
        "torch.index_select": _takes(_DIM, _tensor("index"), positional=3),
        "F.pad": _takes(
            Parameter("pad", Kind.INTEGERS),
            Parameter("mode", Kind.WORD, "constant", ("constant", "reflect", "replicate", "circular")),
            Parameter("value", Kind.NUMBER, None),
        ),
        "F.pixel_shuffle": _takes(Parameter("upscale_factor", Kind.COUNT)),
        "F.pixel_unshuffle": _takes(Parameter("downscale_factor", Kind.COUNT)),
        "F.channel_shuffle": _takes(Parameter("groups", Kind.COUNT)),
    },
    Family.OTHER: {
        "@": OPERATORS["@"],
        "torch.addcmul": _takes(_tensor("tensor1"), _tensor("tensor2"), positional=3),
        "torch.Tensor.type_as": _takes(_tensor("other")),
        "torch.index_add": _takes(_DIM, _tensor("index"), _tensor("source"), positional=4),
        "torch.slice_scatter": _takes(
            _tensor("src"),
            Parameter("dim", Kind.INTEGER, 0),
            Parameter("start", Kind.INTEGER, None),
            Parameter("end", Kind.INTEGER, None),
            Parameter("step", Kind.COUNT, 1),
            positional=5,
        ),
        "torch.einsum": Signature((Parameter("equation", Kind.WORD), Parameter("operands", Kind.TENSORS)), positional=2),
        "F.scaled_dot_product_attention": Signature(
            (
                _tensor("query"),
                _tensor("key"),
                _tensor("value"),
                _tensor("attn_mask", optional=True),
                Parameter("dropout_p", Kind.PROBABILITY, 0.0),
                Parameter("is_causal", Kind.FLAG, False),
                Parameter("scale", Kind.NUMBER, None),
            ),
            positional=3,
        ),
        "F.linear": _takes(_tensor("weight"), _tensor("bias", optional=True), positional=3),
        **{
            name: _takes(
                _tensor("weight"),
                _tensor("bias", optional=True),
                Parameter("stride", Kind.SIZE, 1),
                Parameter("padding", Kind.PADDING, 0),
                Parameter("dilation", Kind.SIZE, 1),
                Parameter("groups", Kind.COUNT, 1),
                positional=3,
            )
            for name in ("F.conv1d", "F.conv2d")
        },
        "F.embedding": _takes(_tensor("weight")),
        "F.layer_norm": _takes(
            Parameter("normalized_shape", Kind.SHAPE),
            _tensor("weight", optional=True),
            _tensor("bias", optional=True),
            Parameter("eps", Kind.NUMBER, 1e-5),
        ),
        "F.batch_norm": _takes(
            _tensor("running_mean", optional=True),
            _tensor("running_var", optional=True),
            _tensor("weight", optional=True),
            _tensor("bias", optional=True),
            Parameter("training", Kind.TRAINING, False),
            Parameter("momentum", Kind.NUMBER, 0.1),
            Parameter("eps", Kind.NUMBER, 1e-5),
            positional=3,
        ),
        "F.local_response_norm": _takes(
            Parameter("size", Kind.COUNT),
            Parameter("alpha", Kind.NUMBER, 1e-4),
            Parameter("beta", Kind.NUMBER, 0.75),
            Parameter("k", Kind.NUMBER, 1.0),
        ),
        "F.unfold": _takes(
            Parameter("kernel_size", Kind.SIZE),
            Parameter("dilation", Kind.SIZE, 1),
            Parameter("padding", Kind.MARGIN, 0),
            Parameter("stride", Kind.SIZE, 1),
        ),
    },
}

RESULT_OF: Final[Mapping[str, str]] = {"torch.max": ".values", "torch.min": ".values", "torch.var_mean": "[1]"}
"""They return two tensors, of which a file takes this one.

Of equal numbers torch.max gives the gradient to one; amax divides it. The mean of torch.var_mean differs from torch.mean in its last bits.
"""

WEIGHTED: Final = frozenset(("F.conv1d", "F.conv2d", "F.linear"))
"""They take a weight (out, in, ...) as an argument."""

FUNCTIONS: Final[Mapping[str, Signature]] = {name: signature for group in _BY_FAMILY.values() for name, signature in group.items()}
FAMILY_OF: Final[Mapping[str, Family]] = {name: family for family, group in _BY_FAMILY.items() for name in group}
ELEMENTWISE: Final = tuple(_BY_FAMILY[Family.ELEMENTWISE])
