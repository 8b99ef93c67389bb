"""AlexNet for CIFAR-size images.

In: an input shape (C, H, W) and a number of classes. Out: a module from images (N, C, H, W) to logits (N, num_classes).

Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", 2012, with the widths of Krizhevsky,
"One weird trick for parallelizing convolutional neural networks", 2014, arXiv 1404.5997, on one tower and without local response
normalisation, as in torchvision. For 32x32 pixels all kernels are 3x3, the first stride is 2 and pooling is 2x2, the variant most CIFAR-10
code uses. Convolutions are initialised by `he_normal_` as in PruneTrain's AlexNet (the 2012 paper's N(0, 0.01^2) is meant for
11x11 kernels), linear layers as torch does.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.zoo.initialization import he_normal_


class AlexNet(nn.Module):
    """Five convolutions and three linear layers, dropout 0.5; 23,272,266 parameters for 10 classes of 3x32x32 images."""

    smallest: ClassVar[int] = 15

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(64, 192, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(192, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(256 * _pooled(height) * _pooled(width), 4096)
        self.fc2 = nn.Linear(4096, 4096)
        self.fc3 = nn.Linear(4096, num_classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(F.relu(self.conv5(x)), 2)
        x = self.dropout(torch.flatten(x, 1))
        x = self.dropout(F.relu(self.fc1(x)))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


def _pooled(side: int) -> int:
    """Side of the last feature map: the first stride rounds up, the three poolings round down."""
    return (side + 1) // 2 // 8
