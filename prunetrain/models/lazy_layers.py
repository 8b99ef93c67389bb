"""Initialise lazy layers (`nn.LazyConv2d` and the like), which take their sizes from the first batch.

In: a network and an image shape. Out: the same network with all of its weights.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunetrain.errors import ConfigError
from prunetrain.models.constructing import describe_error
from prunetrain.zoo import ImageShape


def initialise_lazy_layers(spec: str, network: nn.Module, *, input_shape: ImageShape, folder: Path) -> nn.Module:
    """Return the network after one batch in eval mode has initialised its lazy layers; the modes of its modules do not change.

    Args:
        spec: the user's name for the network.
        network: changed in place if it has lazy layers, else not run.
        input_shape: (C, H, W) of one image.
        folder: the folder of the user's own code, so that an error names a line of it.

    Raises:
        ConfigError: if the network fails with these images.
    """
    if not any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        return network
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *input_shape))
    except Exception as error:  # whatever the user's own code raises
        shape = "x".join(map(str, input_shape))
        raise ConfigError(
            f"{spec} has lazy layers and fails with its first images, of shape {shape}: {describe_error(error, folder)}"
        ) from error
    for module, training in modes.items():
        module.training = training
    return network
