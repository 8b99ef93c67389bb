"""Measuring a checkpoint outside of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prunetrain.config import build_config
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.loop import Evaluation, evaluate
from prunetrain.training.state import load_state
from prunetrain.training.stored import stored_config


def evaluate_checkpoint(path: Path, given: dict[str, Any]) -> Evaluation:
    """Loss and accuracy of a checkpoint on validation images.

    Args:
        path: the checkpoint.
        given: settings that differ from those inside it, such as the data set or the device.

    Raises:
        PruneTrainError: for a checkpoint or data set that does not work, or images that the network cannot take.
    """
    unlimited = {"max_batch_size": 0}  # a limit on training, which a batch for evaluation may pass
    config = build_config(stored_config(path, load_checkpoint(path)).to_dict(), unlimited, given)
    environment = Environment.of(config)
    data = load_data(config, environment.device)
    state = load_state(path, config, data, environment)
    if "batch_size" in given:  # else one that grew in training
        state.progress = replace(state.progress, batch_size=None)
    state.check_fits(data)
    return evaluate(state, data)
