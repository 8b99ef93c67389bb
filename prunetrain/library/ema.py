"""An average of the weights (EMA, SWA) that goes on with a smaller network.

The average is cut where the trained network is, and takes over what that one absorbed: if its running mean moved by the constant of a
channel that went, the average's moves by as much.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from prunetrain.channels.slicing import Cut
from prunetrain.errors import ConfigError
from prunetrain.library.network import Network
from prunetrain.library.wrapping import unwrap


def copy_inside(ema: nn.Module, network: Network) -> tuple[Network, Callable[[nn.Module], nn.Module]]:
    """The averaged copy of a network.

    Args:
        ema: the copy itself, or a module that has it as `module`, such as `torch.optim.swa_utils.AveragedModel`.
        network: the network that it is a copy of.

    Returns:
        The copy, and a function that puts another in its place and returns what the caller has to go on with.

    Raises:
        ConfigError: if there is no copy of the network.
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
    """The smaller network with averaged weights.

    Args:
        average: the larger network with averaged weights.
        network: the larger network as trained.
        cut: from `network` to the smaller one.
        source: the text of the smaller network's file.
        filename: its name, for tracebacks.
    """
    before, averaged = network.state(), average.state()
    state = {}
    for name, tensor in cut.state.items():
        origin = cut.sources[name]
        trained, own = origin.gather(before[origin.name]), origin.gather(averaged[origin.name])
        absorbed = tensor != trained  # infinities and truth values cannot be subtracted, and absorb nothing
        state[name] = torch.where(absorbed, own + (tensor - trained).to(own), own) if bool(absorbed.any()) else own
    return average.cut(replace(cut, state=state), source, filename).module
