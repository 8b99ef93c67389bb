"""Lines of metrics.jsonl. In: a run at the end of an epoch. Out: plain numbers (docs/files.md names them and their units)."""

import json
import math
import resource
import sys

import torch
from torch import nn

from prunetrain.files import write_text
from prunetrain.training.events import Metrics
from prunetrain.training.loop import EpochResult, Evaluation
from prunetrain.training.state import TrainState


def metrics_of(state: TrainState, result: EpochResult, evaluation: Evaluation) -> Metrics:
    """The metrics line of the epoch just trained; all processes must call this, and all get the same line."""
    ranks = state.environment.ranks
    return ranks.broadcast(
        {
            "epoch": state.progress.epoch + 1,
            "train_loss": result.loss,
            "lasso": lasso_term(state),
            "train_top1": result.top1,
            "val_loss": evaluation.loss if math.isfinite(evaluation.loss) else None,
            "val_top1": evaluation.top1,
            "lr": state.optimizer.param_groups[0]["lr"],
            "lasso_strength": state.progress.lasso_strength or 0.0,
            "batch_size": state.batch_size,
            "macs": state.costs.macs,
            "params": state.costs.params,
            "nonzero_params": count_nonzero(state.model),
            "channels": state.costs.channels,
            "train_macs_total": state.progress.train_macs,
            "train_images_total": state.progress.train_images,
            "epoch_seconds": result.seconds,
            "images_per_second": result.images / result.seconds,
            "peak_memory_bytes": max(ranks.gather(_peak_memory(state.device))),
            "workers": ranks.world_size,
            "gradient_bytes": state.gradient_bytes,
            **state.run_method.method.metrics(),
        }
    )


@torch.no_grad()
def count_nonzero(model: nn.Module) -> int:
    """The number of nonzero parameters."""
    return int(sum(parameter.count_nonzero() for parameter in model.parameters()))


def lasso_term(state: TrainState) -> float:
    """What the lasso adds to the loss, lambda * R; infinite if squares of weights are."""
    return (state.progress.lasso_strength or 0.0) * float(state.lasso.penalty()) if state.lasso else 0.0


def line_of(metrics: Metrics) -> str:
    """A metrics line as text, without the newline."""
    return json.dumps(metrics, allow_nan=False)


def rewrite_metrics(state: TrainState) -> None:
    """Make metrics.jsonl match the checkpoint: a crash may have left a line too many or too few.

    Raises:
        OutputError: if it cannot be written.
    """
    write_text(state.run.metrics, "".join(line_of(line) + "\n" for line in state.progress.history))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
