"""Torch's functions by their short names: those that only describe tensors, those that are refused, and how arguments are read."""

import numbers
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from torch import Tensor

from prunetrain.graph.tracing.records import Call

# Calls that describe a tensor without reading its values. They run and are not recorded.
METADATA_CALLS: Final = frozenset(
    "shape dtype device ndim requires_grad is_cuda layout is_leaf grad grad_fn is_sparse is_quantized is_meta is_mps is_xpu is_mkldnn "
    "is_cpu names itemsize nbytes is_nested _version size dim numel stride is_floating_point is_complex element_size get_device "
    "ndimension nelement is_contiguous storage_offset __len__ __hash__ is_signed requires_grad_ untyped_storage data_ptr is_tensor "
    "is_inference result_type is_autocast_enabled _is_view is_pinned is_shared has_names retain_grad _set_grad_enabled".split()
)
SIZE_CALLS: Final = frozenset(
    "shape size numel nelement __len__ stride nbytes untyped_storage".split()
)  # what reveals the number of images
# Calls that make constants in the shape or type of another tensor.
CREATED_LIKE: Final = frozenset("new_zeros new_ones new_full new_tensor zeros_like ones_like full_like".split())
UNINITIALISED: Final = frozenset("empty new_empty empty_like empty_strided".split())
RANDOM: Final = frozenset(
    "rand randn rand_like randn_like randint randint_like randperm bernoulli bernoulli_ uniform_ normal normal_ random_ exponential_ "
    "multinomial poisson log_normal_ cauchy_ geometric_".split()
)
DATA_DEPENDENT: Final = {
    **{name: f"{name}()" for name in ("item", "tolist", "numpy", "nonzero", "unique", "masked_select", "argwhere", "bincount", "equal")},
    "allclose": "allclose()",
    "__bool__": "branching on a tensor",
    "__float__": "float() of a tensor",
    "__int__": "int() of a tensor",
    "__index__": "an index that is a tensor",
    "__array__": "converting a tensor to numpy",
    "__contains__": "`in` on a tensor",
    "__format__": "printing a tensor",
    "__repr__": "printing a tensor",
}
GRADIENT_QUERIES: Final = frozenset(("requires_grad", "is_leaf", "grad_fn"))  # what reveals whether a result has gradients
HOOKS: Final = frozenset(("register_hook", "register_post_accumulate_grad_hook"))
DETACHING_CALLS: Final = frozenset(("detach", "detach_", "data"))
WITHOUT_GRADIENTS: Final = UNINITIALISED | DETACHING_CALLS | {"rand_like", "randn_like", "randint_like"}
CONVERSIONS: Final = frozenset("float to type type_as double half bfloat16 cpu cuda long bool int".split())


_FIRST: Final = ("input", "self", "tensor", "x", "a", "x1")  # torch's names for a function's first parameter
_AS_IN_NUMPY: Final = {"axis": "dim", "keepdims": "keepdim"}
_INPUT_IS_SECOND: Final = frozenset(("where", "searchsorted"))
_IGNORED_ARGUMENTS: Final = frozenset(("inplace", "_stacklevel", "out"))  # do not affect the result


@cache
def short_name(func: Callable[..., Any]) -> str:
    """Return the last part of a function's name, and for the getter of a property the property's name."""
    if func is Tensor.unfold:
        return "Tensor.unfold"  # not F.unfold
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        return str(func.__self__.__name__)  # type: ignore[attr-defined]
    return str(name)


def is_in_place(name: str) -> bool:
    """Whether a method of this name changes its tensor: add_, __iadd__, __setitem__."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__iter__", "__invert__", "__int__", "__index__"))
    return name.endswith("_")


def canonical_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with its main tensor in front: `flatten(x, start_dim=1)` for `flatten(input=x, start_dim=1)`.

    Names that torch takes as numpy does are torch's own: `mean(x, dim=1)` for `mean(x, axis=1)`.
    """
    kwargs = {_AS_IN_NUMPY.get(key, key): value for key, value in kwargs.items()}
    first = next((key for key in _FIRST if isinstance(kwargs.get(key), Tensor)), None)
    if args or first is None or name in _INPUT_IS_SECOND:
        return args, kwargs
    return (kwargs[first],), {key: value for key, value in kwargs.items() if key != first}


def to_plain_python(value: Any) -> Any:
    """Convert numbers of other libraries, such as numpy's, to Python's own, and lists to tuples."""
    match value:
        case bool() | str() | None:
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case tuple() | list():
            return tuple(map(to_plain_python, value))
        case slice():
            return slice(to_plain_python(value.start), to_plain_python(value.stop), to_plain_python(value.step))
    return value


def arguments(call: Call, names: str) -> dict[str, Any]:
    """Return the arguments of a call by parameter; `names` are the parameters in order, separated by spaces.

    Raises:
        TraceError: for more arguments, or others, than these.
    """
    known = names.split()
    if len(call.arguments) > len(known) or not call.keywords.keys() <= set(known) | _IGNORED_ARGUMENTS:
        raise call.place.error(f"{call.name} is not supported with these arguments")
    given = dict(zip(known, call.arguments, strict=False)) | call.keywords
    if given.pop("out", None) is not None:
        raise call.place.error(f"{call.name} is not supported with out=: assign its result")
    return {name: value for name, value in given.items() if name not in _IGNORED_ARGUMENTS}
