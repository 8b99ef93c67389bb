"""The settings inside a checkpoint, as settings of this version."""

from dataclasses import replace
from pathlib import Path

from prunetrain.config import TrainConfig, build_config
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.training.checkpoints import Checkpoint


def stored_config(path: Path, checkpoint: Checkpoint) -> TrainConfig:
    """The settings inside a checkpoint, except `download` and `cache`: data is written to the folders that it names only on request.

    Raises:
        CheckpointError: if they cannot be read.
    """
    try:
        return replace(build_config(checkpoint.config), download=False, cache="")
    except ConfigError as error:
        raise CheckpointError(f"{path}: its settings are not readable: {error}") from None
