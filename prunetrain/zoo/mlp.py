"""The fully connected network of the study that compares weight and unit pruning.

In: an input shape (C, H, W) and a number of classes. Out: a module from images (N, C, H, W) to logits (N, num_classes).

for.ai's pruning challenge: hidden layers relu(x W) of 1000, 1000, 500 and 200 units and a linear classifier, all without biases, so that a
unit without incoming weights is exactly zero. The challenge leaves the initialisation open; here it is He et al., 2015, arXiv 1502.01852,
eq. 10: N(0, 2 / fan_in), and for the classifier, which no ReLU follows, N(0, 1 / fan_in).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Four hidden layers and a classifier, no biases; 2,386,000 weights for 10 classes of 1x28x28 images."""

    smallest: ClassVar[int] = 1

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.fc1 = nn.Linear(channels * height * width, 1000, bias=False)
        self.fc2 = nn.Linear(1000, 1000, bias=False)
        self.fc3 = nn.Linear(1000, 500, bias=False)
        self.fc4 = nn.Linear(500, 200, bias=False)
        self.fc5 = nn.Linear(200, num_classes, bias=False)
        for layer in (self.fc1, self.fc2, self.fc3, self.fc4):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.fc5.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = F.relu(self.fc3(x))
        x = F.relu(self.fc4(x))
        x = self.fc5(x)
        return x
