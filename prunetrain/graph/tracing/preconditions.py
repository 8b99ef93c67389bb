"""Layers that must be changed before their model can be traced: lazy ones, and those whose weights torch computes by a norm.

In: a module that is about to be called. Out: the problem and the call that removes it, or "" if there is none. Parametrizations of your
own and the masks of `torch.nn.utils.prune` are arithmetic like any other, and are traced.
"""

from typing import Final

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList

_REPARAMETRIZATIONS: Final = {
    "WeightNorm": "weight_norm",
    "SpectralNorm": "spectral_norm",
    "_WeightNorm": "weight_norm",
    "_SpectralNorm": "spectral_norm",
    "_Orthogonal": "orthogonal",
}
"""The names of torch's functions, by the class of the hook (the first two) or parametrization that they make."""


def unmet_precondition(module: nn.Module, name: str) -> str:
    """Return what must be done before a module can be traced, or "" if there is nothing to do.

    Args:
        module: any part of the model.
        name: its qualified name.
    """
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return f"{name or 'the network'} is lazy and has no weights yet: run one batch through the model first"
    if isinstance(module, ParametrizationList):
        layer, _, weight = name.rpartition("parametrizations.")
        kind = next(filter(None, map(_kind, module)), "")
        return _computed_weight_message(layer.rstrip("."), weight, kind, "parametrize.remove_parametrizations") if kind else ""
    for hook in module._forward_pre_hooks.values():
        if kind := _kind(hook):
            return _computed_weight_message(name, getattr(hook, "name", "weight"), kind, f"remove_{kind}")
    return ""


def _kind(part: object) -> str:
    """Return which of torch's functions made a hook or a parametrization, or "" if none of them did."""
    return _REPARAMETRIZATIONS.get(type(part).__name__, "") if type(part).__module__.startswith("torch.nn.utils.") else ""


def _computed_weight_message(layer: str, weight: str, kind: str, remove: str) -> str:
    written = all(part.isidentifier() for part in layer.split("."))
    model = f"model.{layer}" if written else f"model.get_submodule({layer!r})" if layer else "model"
    return (
        f"{layer or 'the network'} computes its {weight} by {kind}, which a network file cannot express: "
        f"call torch.nn.utils.{remove}({model}, {weight!r}) first"
    )
