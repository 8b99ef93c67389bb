"""LeNet-300-100 and LeNet-5, the two networks on which methods of weight pruning are compared.

In: an input shape (C, H, W) and a number of classes. Out: a module from images (N, C, H, W) to logits (N, num_classes).

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998, in the form that Caffe gave them and
that Han et al., 2015 (arXiv 1506.02626) and Zhang et al., 2018 (ADMM, arXiv 1804.03294) prune. Initialised by Caffe's filler.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.zoo.initialization import caffe_xavier_


class LeNet300100(nn.Module):
    """Hidden layers of 300 and 100 units; 266,200 weights and 410 biases for 10 classes of 1x28x28 images."""

    smallest: ClassVar[int] = 1

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.fc1 = nn.Linear(channels * height * width, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)
        caffe_xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


class LeNet5(nn.Module):
    """Two 5x5 convolutions of 20 and 50 filters, 500 hidden units; 430,500 weights and 580 biases for 10 classes of 1x28x28 images.

    With a ReLU after each convolution, as in the ADMM paper's code; Caffe's own file has one after `fc1` only.
    """

    smallest: ClassVar[int] = 16

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * _pooled(height) * _pooled(width), 500)
        self.fc2 = nn.Linear(500, num_classes)
        caffe_xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = self.fc2(x)
        return x


def _pooled(side: int) -> int:
    """Side of the last feature map: an unpadded 5x5 convolution and a 2x2 pooling, twice."""
    return ((side - 4) // 2 - 4) // 2
