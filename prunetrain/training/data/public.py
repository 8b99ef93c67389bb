"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, read through torchvision.

In: torchvision's files under `data_dir`, downloaded first with `download`. Out: an `InMemory` source. torchvision is imported on first use.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunetrain.config import TrainConfig
from prunetrain.errors import DataError
from prunetrain.foreign.refusal import one_line
from prunetrain.training.data.augmentation import Augmentation
from prunetrain.training.data.base import Split, Statistics, named_missing
from prunetrain.training.data.holding_out import hold_out
from prunetrain.training.data.memory import InMemory


@dataclass(frozen=True)
class PublicSet:
    """Where torchvision keeps a data set, with the statistics of its training images and how to augment them."""

    torchvision_class: str
    folder: str
    statistics: Statistics
    augmentation: Augmentation


PUBLIC_SETS = {
    "mnist": PublicSet("MNIST", "MNIST/raw", Statistics(mean=(0.1307,), std=(0.3081,)), Augmentation(padding=2, flip=False)),
    "fashion-mnist": PublicSet(
        "FashionMNIST", "FashionMNIST/raw", Statistics(mean=(0.2860,), std=(0.3530,)), Augmentation(padding=2, flip=True)
    ),
    "cifar10": PublicSet(
        "CIFAR10",
        "cifar-10-batches-py",
        Statistics(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        Augmentation(padding=4, flip=True),
    ),
    "cifar100": PublicSet(
        "CIFAR100",
        "cifar-100-python",
        Statistics(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
        Augmentation(padding=4, flip=True),
    ),
}


def load(config: TrainConfig, device: torch.device) -> InMemory:
    """Load the data set that `config` names."""
    from torchvision import datasets

    public = PUBLIC_SETS[config.dataset]
    root = Path(config.data_dir)
    folder = root / public.folder
    torchvision_class = getattr(datasets, public.torchvision_class)
    if config.download:
        _download(torchvision_class, config.dataset, root, folder)
    elif not folder.is_dir():
        raise DataError(f"{config.dataset} is not under {named_missing(root)}: pass --download, or give its folder with --data-dir")
    try:
        train, test = (torchvision_class(root, train=is_train) for is_train in (True, False))
        splits = hold_out(_split(train), config.val_split) if config.val_split else (_split(train), _split(test))
    except Exception as error:  # torchvision's readers raise anything on damaged files
        raise DataError(f"{folder} is incomplete or damaged ({one_line(error)}): delete it and pass --download") from error
    return InMemory(
        config,
        device,
        *splits,
        class_names=[name.split(" - ")[0] for name in train.classes],  # MNIST's are like "7 - seven"
        statistics=public.statistics,
        augmentation=public.augmentation,
    )


def _download(torchvision_class: Any, name: str, root: Path, folder: Path) -> None:
    try:
        torchvision_class(root, download=True)
    except Exception as error:  # whatever the network, the disk and torchvision's reader raise
        raise DataError(
            f"{name} cannot be downloaded to {root} ({one_line(error)}): check the connection, delete {folder} if it exists, and try again"
        ) from error


def _split(dataset: Any) -> Split:
    images = torch.as_tensor(dataset.data)  # (N, 28, 28) in MNIST, (N, 32, 32, 3) in CIFAR
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    if images.dtype != torch.uint8 or not 0 < len(images) == len(labels) or not 0 <= labels.min() <= labels.max() < len(dataset.classes):
        raise ValueError("images and labels do not match")
    return Split(images, labels)
