"""Residual networks: those for CIFAR (3x3 stem, three stages) and those for ImageNet (7x7 stem, four stages).

In: an input shape (C, H, W) and a number of classes. Out: a module from images (N, C, H, W) to logits (N, num_classes).

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2015, arXiv 1512.03385: a block computes relu(F(x) + x), eq. 1;
where F changes the shape, x goes through a 1x1 convolution and BatchNorm first, eq. 2 (option B; the paper's CIFAR networks pad with zeros
instead, option A, which has 2,752 fewer parameters). Initialised as in torchvision: `he_normal_`, and the classifier as torch does.

Images may have any size that leaves more than one pixel to every stride.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.zoo.initialization import he_normal_


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: (N, in_channels, H, W) to (N, width, H/stride, W/stride)."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the input to the output of the convolutions and apply ReLU: relu(F(x) + x)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return F.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution: (N, in_channels, H, W) to (N, 4 * width, H/stride, W/stride).

    The stride sits on the 3x3 convolution, as in torchvision (the paper has it on the first 1x1).
    """

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the input to the output of the convolutions and apply ReLU: relu(F(x) + x)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return F.relu(x + shortcut)


class ResNet(nn.Module):
    """Stem, stages of residual blocks `layer1`, `layer2`, ..., global average pooling, one linear layer.

    A subclass says how many blocks each stage has; these defaults are the paper's CIFAR network, section 4.2.
    """

    smallest: ClassVar[int] = 3
    imagenet_stem: ClassVar[bool] = False
    block: ClassVar[type[BasicBlock] | type[Bottleneck]] = BasicBlock
    blocks: ClassVar[tuple[int, ...]]
    widths: ClassVar[tuple[int, ...]] = (16, 32, 64)

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels = self.widths[0]
        if self.imagenet_stem:
            self.conv1 = nn.Conv2d(input_shape[0], channels, kernel_size=7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(input_shape[0], channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for number, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            stage = nn.Sequential()
            for index in range(count):
                stage.append(self.block(channels, width, stride=2 if number > 1 and index == 0 else 1))
                channels = width * self.block.expansion
            self.add_module(f"layer{number}", stage)
        self.fc = nn.Linear(channels, num_classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet_stem:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for number in range(1, len(self.blocks) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        x = self.fc(x)
        return x


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet20(ResNet):
    """6 * 3 + 2 layers; 272,474 parameters for 10 classes of 3-channel images."""

    blocks = (3, 3, 3)


class ResNet32(ResNet):
    """6 * 5 + 2 layers; 466,906 parameters for 10 classes of 3-channel images."""

    blocks = (5, 5, 5)


class ResNet44(ResNet):
    """6 * 7 + 2 layers; 661,338 parameters for 10 classes of 3-channel images."""

    blocks = (7, 7, 7)


class ResNet56(ResNet):
    """6 * 9 + 2 layers; 855,770 parameters for 10 classes of 3-channel images."""

    blocks = (9, 9, 9)


class ResNet110(ResNet):
    """6 * 18 + 2 layers; 1,730,714 parameters for 10 classes of 3-channel images."""

    blocks = (18, 18, 18)


class ResNet50Cifar(ResNet):
    """The "ResNet-50" of PruneTrain's CIFAR experiments: (50 - 2) / 6 = 8 bottlenecks per stage.

    776,794 parameters for 10 classes of 3-channel images. Lym et al., SC'19, arXiv 1901.09290.
    """

    block = Bottleneck
    blocks = (8, 8, 8)


class ImageNetResNet(ResNet):
    """The paper's table 1: 7x7 stem with stride 2, 3x3 max pooling with stride 2, four stages; torchvision's layout."""

    smallest = 17
    imagenet_stem = True
    widths = (64, 128, 256, 512)


class ResNet18(ImageNetResNet):
    """11,689,512 parameters for 1,000 classes of 3-channel images."""

    blocks = (2, 2, 2, 2)


class ResNet34(ImageNetResNet):
    """21,797,672 parameters for 1,000 classes of 3-channel images."""

    blocks = (3, 4, 6, 3)


class ResNet50(ImageNetResNet):
    """25,557,032 parameters for 1,000 classes of 3-channel images."""

    block = Bottleneck
    blocks = (3, 4, 6, 3)


class ResNet18Cifar(ResNet18):
    """ResNet-18's stages after a 3x3 stem without pooling, for 32x32 images; 11,173,962 parameters for 10 classes of 3-channel images."""

    smallest = 5
    imagenet_stem = False
