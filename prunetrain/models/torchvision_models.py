"""`torchvision:NAME`: the classification networks of torchvision.

In: a name, an image shape of 3 channels, a number of classes. Out: torchvision's own module, newly initialised; and the weights that
torchvision has for it.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision import models

from prunetrain import zoo
from prunetrain.errors import ConfigError, unknown_name
from prunetrain.models.constructing import (
    Pretrained,
    construct,
    fetch_pretrained,
    no_such_argument,
    optional_parameters,
    parameters_of,
    returned_class,
)
from prunetrain.zoo import ImageShape

_CHANNELS = 3
_RESERVED_ARGUMENTS = ("weights", "pretrained")  # given with --weights


def names() -> list[str]:
    """Return the names of torchvision's classification networks, sorted."""
    return sorted(models.list_models(module=models))


def build(spec: str, *, input_shape: ImageShape, num_classes: int, given: Mapping[str, Any]) -> nn.Module:
    """Build a network of torchvision.

    Args:
        spec: `torchvision:NAME`.
        input_shape: (3, H, W).
        num_classes: length of the logits.
        given: further arguments of the constructor.

    Raises:
        ConfigError: for an unknown name, an argument that the constructor does not take, or images that it cannot take.
    """
    name = _parse_name(spec)
    if input_shape[0] != _CHANNELS:
        instead = name if name in zoo.names() else "resnet20"
        raise ConfigError(
            f"{spec} takes images of 3 channels, not of {input_shape[0]}: choose a network of the zoo such as {instead}, timm:NAME, "
            "a file of your own, or images in colour (folders without --grey)"
        )
    for word in _RESERVED_ARGUMENTS:
        if word in given:
            raise ConfigError(f"{spec} takes no --model-arg {word}: use --weights pretrained, or --weights FILE")
    builder = models.get_model_builder(name)
    known = parameters_of(returned_class(builder) or builder)
    takes = [word for word in optional_parameters(known) if word not in ("weights", "progress")]
    for word in given:
        if word not in known:
            raise no_such_argument(spec, word, takes)
    arguments = {"num_classes": num_classes, **_sizes(spec, known, input_shape), **given}
    if "init_weights" in known:
        arguments.setdefault("init_weights", True)  # the default of all of them today; two warn without it
    return construct(spec, builder, {"weights": None, **arguments}, takes=takes)


def pretrained(spec: str, input_shape: ImageShape) -> Pretrained:
    """Return torchvision's default weights of a network, trained on ImageNet; they are downloaded once, into torch.hub's folder.

    Raises:
        ConfigError: for an unknown name, and weights that cannot be loaded.
    """
    name = _parse_name(spec)
    best = models.get_model_weights(name).DEFAULT
    network = fetch_pretrained(spec, lambda: models.get_model(name, weights=best))
    statistics = {name: list(getattr(best.transforms(), name)) for name in ("mean", "std")}
    # Two of them were trained with other statistics, and convert from these themselves.
    arguments = {"transform_input": True} if getattr(network, "transform_input", False) else {}
    return Pretrained(network.state_dict(), f"torchvision's {best}", statistics, arguments)


def _parse_name(spec: str) -> str:
    """Return the name in `torchvision:NAME`, if there is such a network."""
    name = spec.partition(":")[2]
    if name not in names():
        raise ConfigError(unknown_name("torchvision model", name, names()))
    return name


def _sizes(spec: str, known: Mapping[str, Any], input_shape: ImageShape) -> dict[str, Any]:
    """The constructor arguments for the image size in pixels; convolutional networks have none."""
    height, width = input_shape[1:]
    if "image_size" in known:
        if height != width:
            raise ConfigError(f"{spec} takes square images, not {height}x{width}: choose another network or square images")
        return {"image_size": height}
    return {"input_size": (height, width)} if "input_size" in known else {}
