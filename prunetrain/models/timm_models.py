"""`timm:NAME`: the networks of timm, which is an optional extra.

In: a name, an image shape, a number of classes. Out: timm's own module, newly initialised; and the weights that timm has for it.
"""

import difflib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from prunetrain.errors import ConfigError, unknown_name
from prunetrain.extras import require
from prunetrain.models.constructing import (
    Pretrained,
    construct,
    fetch_pretrained,
    optional_parameters,
    parameters_of,
    returned_class,
)
from prunetrain.zoo import ImageShape

_RESERVED_ARGUMENTS = ("model_name", "pretrained")


def build(spec: str, *, input_shape: ImageShape, num_classes: int, given: Mapping[str, Any]) -> nn.Module:
    """Build a network of timm.

    Args:
        spec: `timm:NAME`; the name may have the tag of a set of weights, which determines the image size of some networks.
        input_shape: (C, H, W) of one image.
        num_classes: length of the logits.
        given: further arguments of `timm.create_model` or of the network's constructor.

    Raises:
        ConfigError: if timm is not installed, for an unknown name, an argument that the network does not take, and images of a wrong size.
    """
    timm, name = _import_timm(spec)
    for word in _RESERVED_ARGUMENTS:
        if word in given:
            raise ConfigError(f"{spec} takes no --model-arg {word}: use --weights pretrained, or --weights FILE")
    parameters = _parameters(timm, name)
    arguments = {
        "pretrained": False,
        "num_classes": num_classes,
        "in_chans": input_shape[0],
        **_size(timm, name, parameters, input_shape),
        **given,
    }
    return construct(spec, lambda **named: timm.create_model(name, **named), arguments, takes=optional_parameters(parameters) or None)


def pretrained(spec: str, input_shape: ImageShape) -> Pretrained:
    """Return timm's weights for a name and its tag, for images of this shape; they are downloaded once, into its hub's folder.

    Raises:
        ConfigError: if timm is not installed, for an unknown name, and weights that do not exist or cannot be loaded.
    """
    timm, name = _import_timm(spec)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ConfigError(f"{spec}: timm has no weights for it: timm.list_pretrained() lists the networks with weights")
    arguments = {"in_chans": input_shape[0], **_size(timm, name, _parameters(timm, name), input_shape)}
    network = fetch_pretrained(spec, lambda: timm.create_model(name, pretrained=True, **arguments))
    title = f"timm's {config.architecture}{'.' if config.tag else ''}{config.tag or ''}"
    return Pretrained(network.state_dict(), title, {"mean": list(config.mean), "std": list(config.std)})


def _import_timm(spec: str) -> tuple[ModuleType, str]:
    """Return timm and the name in `timm:NAME`, if there is such a network."""
    timm = require("timm", spec)
    name = spec.partition(":")[2]
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise ConfigError(unknown_name("timm model", name, near) if near else f"unknown timm model {name!r}: timm.list_models() lists them")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        architecture, _, tag = name.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        raise ConfigError(unknown_name(f"set of weights of timm:{architecture}", tag, tags)) from None
    return timm, name


def _parameters(timm: ModuleType, name: str) -> Mapping[str, Any]:
    """The parameters of the class that makes a network, if timm says which one does."""
    constructor = returned_class(timm.model_entrypoint(name.partition(".")[0]))
    return parameters_of(constructor) if constructor else {}


def _size(timm: ModuleType, name: str, parameters: Mapping[str, Any], input_shape: ImageShape) -> dict[str, Any]:
    """The argument `img_size`, in pixels, for a network that needs it and has another default."""
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        default = tuple(config.input_size[1:])
    elif "img_size" in parameters:
        default = parameters["img_size"].default
    else:
        return {}
    height, width = input_shape[1:]
    size = height if height == width else (height, width)
    return {} if default in (size, (height, width)) else {"img_size": size}
