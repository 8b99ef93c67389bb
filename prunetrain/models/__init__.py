"""Where networks come from: all values of `--model`.

In: a name, an image shape (C, H, W), a number of classes and arguments. Out: a module from images (N, C, H, W) to logits (N, num_classes),
newly initialised or with the weights that `--weights` names.

    resnet20                   a network of the zoo
    torchvision:mobilenet_v2   a classification network of torchvision
    timm:resnet26              a network of timm, an optional extra
    nets/my_net.py:Net         a class or function of the user's own file

Each source has a module of its own. Importing this package does not import torch; `build` does.
"""

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prunetrain import zoo
from prunetrain.errors import ConfigError, unknown_name
from prunetrain.zoo import ImageShape

if TYPE_CHECKING:
    from torch import nn

    from prunetrain.models.constructing import Pretrained

PRETRAINED = "pretrained"
"""The value of `--weights` that stands for the library's own weights instead of a file."""

MODEL_FORMATS: Mapping[str, str] = {
    "torchvision:NAME": "a classification network of torchvision, such as torchvision:mobilenet_v2",
    "timm:NAME": "a network of timm, such as timm:resnet26; timm comes with: pip install 'prunetrain[timm]'",
    "FILE.py:NAME": "a class or function of your own file, such as nets/my_net.py:Net; its code runs",
}
"""How to name a network outside the zoo, and what that means."""

_SOURCES = {"torchvision": "torchvision_models", "timm": "timm_models"}  # word before the colon: module of this package
_ZOO = "zoo"
_NAME_LENGTH = 60  # characters; leaves room for the data set and a number


def described() -> dict[str, str]:
    """Return all values of `--model` and what they mean: the networks of the zoo, and how to name others."""
    return {**zoo.described(), **MODEL_FORMATS}


def build(spec: str, *, input_shape: ImageShape, num_classes: int, model_args: Mapping[str, Any] | None = None) -> "nn.Module":
    """Build a new network with newly initialised weights.

    Args:
        spec: the name of a network in the zoo, or one of the `MODEL_FORMATS`. A user's own file is imported.
        input_shape: (C, H, W) of one image.
        num_classes: length of the logits, at least 1.
        model_args: further arguments of the network's constructor; they override those that follow from the data.

    Raises:
        ConfigError: for a network that is unknown or not installed, missing or unknown arguments, images that it cannot take, and a file
            that fails.
    """
    given = dict(model_args or {})
    source, name = _split(spec)
    if source == _ZOO:
        return _build_from_zoo(name, input_shape, num_classes, given)
    if not source.endswith(".py") and source not in _SOURCES:
        raise ConfigError(unknown_name("source of models", source, [*_SOURCES, "FILE.py"]))
    network: nn.Module = _module(source).build(spec, input_shape=input_shape, num_classes=num_classes, given=given)
    return network


def pretrained(spec: str, input_shape: ImageShape) -> "Pretrained":
    """Return the weights that torchvision or timm has for its network; the library may download them.

    Args:
        spec: as for `build`.
        input_shape: (C, H, W) of one image.

    Raises:
        ConfigError: for a network of another source, and weights that do not exist or cannot be loaded.
    """
    source, name = _split(spec)
    if source not in _SOURCES:
        from prunetrain.models import torchvision_models

        others = f"torchvision:{name}" if name in torchvision_models.names() else "torchvision:NAME, timm:NAME"
        raise ConfigError(f"{spec} has no pretrained weights: use {others}, or --weights FILE")
    known: Pretrained = _module(source).pretrained(spec, input_shape)
    return known


def build_with_weights(
    spec: str,
    weights: "str | Pretrained",
    *,
    input_shape: ImageShape,
    num_classes: int,
    model_args: Mapping[str, Any] | None = None,
    seed: int,
    say: Callable[[str], object],
) -> "nn.Module":
    """Build a new network as `build` does, and load the given weights into it.

    Args:
        spec: as for `build`.
        weights: the path of a file, "" for none, or the result of `pretrained`.
        input_shape: as for `build`.
        num_classes: as for `build`; a head with another number of classes is newly initialised.
        model_args: as for `build`.
        seed: seed of the newly initialised weights.
        say: called with lines on which weights were loaded, and which were left out or newly initialised.

    Raises:
        ConfigError: as for `build`; and for weights that cannot be read, or do not fit the network.
    """
    import torch

    from prunetrain.models.weights import copy_weights, load_weights

    torch.manual_seed(seed)
    given = {**({} if isinstance(weights, str) else weights.arguments), **(model_args or {})}
    network = build(spec, input_shape=input_shape, num_classes=num_classes, model_args=given)
    lines: list[str] = []
    if not isinstance(weights, str):
        lines = copy_weights(network, weights.tensors, weights.title).lines(weights.title)
    elif weights:
        lines = load_weights(network, Path(weights)).lines()
    for line in lines:
        say(line)
    return network


def _module(source: str) -> ModuleType:
    return import_module(f"{__name__}.{_SOURCES.get(source, 'user_file')}")


def short_name(spec: str) -> str:
    """Return the network's name in the names of runs: without its source, in letters, digits, dots, dashes and underscores."""
    source, name = _split(spec)
    words = name or source.replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words.removesuffix(".py")).strip("._-")[:_NAME_LENGTH] or "network"


def _split(spec: str) -> tuple[str, str]:
    """Split a name: `torchvision:resnet18` is ("torchvision", "resnet18"), `a.py:Net` ("a.py", "Net"), `resnet20` ("zoo", "resnet20")."""
    if spec.endswith(".py"):
        return spec, ""
    path, _, name = spec.rpartition(":")
    if path.endswith(".py"):
        return path, name
    if ":" not in spec:
        return _ZOO, spec
    source, _, name = spec.partition(":")
    return source, name


def _build_from_zoo(name: str, input_shape: ImageShape, num_classes: int, given: Mapping[str, Any]) -> "nn.Module":
    if name not in zoo.names():
        from prunetrain.models import torchvision_models

        if name in torchvision_models.names():
            raise ConfigError(f"unknown model {name!r}: did you mean torchvision:{name}?")
    elif given:
        raise ConfigError(f"{name} is a network of the zoo and takes no --model-arg: leave {next(iter(given))} out")
    return zoo.build(name, input_shape=input_shape, num_classes=num_classes)
