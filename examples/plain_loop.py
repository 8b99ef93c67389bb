"""A plain training loop that makes its network smaller while it trains: five of its lines are for prunetrain.

    python examples/plain_loop.py

Trains a small residual network on the digits that ship with prunetrain, in well under a minute on one CPU core. After each cut, the smaller
network is written to `generated_nets/plain_loop/`, with its weights beside it. Judge accuracy at the end: while the learning rate is high,
BatchNorm's running statistics, which eval mode uses, lag behind.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunetrain
from prunetrain.training.data.npz import DIGITS, read


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class Net(nn.Module):
    """8x8 images of one channel, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), Block(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.blocks(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    return 100 * float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Train, cut and print the results."""
    parser = argparse.ArgumentParser(description="Train a small network on digits and make it smaller while it trains.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--interval", type=int, default=5, help="epochs between two cuts")
    parser.add_argument("--output", type=Path, default=Path("generated_nets/plain_loop"), help="folder for the networks")
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = (((split.images / 255 - 0.3) / 0.38, split.labels) for split in read(DIGITS))
    model: nn.Module = Net()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    pruner = prunetrain.PruneTrain(model, optimizer, example_input=train[0][:1], penalty_ratio=0.8)

    for epoch in range(1, options.epochs + 1):
        model.train()
        for chosen in torch.randperm(len(train[0])).split(32):
            loss = F.cross_entropy(model(train[0][chosen]), train[1][chosen])
            loss.backward()
            pruner.regularize(loss)
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
        if epoch % options.interval == 0:
            before = top1(model, *test)
            step = pruner.reconfigure(options.output / f"epoch_{epoch:03d}.py")
            model, optimizer = step.model, step.optimizer
            channels, macs = step.change.channels, step.change.macs
            print(f"epoch {epoch}: top-1 {before:.2f}% -> {top1(model, *test):.2f}%, {channels[0]} -> {channels[1]} channels,", end=" ")
            print(f"{macs[0]:,} -> {macs[1]:,} MACs: {step.path}")


if __name__ == "__main__":
    main()
