"""A network whose first layer and scale are not to be trained, and which blurs with a filter that is fixed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Frozen(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, kernel_size=3, padding=1).requires_grad_(False)
        self.conv = nn.Conv2d(8, 32, kernel_size=3, padding=1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 32).view(32, 1, 1), requires_grad=False)
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("blur", (line[:, None] * line).repeat(32, 1, 1, 1))
        self.fc = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv(F.relu(self.stem(images)))) * self.scale
        x = F.conv2d(x, self.get_buffer("blur"), stride=2, padding=1, groups=32)
        return self.fc(x.flatten(1))


class HalfFrozen(Frozen):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv.bias.requires_grad_(False)


def all_frozen(num_classes: int) -> nn.Module:
    return Frozen(num_classes).requires_grad_(False)
