"""Blocks that my_net.py imports from its own folder."""

from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Scales each channel by what the whole image says of it."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(channels, reduced, 1), nn.ReLU(), nn.Conv2d(reduced, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.pool(x))


class Separable(nn.Module):
    """Depthwise conv, squeeze-excite, pointwise conv, and the way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.excite = SqueezeExcite(channels, channels // 4)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.excite(self.act(self.bn1(self.depthwise(x))))
        return self.act(self.bn2(self.pointwise(out)) + x)
