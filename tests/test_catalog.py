"""The catalog says what torch says: names, order and defaults of parameters, tensors of layers, names that a layer would hide."""

import inspect
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import get_testing_overrides

from prunetrain.channels.computed_weights import compute_weight
from prunetrain.graph.catalog import LAYERS, RESERVED_NAMES
from prunetrain.graph.functions import ELEMENTWISE, FAMILY_OF, FUNCTIONS, OPERATORS, RESULT_OF, Family
from prunetrain.graph.layergraph import TRAINING, Attribute, BatchSize, Declared, Layer, LayerGraph, Step, Value
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.graph.shapes import infer_shapes
from prunetrain.graph.signatures import REQUIRED, Kind, Parameter, Signature, bind

LEFT_OUT = {"device", "dtype", "inplace", "out", "return_indices"}  # where a layer lies and how a result is delivered
UNSUPPORTED = {  # trace refuses other values than the default
    **{kind: {"bias"} for kind in ("BatchNorm1d", "BatchNorm2d", "GroupNorm", "InstanceNorm2d")},
    "ConvTranspose2d": {"padding_mode"},
    "F.embedding": {"padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"},
    "F.softmax": {"_stacklevel"},
    "F.log_softmax": {"_stacklevel"},
    "torch.addcmul": {"value"},
    "torch.unflatten": {"names"},  # in torch 2.11's stand-in
    "torch.zeros_like": {"layout", "requires_grad"},
}
RENAMED = {
    ("torch.Tensor.type_as", "self"): "input",
    ("torch.broadcast_to", "self"): "input",
    ("torch.permute", "self"): "input",
    ("torch.permute", "dim"): "dims",
}  # in its stand-ins
WRITTEN_ANYWAY = {("F.batch_norm", "running_mean"), ("F.batch_norm", "running_var")}  # None, where torch has no default
VALUE = Value(0)

LAYER_EXAMPLES: dict[str, dict[str, Any]] = {
    "Conv1d": {"in_channels": 6, "out_channels": 4, "kernel_size": 3},
    "Conv2d": {"in_channels": 6, "out_channels": 4, "kernel_size": 3},
    "ConvTranspose2d": {"in_channels": 6, "out_channels": 4, "kernel_size": 3},
    "Linear": {"in_features": 6, "out_features": 4},
    "BatchNorm1d": {"num_features": 6},
    "BatchNorm2d": {"num_features": 6},
    "LayerNorm": {"normalized_shape": 6},
    "RMSNorm": {"normalized_shape": 6},
    "GroupNorm": {"num_groups": 2, "num_channels": 6},
    "InstanceNorm2d": {"num_features": 6, "affine": True, "track_running_stats": True},
    "PReLU": {"num_parameters": 6},
    "MultiheadAttention": {"embed_dim": 6, "num_heads": 2, "batch_first": True},
}


def torchs_parameters(call: Any) -> list[tuple[str, Any]]:
    """Names and defaults, from the signature or, for what has none, from the stand-in that torch keeps for its own tests."""
    try:
        parameters = inspect.signature(call).parameters
        if "args" in parameters:
            raise ValueError
    except ValueError:
        parameters = inspect.signature(get_testing_overrides()[call]).parameters
    return [(p.name, REQUIRED if p.default is p.empty else p.default) for p in parameters.values()]


def check_agreement(name: str, signature: Signature, call: Any) -> None:
    """Ours are torch's first parameters, so that they mean the same with and without names; the rest is left out on purpose.

    Ours may be required where torch's are not. Torch's stand-ins know fewer parameters than it takes; the calls below try the rest.
    """
    theirs = [(RENAMED.get((name, parameter), parameter), default) for parameter, default in torchs_parameters(call)]
    ours = [(p.name, p.default) for p in signature.parameters]
    for (our_name, our_default), (their_name, their_default) in zip(ours, theirs, strict=False):
        assert our_name == their_name
        if our_default is not REQUIRED and (name, our_name) not in WRITTEN_ANYWAY:
            assert repr(our_default) == repr(their_default)
    assert {parameter for parameter, _ in theirs[len(ours) :]} <= LEFT_OUT | UNSUPPORTED.get(name, set())


def named(target: str) -> Any:
    module, _, name = target.partition(".")
    return attrgetter(name)({"F": F, "torch": torch}[module])


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_take_what_torchs_take(kind: str) -> None:
    check_agreement(kind, LAYERS[kind], getattr(nn, kind))


NO_STAND_IN = {*OPERATORS, *RESULT_OF, "[]", "[:]"}  # torch.max's is of another form; the calls below try ours


@pytest.mark.parametrize("target", [target for target in FUNCTIONS if target not in NO_STAND_IN])
def test_functions_take_what_torchs_take(target: str) -> None:
    check_agreement(target, FUNCTIONS[target], named(target))


@pytest.mark.parametrize(("symbol", "function"), [("+", "add"), ("-", "sub"), ("*", "mul"), ("/", "div"), ("@", "matmul")])
def test_operators_take_two_operands(symbol: str, function: str) -> None:
    theirs = torchs_parameters(getattr(torch, function))
    assert [parameter.name for parameter in OPERATORS[symbol].parameters] == [name for name, _ in theirs][:2]


@pytest.mark.parametrize("kind", LAYERS)
def test_axes_name_the_state_dict_and_its_channels(kind: str) -> None:
    layer_kind, layer = LAYERS[kind], Layer.make("layer", kind, **LAYER_EXAMPLES[kind])
    state = getattr(nn, kind)(**dict(layer.arguments)).state_dict()
    assert set(layer_kind.axes) == set(state)
    for name, axes in layer_kind.axes.items():
        assert len(axes) <= state[name].ndim, name
        for axis, size in zip(axes, state[name].shape, strict=False):
            assert axis == "" or size == layer[layer_kind.sizes[axis]], name
        assert bool(axes) == bool(state[name].ndim), name


# Every function, called by a network file as it is written, with other values than the defaults.

ROWS, IMAGE, TABLE = (2, 5, 6), (4, 6, 8), Declared("table", (4, 6))
INDEX, MEAN, VARIANCE = Declared.index("index", (2, 0, 3)), Declared("mean", (4,), "buffer"), Declared("variance", (4,), "buffer")
EXAMPLES: dict[str, list[tuple[tuple[int, ...], dict[str, Any]]]] = {  # the shape of `VALUE` without the batch, and the other arguments
    **{target: [(IMAGE, {}), ((7,), {})] for target in ELEMENTWISE},
    "F.leaky_relu": [(IMAGE, {"negative_slope": 0.2})],
    "F.elu": [(IMAGE, {"alpha": 0.5})],
    "F.celu": [(IMAGE, {"alpha": 0.5})],
    "F.gelu": [(IMAGE, {"approximate": "tanh"})],
    "F.hardtanh": [(IMAGE, {"min_val": 0.0, "max_val": 2.0})],
    "F.softplus": [(IMAGE, {"beta": 2, "threshold": 3})],
    "torch.clamp": [(IMAGE, {"min": 0.0}), (IMAGE, {"max": 2.0})],
    "torch.pow": [(IMAGE, {"exponent": 3})],
    "F.dropout": [(IMAGE, {"p": 0.1, "training": TRAINING})],
    "F.dropout1d": [((5, 6), {"p": 0.1, "training": TRAINING})],
    "F.dropout2d": [(IMAGE, {"p": 0.1, "training": TRAINING})],
    "F.dropout3d": [((1, *IMAGE), {"p": 0.1, "training": TRAINING})],
    **{target: [(IMAGE, {"other": 2}), (IMAGE, {"other": VALUE}), ((4, 6), {"other": TABLE})] for target in "+-*/"},
    "torch.Tensor.type_as": [(IMAGE, {"other": VALUE})],
    "torch.maximum": [((4, 6), {"other": TABLE})],
    "torch.minimum": [((4, 6), {"other": TABLE})],
    "torch.addcmul": [((4, 6), {"tensor1": TABLE, "tensor2": Declared("factors", (6,))})],
    "F.max_pool2d": [(IMAGE, {"kernel_size": (2, 3), "stride": 2, "padding": 1, "dilation": (1, 2), "ceil_mode": True})],
    "F.avg_pool2d": [
        (IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False, "divisor_override": 4})
    ],
    "F.adaptive_avg_pool2d": [(IMAGE, {"output_size": (2, 3)})],
    "F.adaptive_max_pool2d": [(IMAGE, {"output_size": (2, 3)})],
    "F.interpolate": [
        (IMAGE, {"size": (9, 5), "mode": "bicubic", "align_corners": True}),
        (IMAGE, {"scale_factor": (1.5, 2.7), "mode": "bilinear", "recompute_scale_factor": True, "antialias": True}),
    ],
    **{
        target: [(IMAGE, {"dim": (2, 3)}), (IMAGE, {"dim": -1, "keepdim": True})]
        for target in ("torch.mean", "torch.sum", "torch.amax", "torch.amin")
    },
    **{target: [(IMAGE, {"dim": 1}), (IMAGE, {"dim": -1, "keepdim": True})] for target in ("torch.max", "torch.min")},
    "torch.linalg.vector_norm": [(IMAGE, {"ord": 1, "dim": (2, 3), "keepdim": True})],
    "torch.var": [(IMAGE, {"dim": 1, "correction": 0, "keepdim": True})],
    "torch.var_mean": [(IMAGE, {"dim": (2, 3), "correction": 0, "keepdim": True})],
    "torch.std": [(IMAGE, {"dim": (1, 2), "correction": 0})],
    "F.softmax": [(IMAGE, {"dim": -1})],
    "F.log_softmax": [(IMAGE, {"dim": 1})],
    "F.normalize": [(IMAGE, {"p": 1.0, "dim": 2, "eps": 0.1})],
    "[:]": [(IMAGE, {"dim": 2, "start": 1, "stop": -1, "step": 2}), (IMAGE, {"dim": -2, "stop": 3}), (IMAGE, {"dim": 1})],
    "[]": [(IMAGE, {"dim": 1, "index": -1}), (IMAGE, {"dim": -2, "index": 3})],
    "torch.flatten": [(IMAGE, {"start_dim": 1, "end_dim": -2})],
    "torch.unflatten": [(IMAGE, {"dim": 1, "sizes": (2, -1)})],
    "torch.reshape": [(IMAGE, {"shape": (-1, 8, 24)}), (IMAGE, {"shape": (BatchSize(VALUE), -1)})],
    "torch.broadcast_to": [((4, 1, 8), {"size": (-1, 4, 6, -1)}), ((4, 1), {"size": (BatchSize(VALUE), 4, 3)})],
    "torch.permute": [(IMAGE, {"dims": (0, 2, 3, 1)})],
    "torch.transpose": [(IMAGE, {"dim0": 1, "dim1": -1})],
    "torch.squeeze": [((1, 4, 1), {"dim": (1, 3)}), ((1, 4), {"dim": 1})],
    "torch.unsqueeze": [((4,), {"dim": 1}), ((4,), {"dim": -1})],
    "torch.cat": [(IMAGE, {"tensors": (VALUE, VALUE), "dim": -1}), (IMAGE, {"tensors": (VALUE,), "dim": 1})],
    "torch.stack": [(IMAGE, {"tensors": (VALUE, VALUE), "dim": 2})],
    "torch.roll": [(IMAGE, {"shifts": (1, -2), "dims": (2, 3)}), (IMAGE, {"shifts": 1, "dims": 2})],
    "torch.flip": [(IMAGE, {"dims": (2, 3)}), (IMAGE, {"dims": 1})],
    "torch.index_select": [(IMAGE, {"dim": 1, "index": INDEX})],
    "F.pad": [(IMAGE, {"pad": (1, 2, 0, 1), "value": 0.5}), (IMAGE, {"pad": (1, 2, 0, 1), "mode": "reflect"})],
    "F.pixel_shuffle": [(IMAGE, {"upscale_factor": 2})],
    "F.pixel_unshuffle": [(IMAGE, {"downscale_factor": 2})],
    "F.channel_shuffle": [(IMAGE, {"groups": 2})],
    "**": [(IMAGE, {"other": 0.5}), (IMAGE, {"other": Declared("exponent", (1,))}), (IMAGE, {"other": VALUE})],
    "@": [((2, 4, 6), {"other": Declared("matrix", (6, 3))}), ((5, 5), {"other": VALUE})],
    "torch.index_add": [((3, 4), {"dim": 1, "index": Declared.index("order", (2, 0, 1)), "source": VALUE})],
    "torch.slice_scatter": [((4, 6), {"src": VALUE, "dim": 2, "start": -6, "end": 6})],
    "torch.einsum": [((5, 6), {"equation": "nab,nac->nbc", "operands": (VALUE, VALUE)})],
    "F.scaled_dot_product_attention": [
        (ROWS, {"key": VALUE, "value": VALUE, "attn_mask": Declared("mask", (5, 5))}),
        (ROWS, {"key": VALUE, "value": VALUE, "dropout_p": 0.5, "is_causal": True, "scale": 0.3}),
    ],
    "F.linear": [((5, 6), {"weight": TABLE, "bias": Declared("bias", (4,))}), ((6,), {"weight": TABLE})],
    "F.conv1d": [((4, 9), {"weight": Declared("weight", (2, 2, 3)), "stride": 2, "padding": 1, "groups": 2})],
    "F.conv2d": [
        (IMAGE, {"weight": Declared("weight", (2, 4, 3, 2)), "bias": Declared("bias", (2,)), "padding": (1, 0), "dilation": 2}),
        (IMAGE, {"weight": Declared("weight", (2, 4, 3, 3)), "padding": "same"}),
    ],
    "F.embedding": [((2, 6), {"input": Declared("positions", (2,), "buffer", "int64"), "weight": TABLE})],
    "F.layer_norm": [(IMAGE, {"normalized_shape": (8,), "weight": Declared("weight", (8,)), "bias": Declared("bias", (8,)), "eps": 0.1})],
    "F.batch_norm": [
        (IMAGE, {"running_mean": MEAN, "running_var": VARIANCE, "training": TRAINING, "momentum": 0.2, "eps": 0.1}),
        (IMAGE, {"weight": Declared("weight", (4,)), "bias": Declared("bias", (4,)), "training": True}),
    ],
    "F.local_response_norm": [(IMAGE, {"size": 3, "alpha": 0.1, "beta": 0.5, "k": 2.0})],
    "F.unfold": [(IMAGE, {"kernel_size": (2, 3), "dilation": 2, "padding": 1, "stride": 2})],
}


def example_graph(target: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> LayerGraph:
    """A network of one call, and an addition if the call alone reads nothing of the images."""
    declared = [argument for argument in arguments.values() if isinstance(argument, Declared)]
    given = {name: Attribute(argument.name) if isinstance(argument, Declared) else argument for name, argument in arguments.items()}
    first = FUNCTIONS[target].names()[0]
    if FUNCTIONS[target][first].kind in (Kind.TENSOR, Kind.OPERAND):
        given = {first: VALUE, **given}
    steps = [Step.make(target, **given)]
    if not steps[0].inputs():
        steps.append(Step.make("+", input=VALUE, other=Value(1)))
    return LayerGraph("Net", shape, (), tuple(steps), Value(len(steps)), tuple(declared))


def test_every_function_has_an_example() -> None:
    assert set(EXAMPLES) == set(FUNCTIONS)


@pytest.mark.parametrize(
    ("target", "shape", "arguments"), [(target, *example) for target, examples in EXAMPLES.items() for example in examples]
)
def test_calls_make_the_shapes_that_torchs_make(target: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    graph = example_graph(target, shape, arguments)
    network = instantiate(render(graph), "net.py")
    for batch_size in (1, 2):
        output = network(torch.rand(batch_size, *shape))
        assert tuple(output.shape) == infer_shapes(graph, batch_size)[-1]


@pytest.mark.parametrize(
    ("target", "shape", "arguments"),
    [
        (target, *example)
        for target, examples in EXAMPLES.items()
        if FAMILY_OF[target] not in (Family.OTHER, Family.RANDOM) or target == "torch.addcmul"
        for example in examples
        if "BatchSize" not in repr(example)  # a declared tensor has none
    ],
)
def test_weights_are_computed_as_the_file_computes_them(target: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """The call of the example, on a declared tensor instead of images."""
    graph = example_graph(target, shape, arguments)
    network = instantiate(render(graph), "net.py").eval()
    state = {name: torch.rand(tensor.shape).to(tensor.dtype) for name, tensor in network.state_dict().items()}
    network.load_state_dict(state)
    images = torch.rand(2, *shape)
    step = graph.steps[0].map_values(lambda value: Attribute("images"))
    of_tensors = replace(graph, steps=(step,), declared=(*graph.declared, Declared("images", (2, *shape))))
    computed = compute_weight(of_tensors, {**state, "images": images}, Value(1))
    torch.testing.assert_close(computed, network(images), rtol=0, atol=0, equal_nan=True)


def test_reserved_names_are_torchs() -> None:
    public = {name for name in (*dir(nn.Module), *dir(nn.Module())) if not name.startswith("_")}
    assert public <= RESERVED_NAMES


@pytest.mark.parametrize("kind", Kind)
def test_defaults_are_accepted_and_canonical(kind: Kind) -> None:
    parameters = [p for signature in (*LAYERS.values(), *FUNCTIONS.values()) for p in signature.parameters if p.kind is kind]
    assert parameters
    for parameter in parameters:
        if parameter.default is not REQUIRED:
            assert parameter.accepts(parameter.default)
            assert parameter.canonical(parameter.default) == parameter.default


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (Kind.COUNT, [1, 64], [0, -1, 1.0, True, "1", None, (1,)]),
        (Kind.INTEGER, [0, -1, 7], [1.0, False, "1", None]),
        (Kind.SIZE, [1, (3, 5), (2, 2)], [0, (1, 0), (1, 2, 3), (3,), (), True, (1, True), 1.5, "same", None]),
        (Kind.MARGIN, [0, (0, 2)], [-1, (0, -1), (1,), "same", False, None]),
        (Kind.PADDING, [0, (1, 2), "same", "valid"], [-1, "full", ("same", "same"), None]),
        (Kind.SPAN, [0, 3, "same", "valid"], [-1, (1, 2), "full", None, True]),
        (Kind.WORD, ["zeros", "ab->ba", ""], [0, None, "zeros\n", "caf\u00e9"]),
        (Kind.FLAG, [True, False], [0, 1, None, "True"]),
        (Kind.NUMBER, [0, -2, 0.1, 1e-5], [float("nan"), float("inf"), True, "1", None, (1.0,)]),
        (Kind.PROBABILITY, [0, 1, 0.5], [-0.1, 1.1, 2, True, float("nan")]),
        (Kind.INTEGERS, [0, -1, (0, -1), (3,)], [(), 1.0, True, (1, None), ((1,),)]),
        (Kind.SIZES, [1, (3, 5, 7)], [0, (), (1, 0), True, None]),
        (Kind.SHAPE, [(1, 2), (-1,)], [2, (), (0,), (-2, 1), (1.0,), None]),
        (Kind.NUMBERS, [1, 0.5, (1.5, 2)], [(), (float("nan"),), "1", True]),
        (Kind.TENSOR, [], [0, 1.0, None, "x"]),
        (Kind.TENSORS, [], [0, (), (1, 2), None]),
        (Kind.OPERAND, [0, -1.5], [True, float("inf"), "1", (1,), None]),
        (Kind.TRAINING, [True, False], [1, None, "training"]),
    ],
)
def test_values_of_a_kind(kind: Kind, accepted: list[Any], refused: list[Any]) -> None:
    parameter = Parameter("name", kind)
    assert [value for value in accepted if not parameter.accepts(value)] == []
    assert [value for value in refused if parameter.accepts(value)] == []


def test_words_with_choices_are_these() -> None:
    mode = LAYERS["Conv2d"]["padding_mode"]
    assert mode.accepts("circular")
    assert not mode.accepts("mirror")
    assert "'reflect'" in mode.expected


def test_none_only_where_it_is_the_default() -> None:
    pool = FUNCTIONS["F.max_pool2d"]
    assert pool["stride"].accepts(None)
    assert not pool["kernel_size"].accepts(None)


def test_bind_orders_and_drops_defaults() -> None:
    given = [("padding", (1, 1)), ("kernel_size", (3, 3)), ("groups", 1), ("out_channels", 8), ("in_channels", 4), ("stride", (2, 1))]
    expected = (("in_channels", 4), ("out_channels", 8), ("kernel_size", 3), ("stride", (2, 1)), ("padding", 1))
    assert bind(LAYERS["Conv2d"], given) == expected


def test_bind_takes_a_whole_number_for_the_same_number() -> None:
    assert bind(FUNCTIONS["F.elu"], [("input", VALUE), ("alpha", 1)]) == (("input", VALUE),)


def test_bind_keeps_a_zero_that_is_no_default() -> None:
    assert bind(LAYERS["BatchNorm2d"], [("num_features", 4), ("affine", False), ("momentum", 0)]) == (
        ("num_features", 4),
        ("momentum", 0),
        ("affine", False),
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("in_features", 3)], "argument 'out_features' is missing"),
        ([("in_features", 3), ("out_features", 3), ("width", 3)], "unknown argument 'width'"),
        ([("in_features", 3), ("out_features", 3), ("in_features", 3)], "argument 'in_features' is given twice"),
        ([("in_features", 3), ("out_features", 0)], "out_features must be a whole number from 1, not 0"),
        ([("in_features", 3), ("out_features", 3), ("bias", [])], "bias must be True or False"),
    ],
)
def test_bind_refuses(given: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        bind(LAYERS["Linear"], given)
