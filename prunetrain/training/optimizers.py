"""Optimizers and learning-rate schedules from the settings. A schedule is a pure function of the step, so resuming needs no replay."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from prunetrain.config import FINE_TUNING_LR_FACTOR, TrainConfig
from prunetrain.method_settings import LR_RESTART

_RESTART_WARMUP = 0.1  # share of the retraining after a restart


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Build SGD or AdamW over all parameters in one group, in torch's fused form.

    SGD's momenta start as zeros, as in the formula: torch would create them in the first step, and if a loss scaler skips that step, as
    often happens with float16, the fused form leaves them uninitialised.
    """
    if config.optimizer == "adamw":
        return AdamW(parameters, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay, fused=True)
    sgd = SGD(parameters, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay, fused=True)
    learning = [parameter for group in sgd.param_groups for parameter in group["params"] if parameter.requires_grad and config.momentum]
    for parameter in learning:
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return sgd


def build_scheduler(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int, batch_size: int) -> LambdaLR:
    """Build a scheduler that is stepped after every optimizer step. If the batch has grown, the learning rate grows by the same factor."""
    return LambdaLR(optimizer, lr_factor(config, steps_per_epoch, batch_size / config.batch_size))


def lr_factor(config: TrainConfig, steps_per_epoch: int, growth: float = 1.0) -> Callable[[int], float]:
    """The learning rate at a step as a share of `config.lr`.

    The whole schedule is multiplied by the growth of the batch (arXiv 1706.02677, the linear scaling rule).

    Warm-up rises linearly over its epochs. `step` multiplies by gamma at every milestone, by default after half and three quarters of the
    epochs; `cosine` falls to zero over the epochs after warm-up (SGDR without restarts, arXiv 1608.03983, equation 5). If
    `config.retrain` rewinds the schedule, every round of retraining repeats the learning rates from epoch `rewind_epoch` on; if it
    restarts it, every round warms up over its first tenth and then has a cosine of its own (arXiv 2105.03193). Epochs between the
    schedule's end and the pruning, in which a method acts on a trained network, have the learning rate of fine-tuning.
    """
    epochs = config.schedule_epochs
    milestones = config.milestones or {epoch for epoch in (epochs // 2, epochs * 3 // 4) if epoch}
    warmup = config.warmup_epochs * steps_per_epoch
    total = epochs * steps_per_epoch
    restarts = config.retrain == LR_RESTART
    again = config.retrain_epochs * steps_per_epoch if config.rewinds or restarts else 0
    first, back_to = config.prune_at * steps_per_epoch, config.rewind_epoch * steps_per_epoch

    def factor(step: int) -> float:
        if restarts and step >= first:
            rounds, done = divmod(step - first, max(1, again))
            return growth * _cosine(done if rounds < config.rounds else again, warmup=round(_RESTART_WARMUP * again), total=again)
        if again and step >= first:
            step = back_to + (step - first) % again
        elif again and step >= total:
            return growth * FINE_TUNING_LR_FACTOR
        if step < warmup:
            return growth * (step + 1) / warmup
        if config.schedule == "step":
            epoch = step // steps_per_epoch
            drops: int = sum(epoch >= milestone for milestone in milestones)
            return growth * math.pow(config.lr_gamma, drops)
        if config.schedule == "cosine":
            return growth * _cosine(step, warmup=warmup, total=total)
        return growth

    return factor


def _cosine(step: int, *, warmup: int, total: int) -> float:
    """A linear rise from zero to one, then half a cosine that reaches zero after `total` steps."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup)))) / 2
