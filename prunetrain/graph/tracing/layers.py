"""Which modules are layers of the catalog, and the arguments of their constructors."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from torch import Tensor, nn

from prunetrain.graph.catalog import LAYERS
from prunetrain.graph.layergraph import Layer
from prunetrain.graph.signatures import Literal
from prunetrain.graph.tracing.calls import to_plain_python

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class LayerCall:
    """A call of a module that is a layer of the catalog: the layer, still without a name, and what it reads."""

    layer: Layer
    images: Tensor
    returns_pair: bool = False


def is_layer(module: nn.Module) -> bool:
    """Whether a module is exactly of a class of the catalog: no subclass, no hooks, no method replaced on the module itself."""
    kind = type(module).__name__
    if kind not in LAYERS or type(module) is not getattr(nn, kind) or any(getattr(module, hooks) for hooks in _HOOKS):
        return False
    return not any(callable(value) and callable(getattr(type(module), name, None)) for name, value in vars(module).items())


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a layer computes different results in train and eval mode."""
    return getattr(module, "running_mean", None) is not None or bool(getattr(module, "dropout", 0))


def layer_call_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LayerCall:
    """Return the layer that a call of a layer's module stands for, and its input.

    Raises:
        ValueError: for a layer with arguments that a network file cannot express.
    """
    if isinstance(module, nn.MultiheadAttention):
        return LayerCall(layer_of(module), _attention_input(args, kwargs), returns_pair=True)
    given = [*args, *kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], Tensor):
        raise ValueError(f"nn.{type(module).__name__} must be called with one tensor")
    return LayerCall(layer_of(module), given[0])


def _attention_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    given = dict(zip(("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask"), args, strict=False)) | dict(kwargs)
    query = given.pop("query", None)
    alone = given.pop("key", None) is query and given.pop("value", None) is query
    plain = not given.pop("need_weights", True) and all(value is None or value is False for value in given.values())  # masks are tensors
    if not isinstance(query, Tensor) or not alone or not plain:
        raise ValueError("nn.MultiheadAttention can only be called as attention(x, x, x, need_weights=False)")
    return query


def layer_of(module: nn.Module) -> Layer:
    """Return a module as a layer without a name: its constructor's arguments, read back from its attributes (its repr hides some).

    Raises:
        ValueError: for arguments that the catalog does not have.
    """
    kind = type(module).__name__
    known = LAYERS[kind].names()
    arguments: dict[str, Literal] = {}
    for name, default in _defaults(kind).items():
        value = _constructor_argument(module, name, default)
        if name in known:
            arguments[name] = value[0] if kind == "Conv1d" and isinstance(value, tuple) and len(value) == 1 else value
        elif name != "bias" and value != default:
            raise ValueError(f"nn.{kind} with {name}={value!r} is not supported yet")
    if arguments.get("affine") and module.bias is None:  # newer torch has an argument for it; in every torch, bias can be set to None
        raise ValueError(f"nn.{kind} with bias=False is not supported yet")
    return Layer.make("", kind, **arguments)


@cache
def _defaults(kind: str) -> dict[str, object]:
    """Return a constructor's parameters and their defaults; cached, as reading a signature is slow and there are few kinds of layers."""
    return {
        name: found.default for name, found in inspect.signature(getattr(nn, kind)).parameters.items() if name not in ("device", "dtype")
    }


def _constructor_argument(module: nn.Module, name: str, default: object) -> Any:
    match module, name:
        case nn.MultiheadAttention(), "bias":
            return module.in_proj_bias is not None
        case nn.MultiheadAttention(), "add_bias_kv":
            return module.bias_k is not None
        case nn.MultiheadAttention(), "kdim" | "vdim":
            size = getattr(module, name)
            return None if size == module.embed_dim else size
        case _, "bias":
            return getattr(module, "bias", None) is not None
    return to_plain_python(getattr(module, name, default))
