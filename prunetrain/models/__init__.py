"""Where networks come from: all that `--model` may say.

In: a word, an image shape (C, H, W), a number of classes and arguments. Out: a freshly initialised module from images (N, C, H, W) to
logits (N, num_classes).

    resnet20                   a network of the zoo
    torchvision:mobilenet_v2   a classification network of torchvision
    timm:resnet26              one of timm, an optional extra
    nets/my_net.py:Net         a class or function of a person's own file

One file holds one source. Importing this package imports no torch; `build` does.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunetrain import zoo
from prunetrain.errors import ConfigError, unknown_name
from prunetrain.zoo import ImageShape

if TYPE_CHECKING:
    from torch import nn

SPELLINGS: Mapping[str, str] = {
    "torchvision:NAME": "a classification network of torchvision, such as torchvision:mobilenet_v2",
    "timm:NAME": "a network of timm, such as timm:resnet26; timm comes with: pip install 'prunetrain[timm]'",
    "FILE.py:NAME": "a class or function of your own file, such as nets/my_net.py:Net; its code runs",
}
"""How a network outside the zoo is written, and what it is."""

_SOURCES = {"torchvision": "torchvision_models", "timm": "timm_models"}  # word before the colon: module of this package
_ZOO = "zoo"
_NAME_LENGTH = 60  # characters; leaves room for the data set and a number


def described() -> dict[str, str]:
    """All that `--model` may say, and what it is: the networks of the zoo, and the ways to others."""
    return {**zoo.described(), **SPELLINGS}


def build(spec: str, *, input_shape: ImageShape, num_classes: int, model_args: Mapping[str, Any] | None = None) -> "nn.Module":
    """A new network with freshly drawn weights.

    Args:
        spec: one of `names()`, or one of the `SPELLINGS`. A person's own file is imported.
        input_shape: (C, H, W) of one image.
        num_classes: length of the logits, at least 1.
        model_args: further arguments of the network's constructor; they go over those that follow from the data.

    Raises:
        ConfigError: for a network that nobody knows or that is not installed, arguments that its constructor lacks or does not take, images
            that it cannot take, and a file that does not work.
    """
    given = dict(model_args or {})
    source, name = _split(spec)
    if source == _ZOO:
        return _of_zoo(name, input_shape, num_classes, given)
    if not source.endswith(".py") and source not in _SOURCES:
        raise ConfigError(unknown_name("source of models", source, [*_SOURCES, "FILE.py"]))
    module = import_module(f"{__name__}.{_SOURCES.get(source, 'own_file')}")
    network: nn.Module = module.build(spec, input_shape=input_shape, num_classes=num_classes, given=given)
    return network


def short_name(spec: str) -> str:
    """What a run calls the network: its own name without its source, of letters, digits, dots, dashes and underscores."""
    source, name = _split(spec)
    words = name or source.replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words.removesuffix(".py")).strip("._-")[:_NAME_LENGTH] or "network"


def _split(spec: str) -> tuple[str, str]:
    """`torchvision:resnet18` as ("torchvision", "resnet18"), `a.py:Net` as ("a.py", "Net"), `resnet20` as ("zoo", "resnet20")."""
    if spec.endswith(".py"):
        return spec, ""
    path, _, name = spec.rpartition(":")
    if path.endswith(".py"):
        return path, name
    if ":" not in spec:
        return _ZOO, spec
    source, _, name = spec.partition(":")
    return source, name


def _of_zoo(name: str, input_shape: ImageShape, num_classes: int, given: Mapping[str, Any]) -> "nn.Module":
    if name not in zoo.names():
        from prunetrain.models import torchvision_models

        if name in torchvision_models.names():
            raise ConfigError(f"unknown model {name!r}: did you mean torchvision:{name}?")
    elif given:
        raise ConfigError(f"{name} is a network of the zoo and takes no --model-arg: leave {next(iter(given))} out")
    return zoo.build(name, input_shape=input_shape, num_classes=num_classes)
