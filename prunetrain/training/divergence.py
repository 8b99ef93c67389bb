"""Notices that training has diverged, before a checkpoint of it replaces the last good one."""

import math

import torch

from prunetrain.errors import DivergedError
from prunetrain.training.loop import EpochResult
from prunetrain.training.metrics import lasso_term
from prunetrain.training.state import TrainState


def check_finite(state: TrainState, result: EpochResult) -> None:
    """Check that the loss of the present epoch so far, all weights and buffers, and the penalty are finite. Waits for the device.

    Args:
        state: the run, right after a step.
        result: the epoch's result so far.

    Raises:
        DivergedError: if one of them is infinite or not a number.
    """
    if not math.isfinite(result.loss):
        what = f"the loss is {result.loss}"
    elif broken := _broken_tensor(state):
        what = f"{broken} is not finite"
    elif not math.isfinite(lasso_term(state)):
        what = "weights are too large to be squared"
    else:
        return
    before = f"{state.run.last} is from before" if state.run.last.exists() else "nothing was trained before"
    raise DivergedError(
        f"training diverged in epoch {state.progress.epoch + 1}: {what}, and {before}; "
        f"start a new run with a lower --lr than {state.config.lr:g}, or with --warmup-epochs"
    )


def _broken_tensor(state: TrainState) -> str | None:
    """The first tensor of the state dict that is not finite, if there is one."""
    tensors = {name: tensor for name, tensor in state.model.state_dict().items() if tensor.is_floating_point()}
    if not tensors or torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all():
        return None
    return next(name for name, tensor in tensors.items() if not tensor.isfinite().all())
