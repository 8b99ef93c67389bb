"""Random images for benchmarks: nothing to download, nothing to learn.

In: an image size. Out: an `InMemory` source of 3 x size x size noise. There are 1,024 training images, or fewer if these would take over
256 MiB (from 296 pixels on), and a quarter as many for validation; 10 classes up to 64 pixels as in CIFAR, 1,000 above as in ImageNet.
"""

import torch

from prunetrain.config import TrainConfig
from prunetrain.training.data.augmentation import Augmentation
from prunetrain.training.data.base import SMALL_SIDE, Split, Statistics
from prunetrain.training.data.holding_out import hold_out
from prunetrain.training.data.memory import InMemory

MAX_TRAIN, MIN_TRAIN, MAX_BYTES = 1024, 64, 2**28
UNIFORM = Statistics(mean=(0.5,) * 3, std=(0.2898,) * 3)  # of uniformly distributed levels 0..255


def load(config: TrainConfig, device: torch.device) -> InMemory:
    """Make the noise, from a generator seeded with `seed`."""
    side = config.image_size
    generator = torch.Generator().manual_seed(config.seed)
    num_train = max(MIN_TRAIN, min(MAX_TRAIN, MAX_BYTES // (3 * side * side)))
    num_classes = 10 if side <= SMALL_SIDE else 1000
    train, val = (
        Split(
            torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
            torch.randint(0, num_classes, (count,), generator=generator),
        )
        for count in (num_train, num_train // 4)
    )
    if config.val_split:
        train, val = hold_out(train, config.val_split)
    return InMemory(
        config,
        device,
        train,
        val,
        class_names=[str(label) for label in range(num_classes)],
        statistics=UNIFORM,
        augmentation=Augmentation.natural(side, side),
    )
