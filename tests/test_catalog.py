"""The catalog says what torch says: names, order and defaults of parameters, tensors of layers, names that a layer would hide."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import get_testing_overrides

from prunetrain.graph.catalog import FUNCTIONS, LAYERS, OPERATORS, REQUIRED, RESERVED_NAMES, Kind, Parameter, Signature, bind
from prunetrain.graph.layergraph import Layer, Value

LEFT_OUT = {"device", "dtype", "inplace", "out", "return_indices"}  # where a layer lies and how a result is delivered
UNSUPPORTED = {"BatchNorm1d": {"bias"}, "BatchNorm2d": {"bias"}}  # trace refuses other values than the default
VALUE = Value(0)
SIZES = {"in_channels": 6, "out_channels": 4, "in_features": 6, "out_features": 4, "num_features": 6, "kernel_size": 3}


def torchs_parameters(call: Any) -> list[tuple[str, Any]]:
    """Names and defaults, from the signature or, for what has none, from the stand-in that torch keeps for its own tests."""
    try:
        parameters = inspect.signature(call).parameters
        if "args" in parameters:
            raise ValueError
    except ValueError:
        parameters = inspect.signature(get_testing_overrides()[call]).parameters
    return [(p.name, REQUIRED if p.default is p.empty else p.default) for p in parameters.values()]


def check_agreement(signature: Signature, call: Any, left_out: set[str]) -> None:
    """Ours are torch's first parameters, so that they mean the same with and without names; the rest is left out on purpose."""
    theirs = torchs_parameters(call)
    ours = [(parameter.name, parameter.default) for parameter in signature.parameters]
    assert repr(ours) == repr(theirs[: len(ours)])
    assert {name for name, _ in theirs[len(ours) :]} <= left_out


def named(target: str) -> Any:
    module, name = target.split(".")
    return getattr({"F": F, "torch": torch}[module], name)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_take_what_torchs_take(kind: str) -> None:
    check_agreement(LAYERS[kind], getattr(nn, kind), LEFT_OUT | UNSUPPORTED.get(kind, set()))


@pytest.mark.parametrize("target", [target for target in FUNCTIONS if target not in OPERATORS])
def test_functions_take_what_torchs_take(target: str) -> None:
    check_agreement(FUNCTIONS[target], named(target), LEFT_OUT)


@pytest.mark.parametrize("symbol", OPERATORS)
def test_operators_take_two_tensors(symbol: str) -> None:
    theirs = torchs_parameters({"+": torch.add, "*": torch.mul}[symbol])
    assert [parameter.name for parameter in OPERATORS[symbol].parameters] == [name for name, _ in theirs][:2]


@pytest.mark.parametrize("kind", LAYERS)
def test_axes_name_the_state_dict_and_its_channels(kind: str) -> None:
    layer_kind = LAYERS[kind]
    layer = Layer.make("layer", kind, **{name: size for name, size in SIZES.items() if name in layer_kind.names()})
    state = getattr(nn, kind)(**dict(layer.arguments)).state_dict()
    assert set(layer_kind.axes) == set(state)
    for name, axes in layer_kind.axes.items():
        assert state[name].shape[: len(axes)] == tuple(layer[layer_kind.sizes[axis]] for axis in axes), name
        assert bool(axes) == bool(state[name].ndim), name


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
        (Kind.PADDING_MODE, ["zeros", "circular"], ["zero", 0, None, "zeros\n"]),
        (Kind.FLAG, [True, False], [0, 1, None, "True"]),
        (Kind.NUMBER, [0, -2, 0.1, 1e-5], [float("nan"), float("inf"), True, "1", None, (1.0,)]),
        (Kind.PROBABILITY, [0, 1, 0.5], [-0.1, 1.1, 2, True, float("nan")]),
        (Kind.APPROXIMATE, ["none", "tanh"], ["erf", None, 1]),
        (Kind.TENSOR, [], [0, 1.0, None, "x"]),
        (Kind.TRAINING, [True, False], [1, None, "training"]),
    ],
)
def test_values_of_a_kind(kind: Kind, accepted: list[Any], refused: list[Any]) -> None:
    parameter = Parameter("name", kind)
    assert [value for value in accepted if not parameter.accepts(value)] == []
    assert [value for value in refused if parameter.accepts(value)] == []


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
