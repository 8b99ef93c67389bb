"""An optimizer's state from a checkpoint: momenta and step counts, and nothing else.

In: an optimizer as the settings build it, and a saved state dict of one. Out: the optimizer with the saved tensors. It keeps the
hyperparameters that it was built with: the run's settings determine them all, and a foreign file need not be trusted.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load saved state into an optimizer, in the memory formats of its parameters, on which fused optimizers rely.

    Raises:
        ValueError: if it is for other parameters, or for another optimizer.
    """
    built = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in built]:
        raise ValueError("it is for other parameters")
    shaped, counts = ({"momentum_buffer"}, set()) if isinstance(optimizer, SGD) else ({"exp_avg", "exp_avg_sq"}, {"step"})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in saved["state"].items():
        if set(entries) != shaped | counts:
            raise ValueError(f"it should hold {', '.join(sorted(shaped | counts))} for each parameter")
        for key, entry in entries.items():
            wanted = parameters[index] if key in shaped else torch.tensor(0.0)
            if not isinstance(entry, Tensor) or (entry.shape, entry.dtype) != (wanted.shape, wanted.dtype):
                raise ValueError(f"its {key} does not fit its parameter")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": built})
    _complete(optimizer)
    _match_formats(optimizer)


def _complete(optimizer: Optimizer) -> None:
    """Start missing momenta at zero if others are there: SGD takes all or none, and starts from zeros. Frozen parameters have none."""
    if isinstance(optimizer, SGD) and optimizer.state:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad):
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter, requires_grad=False))


def _match_formats(optimizer: Optimizer) -> None:
    for parameter, entries in optimizer.state.items():
        for key, entry in entries.items():
            if isinstance(entry, Tensor) and entry.shape == parameter.shape:
                entries[key] = in_format_of(parameter, entry)


def in_format_of(parameter: Tensor, entry: Tensor) -> Tensor:
    """Return an entry of a parameter's shape in its memory format, which fused optimizers require."""
    return entry if entry.stride() == parameter.stride() else torch.empty_like(parameter, dtype=entry.dtype).copy_(entry)
