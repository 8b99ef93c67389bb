"""The layer classes that a network file may define, their arguments, and the channels that each axis of their tensors belongs to.

Together with `functions.py` this is the one list that `trace`, `render` and `parse` go by. No torch here; `tests/test_catalog.py` compares
it with torch's own signatures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from prunetrain.graph.signatures import Kind, Parameter, Signature


@dataclass(frozen=True)
class LayerKind(Signature):
    """A torch.nn class with parameters or buffers.

    `axes` names, for each tensor of its state dict, the channel axis that each leading dimension belongs to ("in", "out", "features";
    "" for one that never changes); `sizes` names the constructor argument that holds the length of each channel axis. `ranks` says how
    many dimensions an input may have, the batch included. `call` is how the layer is called.
    """

    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    call: str = "{name}({input})"


_EPS = Parameter("eps", Kind.NUMBER, 1e-5)
_BIAS = Parameter("bias", Kind.FLAG, True)
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def _convolution(rank: int) -> LayerKind:
    size, padding = (Kind.SIZE, Kind.PADDING) if rank == 4 else (Kind.COUNT, Kind.SPAN)
    return LayerKind(
        (
            Parameter("in_channels", Kind.COUNT),
            Parameter("out_channels", Kind.COUNT),
            Parameter("kernel_size", size),
            Parameter("stride", size, 1),
            Parameter("padding", padding, 0),
            Parameter("dilation", size, 1),
            Parameter("groups", Kind.COUNT, 1),
            _BIAS,
            Parameter("padding_mode", Kind.WORD, "zeros", _PADDING_MODES),
        ),
        positional=2,
        axes={"weight": ("out", "in"), "bias": ("out",)},
        sizes={"in": "in_channels", "out": "out_channels"},
        ranks=(rank,),
    )


def _batch_norm(*ranks: int) -> LayerKind:
    return LayerKind(
        (
            Parameter("num_features", Kind.COUNT),
            _EPS,
            Parameter("momentum", Kind.NUMBER, 0.1),
            Parameter("affine", Kind.FLAG, True),
            Parameter("track_running_stats", Kind.FLAG, True),
        ),
        axes=dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("features",)) | {"num_batches_tracked": ()},
        sizes={"features": "num_features"},
        ranks=ranks,
    )


LAYERS: Final[Mapping[str, LayerKind]] = {
    "Conv1d": _convolution(3),
    "Conv2d": _convolution(4),
    "ConvTranspose2d": LayerKind(
        (
            Parameter("in_channels", Kind.COUNT),
            Parameter("out_channels", Kind.COUNT),
            Parameter("kernel_size", Kind.SIZE),
            Parameter("stride", Kind.SIZE, 1),
            Parameter("padding", Kind.MARGIN, 0),
            Parameter("output_padding", Kind.MARGIN, 0),
            Parameter("groups", Kind.COUNT, 1),
            _BIAS,
            Parameter("dilation", Kind.SIZE, 1),
        ),
        positional=2,
        axes={"weight": ("in", "out"), "bias": ("out",)},
        sizes={"in": "in_channels", "out": "out_channels"},
        ranks=(4,),
    ),
    "Linear": LayerKind(
        (Parameter("in_features", Kind.COUNT), Parameter("out_features", Kind.COUNT), _BIAS),
        positional=2,
        axes={"weight": ("out", "in"), "bias": ("out",)},
        sizes={"in": "in_features", "out": "out_features"},
    ),
    "BatchNorm1d": _batch_norm(2, 3),
    "BatchNorm2d": _batch_norm(4),
    "LayerNorm": LayerKind(
        (Parameter("normalized_shape", Kind.SIZES), _EPS, Parameter("elementwise_affine", Kind.FLAG, True), _BIAS),
        axes={"weight": ("features",), "bias": ("features",)},
        sizes={"features": "normalized_shape"},
    ),
    "RMSNorm": LayerKind(
        (
            Parameter("normalized_shape", Kind.SIZES),
            Parameter("eps", Kind.NUMBER, None),
            Parameter("elementwise_affine", Kind.FLAG, True),
        ),
        axes={"weight": ("features",)},
        sizes={"features": "normalized_shape"},
    ),
    "GroupNorm": LayerKind(
        (Parameter("num_groups", Kind.COUNT), Parameter("num_channels", Kind.COUNT), _EPS, Parameter("affine", Kind.FLAG, True)),
        positional=2,
        axes={"weight": ("features",), "bias": ("features",)},
        sizes={"features": "num_channels"},
    ),
    "InstanceNorm2d": LayerKind(
        (
            Parameter("num_features", Kind.COUNT),
            _EPS,
            Parameter("momentum", Kind.NUMBER, 0.1),
            Parameter("affine", Kind.FLAG, False),
            Parameter("track_running_stats", Kind.FLAG, False),
        ),
        axes=dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("features",)) | {"num_batches_tracked": ()},
        sizes={"features": "num_features"},
        ranks=(4,),
    ),
    "PReLU": LayerKind(
        (Parameter("num_parameters", Kind.COUNT, 1), Parameter("init", Kind.NUMBER, 0.25)),
        axes={"weight": ("features",)},
        sizes={"features": "num_parameters"},
    ),
    "MultiheadAttention": LayerKind(
        (
            Parameter("embed_dim", Kind.COUNT),
            Parameter("num_heads", Kind.COUNT),
            Parameter("dropout", Kind.PROBABILITY, 0.0),
            _BIAS,
            Parameter("add_bias_kv", Kind.FLAG, False),
            Parameter("add_zero_attn", Kind.FLAG, False),
            Parameter("kdim", Kind.COUNT, None),
            Parameter("vdim", Kind.COUNT, None),
            Parameter("batch_first", Kind.FLAG, False),
        ),
        positional=2,
        axes={"in_proj_weight": ("",), "in_proj_bias": ("",), "out_proj.weight": ("",), "out_proj.bias": ("",)},
        ranks=(3,),
        call="{name}({input}, {input}, {input}, need_weights=False)[0]",
    ),
}

# Names that a network file itself uses, which neither its class nor a local variable may hide.
FILE_NAMES: Final = frozenset({"F", "Tensor", "nn", "self", "super", "torch", "tuple"})

# Attributes of torch.nn.Module that a layer's name would hide.
RESERVED_NAMES: Final = frozenset(
    "T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval extra_repr float "
    "forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia named_buffers named_children "
    "named_modules named_parameters parameters register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook "
    "register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state "
    "set_submodule share_memory state_dict to to_empty train training type xpu zero_grad".split()
)
