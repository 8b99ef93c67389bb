"""A network as a user may bring it: residual block, concatenation, depthwise conv, squeeze-excite, and imports from its own folder."""

import torch
from blocks import Separable
from torch import Tensor, nn


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(channels, channels, 3), nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm(self.body(x))).relu()


class Branches(nn.Module):
    """Two views of the image side by side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.narrow = conv_bn(in_channels, out_channels // 2, 1, stride=2)
        self.wide = conv_bn(in_channels, out_channels - out_channels // 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x), self.wide(x)], dim=1)


class Net(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, int, int], width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = conv_bn(input_shape[0], width, 3)
        self.residual = Residual(width)
        self.branches = Branches(width, 2 * width)
        self.separable = Separable(2 * width)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual(self.stem(x))
        x = self.separable(self.branches(x))
        return self.head(x)
