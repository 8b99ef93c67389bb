"""What a network file may contain: every layer class and function, with its parameters, their defaults, and how a call is written.

The one list that `trace` writes by, `render` prints by and `parse` accepts by. No torch here; `tests/test_catalog.py` compares the list
with torch's own signatures.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite
from typing import Final, TypeAlias

Literal: TypeAlias = "int | float | bool | str | tuple[Literal, ...] | None"


class Kind(Enum):
    """What values a parameter takes."""

    COUNT = "a whole number from 1"
    INTEGER = "a whole number"
    SIZE = "a whole number from 1 or a pair of them"
    MARGIN = "a whole number from 0 or a pair of them"
    PADDING = "a whole number from 0, a pair of them, 'same' or 'valid'"
    PADDING_MODE = "'zeros', 'reflect', 'replicate' or 'circular'"
    FLAG = "True or False"
    NUMBER = "a finite number"
    PROBABILITY = "a number from 0 to 1"
    APPROXIMATE = "'none' or 'tanh'"
    TENSOR = "a tensor"
    TRAINING = "self.training, True or False"


class _Required(Enum):
    REQUIRED = "required"


REQUIRED: Final = _Required.REQUIRED


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer's constructor or of a function."""

    name: str
    kind: Kind
    default: "Literal | _Required" = REQUIRED

    def accepts(self, value: object) -> bool:
        """Whether a literal can stand for this parameter (tensors are never literals)."""
        if value == self.default and type(value) is type(self.default):
            return True
        match self.kind:
            case Kind.COUNT:
                return _is_int(value) and value >= 1  # type: ignore[operator]
            case Kind.INTEGER:
                return _is_int(value)
            case Kind.SIZE:
                return _is_spatial(value, least=1)
            case Kind.MARGIN:
                return _is_spatial(value, least=0)
            case Kind.PADDING:
                return _is_spatial(value, least=0) or value in ("same", "valid")
            case Kind.PADDING_MODE:
                return value in ("zeros", "reflect", "replicate", "circular")
            case Kind.FLAG | Kind.TRAINING:
                return isinstance(value, bool)
            case Kind.NUMBER:
                return _is_number(value)
            case Kind.PROBABILITY:
                return _is_number(value) and 0 <= value <= 1  # type: ignore[operator]
            case Kind.APPROXIMATE:
                return value in ("none", "tanh")
            case Kind.TENSOR:
                return False

    def canonical(self, value: Literal) -> Literal:
        """The one way to write a value: (3, 3) as 3."""
        if self.kind in (Kind.SIZE, Kind.MARGIN, Kind.PADDING) and isinstance(value, tuple) and len(set(value)) == 1:
            return value[0]
        return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and isfinite(value))


def _is_spatial(value: object, *, least: int) -> bool:
    pair = value if isinstance(value, tuple) else (value, value)
    return len(pair) == 2 and all(_is_int(v) and v >= least for v in pair)


@dataclass(frozen=True)
class Signature:
    """The parameters of a call, in order; the first `positional` of them are written without their names."""

    parameters: tuple[Parameter, ...]
    positional: int = 1

    def __getitem__(self, name: str) -> Parameter:
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    def names(self) -> tuple[str, ...]:
        """Parameter names in order."""
        return tuple(parameter.name for parameter in self.parameters)


@dataclass(frozen=True)
class LayerKind(Signature):
    """A torch.nn class with parameters or buffers.

    `axes` names, for each tensor of its state dict, the channel axis that each leading dimension belongs to ("in", "out" or "features");
    `sizes` names the constructor argument that holds the length of each channel axis.
    """

    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)


def _batch_norm() -> LayerKind:
    return LayerKind(
        (
            Parameter("num_features", Kind.COUNT),
            Parameter("eps", Kind.NUMBER, 1e-5),
            Parameter("momentum", Kind.NUMBER, 0.1),
            Parameter("affine", Kind.FLAG, True),
            Parameter("track_running_stats", Kind.FLAG, True),
        ),
        axes=dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("features",)) | {"num_batches_tracked": ()},
        sizes={"features": "num_features"},
    )


LAYERS: Final[Mapping[str, LayerKind]] = {
    "Conv2d": LayerKind(
        (
            Parameter("in_channels", Kind.COUNT),
            Parameter("out_channels", Kind.COUNT),
            Parameter("kernel_size", Kind.SIZE),
            Parameter("stride", Kind.SIZE, 1),
            Parameter("padding", Kind.PADDING, 0),
            Parameter("dilation", Kind.SIZE, 1),
            Parameter("groups", Kind.COUNT, 1),
            Parameter("bias", Kind.FLAG, True),
            Parameter("padding_mode", Kind.PADDING_MODE, "zeros"),
        ),
        positional=2,
        axes={"weight": ("out", "in"), "bias": ("out",)},
        sizes={"in": "in_channels", "out": "out_channels"},
    ),
    "Linear": LayerKind(
        (Parameter("in_features", Kind.COUNT), Parameter("out_features", Kind.COUNT), Parameter("bias", Kind.FLAG, True)),
        positional=2,
        axes={"weight": ("out", "in"), "bias": ("out",)},
        sizes={"in": "in_features", "out": "out_features"},
    ),
    "BatchNorm1d": _batch_norm(),
    "BatchNorm2d": _batch_norm(),
}

_INPUT = Parameter("input", Kind.TENSOR)
_KERNEL = (
    _INPUT,
    Parameter("kernel_size", Kind.SIZE),
    Parameter("stride", Kind.SIZE, None),
    Parameter("padding", Kind.MARGIN, 0),
)

ELEMENTWISE: Final[Mapping[str, Signature]] = {
    "F.relu": Signature((_INPUT,)),
    "F.relu6": Signature((_INPUT,)),
    "F.leaky_relu": Signature((_INPUT, Parameter("negative_slope", Kind.NUMBER, 0.01)), positional=2),
    "F.elu": Signature((_INPUT, Parameter("alpha", Kind.NUMBER, 1.0)), positional=2),
    "F.gelu": Signature((_INPUT, Parameter("approximate", Kind.APPROXIMATE, "none"))),
    "F.silu": Signature((_INPUT,)),
    "F.hardswish": Signature((_INPUT,)),
    "F.hardsigmoid": Signature((_INPUT,)),
    "torch.sigmoid": Signature((_INPUT,)),
    "torch.tanh": Signature((_INPUT,)),
}

OPERATORS: Final[Mapping[str, Signature]] = {
    symbol: Signature((_INPUT, Parameter("other", Kind.TENSOR)), positional=2) for symbol in ("+", "*")
}

FUNCTIONS: Final[Mapping[str, Signature]] = {
    **ELEMENTWISE,
    **OPERATORS,
    "F.dropout": Signature(
        (_INPUT, Parameter("p", Kind.PROBABILITY, 0.5), Parameter("training", Kind.TRAINING, True)),
        positional=3,
    ),
    "F.max_pool2d": Signature(
        (*_KERNEL, Parameter("dilation", Kind.SIZE, 1), Parameter("ceil_mode", Kind.FLAG, False)),
        positional=2,
    ),
    "F.avg_pool2d": Signature(
        (
            *_KERNEL,
            Parameter("ceil_mode", Kind.FLAG, False),
            Parameter("count_include_pad", Kind.FLAG, True),
            Parameter("divisor_override", Kind.COUNT, None),
        ),
        positional=2,
    ),
    "F.adaptive_avg_pool2d": Signature((_INPUT, Parameter("output_size", Kind.SIZE)), positional=2),
    "torch.flatten": Signature(
        (_INPUT, Parameter("start_dim", Kind.INTEGER, 0), Parameter("end_dim", Kind.INTEGER, -1)),
        positional=3,
    ),
}

# Names that a network file itself uses, which neither its class nor a local variable may hide.
FILE_NAMES: Final = frozenset({"F", "Tensor", "nn", "self", "super", "torch"})

# Attributes of torch.nn.Module that a layer's name would hide.
RESERVED_NAMES: Final = frozenset(
    "T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval extra_repr float "
    "forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia named_buffers named_children "
    "named_modules named_parameters parameters register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook "
    "register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state "
    "set_submodule share_memory state_dict to to_empty train training type xpu zero_grad".split()
)


def bind(signature: Signature, arguments: Iterable[tuple[str, object]]) -> tuple[tuple[str, object], ...]:
    """Arguments in the signature's order, canonical, without those that say the default.

    Raises:
        ValueError: for an unknown, repeated or missing argument, or a literal the parameter does not take.
    """
    given: dict[str, object] = {}
    for name, value in arguments:
        if name not in signature.names():
            raise ValueError(f"unknown argument {name!r}")
        if name in given:
            raise ValueError(f"argument {name!r} is given twice")
        given[name] = value
    bound = []
    for parameter in signature.parameters:
        if parameter.name not in given:
            if parameter.default is REQUIRED:
                raise ValueError(f"argument {parameter.name!r} is missing")
            continue
        value = given[parameter.name]
        if isinstance(value, (int, float, str, tuple, type(None))):
            if not parameter.accepts(value):
                raise ValueError(f"{parameter.name} must be {parameter.kind.value}, not {value!r}")
            value = parameter.canonical(value)
            if value == parameter.default:
                continue
        elif parameter.kind not in (Kind.TENSOR, Kind.TRAINING):
            raise ValueError(f"{parameter.name} must be {parameter.kind.value}")
        bound.append((parameter.name, value))
    return tuple(bound)
