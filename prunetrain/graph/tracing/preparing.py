"""Layers that have to be changed before their model can be traced: lazy ones, and those whose weights torch computes by a norm.

In: a module that is about to be called. Out: what is in the way, and the call that removes it; "" where nothing is. Parametrizations that
people write themselves and the masks of `torch.nn.utils.prune` are arithmetic like any other, and are traced.
"""

from typing import Final

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList

_KINDS: Final = {
    "WeightNorm": "weight_norm",
    "SpectralNorm": "spectral_norm",
    "_WeightNorm": "weight_norm",
    "_SpectralNorm": "spectral_norm",
    "_Orthogonal": "orthogonal",
}
"""What torch's functions are called, by the classes of the hooks (the first two) and the parametrizations that they make."""


def to_be_done(module: nn.Module, name: str) -> str:
    """What to do about a module before it can be traced.

    Args:
        module: any part of the model.
        name: its qualified name.
    """
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return f"{name or 'the network'} is lazy and has no weights yet: run one batch through the model first"
    if isinstance(module, ParametrizationList):
        layer, _, weight = name.rpartition("parametrizations.")
        kind = next(filter(None, map(_kind, module)), "")
        return _computed(layer.rstrip("."), weight, kind, "parametrize.remove_parametrizations") if kind else ""
    for hook in module._forward_pre_hooks.values():
        if kind := _kind(hook):
            return _computed(name, getattr(hook, "name", "weight"), kind, f"remove_{kind}")
    return ""


def _kind(part: object) -> str:
    """Which of torch's functions made a hook or a parametrization; "" where none of these did."""
    return _KINDS.get(type(part).__name__, "") if type(part).__module__.startswith("torch.nn.utils.") else ""


def _computed(layer: str, weight: str, kind: str, remove: str) -> str:
    written = all(part.isidentifier() for part in layer.split("."))
    model = f"model.{layer}" if written else f"model.get_submodule({layer!r})" if layer else "model"
    return (
        f"{layer or 'the network'} computes its {weight} by {kind}, which a network file cannot say: "
        f"call torch.nn.utils.{remove}({model}, {weight!r}) first"
    )
