"""Carry an average of the weights (EMA, SWA) over to a smaller network.

The average is cut where the trained network is, and absorbs the same constants: if the constant of a removed channel shifted the trained
network's running mean, the average's running mean shifts by the same amount.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from prunetrain.channels.slicing import Cut
from prunetrain.errors import ConfigError
from prunetrain.library.network import Network
from prunetrain.library.wrapping import unwrap


def find_average(ema: nn.Module, network: Network) -> tuple[Network, Callable[[nn.Module], nn.Module]]:
    """Find the averaged copy of a network.

    Args:
        ema: the copy itself, or a module that has it as `module`, such as `torch.optim.swa_utils.AveragedModel`.
        network: the network that it is a copy of.

    Returns:
        The copy, and a function that replaces it and returns the module that the caller must use from then on.

    Raises:
        ConfigError: if `ema` holds no copy of the network.
    """
    names = [name for name, _ in network.module.named_parameters()]
    holder, (inner, _) = None, unwrap(ema)
    while [name for name, _ in inner.named_parameters()] != names:
        if not isinstance(getattr(inner, "module", None), nn.Module):
            raise ConfigError(
                f"the ema, a {type(ema).__name__}, holds no copy of the model: make it from the model that the pruner was given"
            )
        holder, (inner, _) = inner, unwrap(inner.get_submodule("module"))

    def put(smaller: nn.Module) -> nn.Module:
        if holder is None:
            return smaller
        holder.module = smaller
        return ema

    return replace(network, module=inner), put


def cut_average(average: Network, network: Network, cut: Cut, source: str, filename: str) -> nn.Module:
    """Return the smaller network with averaged weights.

    Args:
        average: the larger network with averaged weights.
        network: the larger network with trained weights.
        cut: from `network` to the smaller one.
        source: the text of the smaller network's file.
        filename: the name of that file, for tracebacks.
    """
    before, averaged = network.state(), average.state()
    state = {}
    for name, tensor in cut.state.items():
        origin = cut.sources[name]
        trained, own = origin.gather(before[origin.name]), origin.gather(averaged[origin.name])
        absorbed = tensor != trained  # infinities and booleans cannot be subtracted, and absorb nothing
        state[name] = torch.where(absorbed, own + (tensor - trained).to(own), own) if bool(absorbed.any()) else own
    return average.cut(replace(cut, state=state), source, filename).module
