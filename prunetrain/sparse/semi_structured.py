"""Linear layers with 2:4 sparsity on a GPU that supports it (NVIDIA, compute capability 8.0 and later), for inference.

In: a network on such a GPU whose weights follow the 2:4 pattern (method "2:4"). Out: a copy in half precision whose layers are torch's
semi-structured tensors.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from prunetrain.errors import ConfigError

_MIN_CAPABILITY = (8, 0)
_TILE = 64  # sides of a weight must be multiples of this, which suits every torch backend in half precision


def check_device(device: torch.device) -> None:
    """Refuse devices that cannot compute with 2:4 sparsity.

    Raises:
        ConfigError: for anything but a GPU of capability 8.0 or later.
    """
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip:
        raise ConfigError(
            f"2:4 layers need an NVIDIA GPU of compute capability 8.0 or later, but the network is on {device}: use --device cuda"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        raise ConfigError(f"2:4 layers need compute capability 8.0 or later, but {torch.cuda.get_device_name(device)} has {capability}")


def follows_two_of_four(weight: Tensor) -> bool:
    """Whether at least two of every four consecutive numbers in a row are zero, for a weight (out, in)."""
    if weight.dim() != 2 or weight.shape[1] % 4:
        return False
    return bool((weight.reshape(-1, 4) == 0).sum(1).ge(2).all())


def with_semi_structured_layers(model: nn.Module, dtype: torch.dtype = torch.float16) -> nn.Module:
    """Return a copy of a network in which linear layers that follow the pattern, with sides of multiples of 64, are semi-structured.

    Raises:
        ConfigError: if the network is not on a suitable GPU, or no layer follows the pattern.
    """
    check_device(next(model.parameters()).device)
    model = deepcopy(model).eval().to(dtype)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and _fits(layer.weight)]
    if not layers:
        raise ConfigError("no linear layer follows the 2:4 pattern with sides of multiples of 64: prune with method 2:4 first")
    for layer in layers:
        layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
    return model


def _fits(weight: Tensor) -> bool:
    return all(side % _TILE == 0 for side in weight.shape) and follows_two_of_four(weight)
