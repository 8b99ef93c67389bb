"""VGG networks with BatchNorm: for CIFAR with one linear layer, for ImageNet with three.

In: an input shape (C, H, W) and a number of classes. Out: a module from images (N, C, H, W) to logits (N, num_classes).

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014, arXiv 1409.1556, table 1. BatchNorm
after every convolution as in torchvision's `vgg*_bn`. The CIFAR networks have no biases before BatchNorm and one linear layer on 512
features, as in PruneTrain (arXiv 1901.09290) and network slimming (Liu et al., 2017, arXiv 1708.06519).
Convolutions are initialised by `he_normal_`, linear layers as torch does unless a class says otherwise.

Five poolings halve the sides, so images must have at least 32x32 pixels.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.zoo.initialization import he_normal_, narrow_normal_

WIDTHS = (64, 128, 256, 512, 512)


class Stage(nn.Module):
    """Convolutions of one width and a pooling: (N, in_channels, H, W) to (N, width, H // 2, W // 2)."""

    def __init__(self, in_channels: int, width: int, *, convs: int, bias: bool) -> None:
        super().__init__()
        self.convs = convs
        for number in range(1, convs + 1):
            self.add_module(f"conv{number}", nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=bias))
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
            in_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Apply each convolution with BatchNorm and ReLU, then pool."""
        for number in range(1, self.convs + 1):
            x = self.get_submodule(f"conv{number}")(x)
            x = F.relu(self.get_submodule(f"bn{number}")(x))
        x = F.max_pool2d(x, 2)
        return x


class VGG(nn.Module):
    """The CIFAR networks: `stage1` to `stage5`, then one linear layer on the output of the last pooling, 512x1x1 at 32x32 pixels.

    A subclass says how many convolutions each stage has.
    """

    smallest: ClassVar[int] = 32
    convs: ClassVar[tuple[int, int, int, int, int]]
    conv_bias: ClassVar[bool] = False

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels = input_shape[0]
        for number, (convs, width) in enumerate(zip(self.convs, WIDTHS, strict=True), start=1):
            self.add_module(f"stage{number}", Stage(channels, width, convs=convs, bias=self.conv_bias))
            channels = width
        self.add_classifier(input_shape, num_classes)
        he_normal_(self)

    def add_classifier(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        """Define the layers after the stages."""
        self.fc = nn.Linear(WIDTHS[-1] * (input_shape[1] // 32) * (input_shape[2] // 32), num_classes)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of the last stage's output (N, 512, H // 32, W // 32)."""
        x = torch.flatten(x, 1)
        x = self.fc(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        for number in range(1, len(self.convs) + 1):
            x = self.get_submodule(f"stage{number}")(x)
        return self.classify(x)


class VGG8(VGG):
    """One convolution per stage, PruneTrain's smallest VGG; 3,917,386 parameters for 10 classes of 3x32x32 images.

    PruneTrain's published code leaves out the ReLUs of this one network; they are here.
    """

    convs = (1, 1, 1, 1, 1)


class VGG11(VGG):
    """Configuration A; 9,228,362 parameters for 10 classes of 3x32x32 images."""

    convs = (1, 1, 2, 2, 2)


class VGG13(VGG):
    """Configuration B; 9,413,066 parameters for 10 classes of 3x32x32 images."""

    convs = (2, 2, 2, 2, 2)


class VGG16(VGG):
    """Configuration D; 14,724,042 parameters for 10 classes of 3x32x32 images."""

    convs = (2, 2, 3, 3, 3)


class VGG19(VGG):
    """Configuration E; 20,035,018 parameters for 10 classes of 3x32x32 images."""

    convs = (2, 2, 4, 4, 4)


class VGG16BN(VGG):
    """Configuration D for ImageNet, torchvision's `vgg16_bn`; 138,365,992 parameters for 1,000 classes of 3-channel images.

    Convolutions with biases, pooling to 7x7 whatever the image's size, three linear layers initialised by `narrow_normal_`, dropout 0.5.
    """

    convs = (2, 2, 3, 3, 3)
    conv_bias = True

    def add_classifier(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        """Define the layers after the stages."""
        self.fc1 = nn.Linear(WIDTHS[-1] * 7 * 7, 4096)
        self.fc2 = nn.Linear(4096, 4096)
        self.fc3 = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(0.5)
        narrow_normal_(self)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of the last stage's output (N, 512, H // 32, W // 32)."""
        x = torch.flatten(F.adaptive_avg_pool2d(x, 7), 1)
        x = self.dropout(F.relu(self.fc1(x)))
        x = self.dropout(F.relu(self.fc2(x)))
        x = self.fc3(x)
        return x
