"""Learning-rate schedules by hand, optimizers as the settings say, and the size of the lasso's proximal step."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW

from prunetrain.config import TrainConfig
from prunetrain.regularizers.group_lasso import proximal_step_size
from prunetrain.training.optimizers import build_optimizer, build_scheduler, lr_factor

COSINE = [(1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75, 1)]


@pytest.mark.parametrize(
    ("settings", "factors"),  # two steps an epoch, and two more after the end
    [
        ({"epochs": 4}, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]),
        ({"epochs": 4, "lr_gamma": 0.5}, [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]),
        ({"epochs": 3, "milestones": (1,)}, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ({"epochs": 2, "milestones": (3, 9)}, [1, 1, 1, 1, 1, 1]),
        ({"epochs": 2}, [1, 1, 0.1, 0.1, 0.1, 0.1]),  # half and three quarters of two epochs are the same epoch
        ({"epochs": 1}, [1, 1, 1, 1]),
        ({"epochs": 2, "schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"epochs": 2, "schedule": "cosine"}, [*COSINE, 0]),
        ({"epochs": 4, "schedule": "constant", "warmup_epochs": 2}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"epochs": 4, "warmup_epochs": 1}, [0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]),
        ({"epochs": 3, "schedule": "cosine", "warmup_epochs": 1}, [0.5, 1, *COSINE, 0]),
        ({"epochs": 1, "schedule": "cosine", "warmup_epochs": 1}, [0.5, 1, 1, 0]),
    ],
)
def test_factors(settings: dict[str, Any], factors: list[float]) -> None:
    factor = lr_factor(TrainConfig(**settings), steps_per_epoch=2)
    assert [factor(step) for step in range(len(factors))] == pytest.approx(factors, abs=1e-12)


def test_scheduler_sets_the_rate_of_the_next_step() -> None:
    config = TrainConfig(epochs=2, lr=0.4, warmup_epochs=1, schedule="constant")
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], config)
    scheduler = build_scheduler(optimizer, config, steps_per_epoch=4, batch_size=config.batch_size)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("changes", [{}, {"schedule": "cosine", "warmup_epochs": 1}, {"schedule": "constant"}], ids=str)
def test_learning_rate_grows_with_the_batch(changes: dict[str, Any]) -> None:
    config = TrainConfig(epochs=4, lr=0.1, batch_size=32, momentum=0.9, **changes)
    rates, moved = {}, {}
    for batch_size, steps_per_epoch in ((32, 12), (96, 4)):
        optimizer = build_optimizer([nn.Parameter(torch.ones(1))], config)
        scheduler = build_scheduler(optimizer, config, steps_per_epoch, batch_size)
        rates[batch_size], moved[batch_size] = [], 0.0
        for _ in range(4 * steps_per_epoch):
            rates[batch_size].append(optimizer.param_groups[0]["lr"])
            moved[batch_size] += 0.02 * proximal_step_size(optimizer, optimizer.param_groups[0])
            optimizer.step()
            scheduler.step()
    if changes.get("warmup_epochs"):  # the first step after it, and the same place later
        assert rates[96][4::4] == pytest.approx([3 * rate for rate in rates[32][12::12]])
    else:
        assert rates[96] == pytest.approx([3 * rate for rate in rates[32][::3]])
        assert moved[96] == pytest.approx(moved[32])  # the lasso shrinks as much in an epoch


def test_optimizers_follow_the_settings() -> None:
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    sgd = build_optimizer(parameters, TrainConfig(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.01))
    assert isinstance(sgd, SGD)
    (group,) = sgd.param_groups
    assert (group["params"], group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (parameters, 0.3, 0.8, True, 0.01)
    adamw = build_optimizer(parameters, TrainConfig(optimizer="adamw", lr=0.001, momentum=0.8, weight_decay=0.01))
    assert isinstance(adamw, AdamW)
    (group,) = adamw.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.001, (0.8, 0.999), 0.01)


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        ({"lr": 0.1, "momentum": 0.9}, 0.1 * 0.02 / 0.1),
        ({"lr": 0.1, "momentum": 0.0}, 0.1 * 0.02),
        ({"lr": 0.1, "momentum": 0.5, "nesterov": True}, 0.1 * 0.02 / 0.5),
        ({"optimizer": "adamw", "lr": 0.001, "momentum": 0.9}, 0.001 * 0.02),
    ],
)
def test_proximal_step_size(settings: dict[str, Any], moved: float) -> None:
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], TrainConfig(**settings))
    assert 0.02 * proximal_step_size(optimizer, optimizer.param_groups[0]) == pytest.approx(moved)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_first_step_that_overflows(optimizer: str) -> None:
    """It is skipped, and the next is as if it were the first."""
    changed = []
    for gradients in ([torch.inf, 0.5], [0.5]):
        parameter = torch.nn.Parameter(torch.ones(1000))
        built = build_optimizer([parameter], TrainConfig(optimizer=optimizer, lr=0.1))
        scaler = GradScaler("cpu", init_scale=4.0)
        for gradient in gradients:
            scaler.scale((parameter * gradient).sum()).backward()
            scaler.step(built)
            scaler.update()
            built.zero_grad(set_to_none=True)
        changed.append(parameter.detach())
    assert not changed[0].eq(1).any() and torch.equal(changed[0], changed[1])
