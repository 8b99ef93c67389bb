"""The data sets that `--dataset` can name.

In: a `TrainConfig` and a device. Out: a `DataSource`, which yields normalised batches on that device.
"""

from collections.abc import Callable

import torch

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError, DataError, unknown_name
from prunetrain.training.data import fake, folder, npz, public
from prunetrain.training.data.base import Batch, DataSource, Say, ignore_line

__all__ = ["DATASETS", "Batch", "DataSource", "load_data"]

_LOADERS: dict[str, Callable[[TrainConfig, torch.device], DataSource]] = {
    "digits": npz.load_digits,
    **{name: public.load for name in public.PUBLIC_SETS},
    "folder": folder.load,
    "npz": npz.load,
    "fake": fake.load,
}

DATASETS: tuple[str, ...] = tuple(_LOADERS)


def load_data(config: TrainConfig, device: torch.device, say: Say = ignore_line) -> DataSource:
    """Load the data set that `config` names; `say` is called with lines that the user should see.

    Raises:
        ConfigError: when there is no data set of this name, or it cannot be cached.
        DataError: when it is absent, damaged or unusable, or smaller than one batch; the message says what to do.
    """
    if config.dataset not in _LOADERS:
        raise ConfigError(unknown_name("dataset", config.dataset, DATASETS))
    if config.cache and config.dataset != "folder":
        raise ConfigError(f"--cache is for --dataset folder: {config.dataset} is in memory already")
    source = folder.load(config, device, say) if config.dataset == "folder" else _LOADERS[config.dataset](config, device)
    if config.batch_size > source.num_train:
        raise DataError(
            f"{config.dataset} has {source.num_train:,} training images, too few for a batch of {config.batch_size:,}:"
            f" pass --batch-size {source.num_train} or less"
        )
    return source
