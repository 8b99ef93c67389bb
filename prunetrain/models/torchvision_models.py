"""`torchvision:NAME`: the classification networks of torchvision.

In: a name, an image shape of 3 channels, a number of classes. Out: torchvision's own module without pretrained weights.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision import models

from prunetrain import zoo
from prunetrain.errors import ConfigError, unknown_name
from prunetrain.models.constructing import construct, made_class, no_such_argument, optional, parameters_of
from prunetrain.zoo import ImageShape

_CHANNELS = 3
_NOT_HERE = ("weights", "pretrained")  # would download


def names() -> list[str]:
    """The names of torchvision's classification networks, sorted."""
    return sorted(models.list_models(module=models))


def build(spec: str, *, input_shape: ImageShape, num_classes: int, given: Mapping[str, Any]) -> nn.Module:
    """A network of torchvision.

    Args:
        spec: `torchvision:NAME`.
        input_shape: (3, H, W).
        num_classes: length of the logits.
        given: further arguments of the constructor.

    Raises:
        ConfigError: for an unknown name, an argument that the constructor does not take, or images that it cannot take.
    """
    name = spec.partition(":")[2]
    if name not in names():
        raise ConfigError(unknown_name("torchvision model", name, names()))
    if input_shape[0] != _CHANNELS:
        instead = name if name in zoo.names() else "resnet20"
        raise ConfigError(
            f"{spec} takes images of 3 channels, not of {input_shape[0]}: choose a network of the zoo such as {instead}, timm:NAME, "
            "a file of your own, or images in colour"
        )
    for word in _NOT_HERE:
        if word in given:
            raise ConfigError(f"{spec} takes no --model-arg {word}: give a file of weights with --weights FILE")
    builder = models.get_model_builder(name)
    known = parameters_of(made_class(builder) or builder)
    takes = [word for word in optional(known) if word not in ("weights", "progress")]
    for word in given:
        if word not in known:
            raise no_such_argument(spec, word, takes)
    arguments = {"num_classes": num_classes, **_sizes(spec, known, input_shape), **given}
    if "init_weights" in known:
        arguments.setdefault("init_weights", True)  # the present default of all of them; two warn when it is left out
    return construct(spec, builder, {"weights": None, **arguments}, takes=takes)


def _sizes(spec: str, known: Mapping[str, Any], input_shape: ImageShape) -> dict[str, Any]:
    """The arguments by which a network learns the size of its images, pixels; convolutional ones have none."""
    height, width = input_shape[1:]
    if "image_size" in known:
        if height != width:
            raise ConfigError(f"{spec} takes square images, not {height}x{width}: choose another network or square images")
        return {"image_size": height}
    return {"input_size": (height, width)} if "input_size" in known else {}
