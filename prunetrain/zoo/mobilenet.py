"""MobileNet v1: depthwise separable convolutions, in two widths and for two image sizes.

In: an input shape (C, H, W) and a number of classes. Out: a module from images (N, C, H, W) to logits (N, num_classes).

Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications", 2017, arXiv 1704.04861, table 1; the
width multiplier is alpha of section 3.3. The paper does not give the initialisation; it is that of torchvision's MobileNet v2
and PruneTrain's MobileNet v1: `he_normal_` and `narrow_normal_`.

Images may have any size that leaves more than one pixel to every stride.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.zoo.initialization import he_normal_, narrow_normal_

STEM_WIDTH = 32
BLOCKS = (  # output channels and stride of each block
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


class DepthwiseSeparable(nn.Module):
    """A 3x3 filter for each channel, then a 1x1 convolution: (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both convolutions, each with BatchNorm and ReLU."""
        x = F.relu(self.bn1(self.depthwise(x)))
        x = F.relu(self.bn2(self.pointwise(x)))
        return x


class MobileNetV1(nn.Module):
    """3x3 stem, `block1` to `block13`, global average pooling, one linear layer.

    4,231,976 parameters for 1,000 classes of 3-channel images.
    """

    smallest: ClassVar[int] = 17
    width_multiplier: ClassVar[float] = 1.0
    stem_stride: ClassVar[int] = 2

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels = int(STEM_WIDTH * self.width_multiplier)
        self.conv1 = nn.Conv2d(input_shape[0], channels, kernel_size=3, stride=self.stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for number, (width, stride) in enumerate(BLOCKS, start=1):
            out_channels = int(width * self.width_multiplier)
            self.add_module(f"block{number}", DepthwiseSeparable(channels, out_channels, stride))
            channels = out_channels
        self.fc = nn.Linear(channels, num_classes)
        he_normal_(self)
        narrow_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, len(BLOCKS) + 1):
            x = self.get_submodule(f"block{number}")(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        x = self.fc(x)
        return x


class MobileNetV1Width075(MobileNetV1):
    """All widths times 0.75; 2,585,560 parameters for 1,000 classes of 3-channel images."""

    width_multiplier = 0.75


class MobileNetV1Cifar(MobileNetV1):
    """The stem's stride is 1, so that 32x32 pixels end as 2x2; 3,217,226 parameters for 10 classes of 3-channel images."""

    smallest = 9
    stem_stride = 1


class MobileNetV1CifarWidth075(MobileNetV1Cifar):
    """All widths times 0.75; 1,824,250 parameters for 10 classes of 3-channel images."""

    width_multiplier = 0.75
