"""The networks that `--model` names: plain torch modules, built for any image shape and number of classes.

In: a name, an input shape (C, H, W) and a number of classes. Out: a freshly initialised module from images (N, C, H, W) to logits
(N, num_classes), which `torch.fx.symbolic_trace` can trace and whose class name fits the network (`resnet20` is a `ResNet20`).

One file holds one family of networks. Importing this package does not import torch; `build` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from prunetrain.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from torch import nn

ImageShape = tuple[int, int, int]


class Architecture(Protocol):
    """What every class of the zoo offers: the shortest side of an image that it can take, in pixels, and a constructor."""

    smallest: int

    def __call__(self, input_shape: ImageShape, num_classes: int) -> "nn.Module":
        """A new network for images of this shape, whose sides are at least `smallest`."""
        ...


_ARCHITECTURES: dict[str, tuple[str, str, str]] = {  # name: module of this package, class in it, what it is
    "alexnet": ("alexnet", "AlexNet", "AlexNet for CIFAR, 32x32 pixels"),
    "lenet-300-100": ("lenet", "LeNet300100", "300 and 100 hidden units, for MNIST and the like"),
    "lenet5": ("lenet", "LeNet5", "two 5x5 convolutions, for MNIST and the like"),
    "mlp": ("mlp", "MLP", "four hidden layers, for MNIST and the like"),
    "mobilenet-v1": ("mobilenet", "MobileNetV1", "MobileNet for ImageNet"),
    "mobilenet-v1-0.75": ("mobilenet", "MobileNetV1Width075", "MobileNet for ImageNet, widths times 0.75"),
    "mobilenet-v1-cifar": ("mobilenet", "MobileNetV1Cifar", "MobileNet for CIFAR, 32x32 pixels"),
    "mobilenet-v1-cifar-0.75": ("mobilenet", "MobileNetV1CifarWidth075", "MobileNet for CIFAR, widths times 0.75"),
    "resnet18": ("resnet", "ResNet18", "ResNet-18 for ImageNet"),
    "resnet18-cifar": ("resnet", "ResNet18Cifar", "ResNet-18 with a stem for CIFAR"),
    "resnet20": ("resnet", "ResNet20", "ResNet-20 for CIFAR: stages of 16, 32 and 64 channels"),
    "resnet32": ("resnet", "ResNet32", "ResNet-32 for CIFAR"),
    "resnet34": ("resnet", "ResNet34", "ResNet-34 for ImageNet"),
    "resnet44": ("resnet", "ResNet44", "ResNet-44 for CIFAR"),
    "resnet50": ("resnet", "ResNet50", "ResNet-50 for ImageNet"),
    "resnet50-cifar": ("resnet", "ResNet50Cifar", "PruneTrain's ResNet-50 for CIFAR, of bottlenecks"),
    "resnet56": ("resnet", "ResNet56", "ResNet-56 for CIFAR"),
    "resnet110": ("resnet", "ResNet110", "ResNet-110 for CIFAR"),
    "vgg8": ("vgg", "VGG8", "VGG for CIFAR with 5 convolutions, BatchNorm and one linear layer, at least 32x32 pixels"),
    "vgg11": ("vgg", "VGG11", "VGG for CIFAR with 8 convolutions"),
    "vgg13": ("vgg", "VGG13", "VGG for CIFAR with 10 convolutions"),
    "vgg16": ("vgg", "VGG16", "VGG for CIFAR with 13 convolutions"),
    "vgg16-bn": ("vgg", "VGG16BN", "VGG-16 with BatchNorm for ImageNet, torchvision's"),
    "vgg19": ("vgg", "VGG19", "VGG for CIFAR with 16 convolutions"),
}


def names() -> tuple[str, ...]:
    """Return all names that `build` knows, sorted."""
    return tuple(sorted(_ARCHITECTURES))


def described() -> dict[str, str]:
    """Return a description of each network by name, family by family."""
    return {name: what for name, (_, _, what) in _ARCHITECTURES.items()}


def build(name: str, *, input_shape: ImageShape, num_classes: int) -> "nn.Module":
    """Build a network with newly initialised weights.

    Args:
        name: one of `names()`.
        input_shape: (C, H, W) of one image; H and W may differ.
        num_classes: length of the logits, at least 1.

    Raises:
        ConfigError: for a name that the zoo does not know, and for images that the network cannot take.
    """
    if name not in _ARCHITECTURES:
        raise ConfigError(unknown_name("model", name, _ARCHITECTURES))
    if num_classes < 1:
        raise ConfigError(f"{name} needs at least 1 class (got {num_classes})")
    architecture = _load(name)
    _check_shape(name, architecture, input_shape)
    return architecture(input_shape, num_classes)


def _load(name: str) -> Architecture:
    module, class_name, _ = _ARCHITECTURES[name]
    return cast(Architecture, getattr(import_module(f"{__name__}.{module}"), class_name))


def _check_shape(name: str, architecture: Architecture, input_shape: ImageShape) -> None:
    shape = "x".join(map(str, input_shape))
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ConfigError(f"{name} needs images as channels x height x width, each at least 1 (got {shape}): check the data set")
    smallest, side = architecture.smallest, min(input_shape[1:])
    if side < smallest:
        smaller = next(other for other in (f"{name}-cifar", "resnet20", "mlp") if other in _ARCHITECTURES and _load(other).smallest <= side)
        raise ConfigError(f"{name} needs images of at least {smallest}x{smallest} (got {shape}): choose {smaller} or larger images")
