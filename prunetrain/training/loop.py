"""One epoch of training, and validation. No value leaves the device during an epoch except at its ends."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from prunetrain.graph.costs import TRAIN_TO_FORWARD
from prunetrain.training.data import DataSource
from prunetrain.training.events import Observer
from prunetrain.training.optimizers import lasso_pull
from prunetrain.training.outputs import logits_of, loss_of
from prunetrain.training.penalty import fading_of, follow_course, steps_to_cut
from prunetrain.training.state import TrainState


@dataclass(frozen=True)
class EpochResult:
    """Means over an epoch: cross-entropy and top-1 (a fraction); seconds and images of it; whether a request to stop cut it short."""

    loss: float
    top1: float
    seconds: float
    images: int
    stopped: bool


@dataclass(frozen=True)
class Evaluation:
    """Means over a data set: cross-entropy, and how often the label is the first, and among the first five guesses (fractions)."""

    loss: float
    top1: float
    top5: float


def train_one_epoch(state: TrainState, data: DataSource, observer: Observer, stop: Callable[[], bool]) -> EpochResult:
    """Train the epoch that `state.progress` stands in, from its next step on.

    Args:
        state: updated in place, `progress` included.
        data: the data set.
        observer: told after every step.
        stop: asked after every step; when it says so, the epoch ends early and can be taken up again.
    """
    config, progress = state.config, state.progress
    state.model.train()
    running = _Running.of(progress.running, state.device)
    start = time.perf_counter()
    step = progress.step
    if step == 0:
        follow_course(state)
        torch.manual_seed(_mixed_seed(config.seed, progress.epoch))
    stopped = False
    fading, steps_left = fading_of(state), steps_to_cut(state, data)
    for images, labels in data.train_batches(progress.epoch, state.batch_size, start=step):
        loss, correct = _train_step(state, images, labels)
        if fading:
            fading.scale_(1 - 1 / (steps_left - step))  # norms fall in a straight line, to zero with the last step
        running.add(loss, correct, len(labels))
        step += 1
        observer.stepped(progress.epoch + 1, step)
        if stop():
            stopped = True
            break
    sums = running.sums(time.perf_counter() - start)
    images_now = (step - progress.step) * state.batch_size
    state.progress = replace(
        state.progress,
        step=step,
        running=sums,
        train_macs=progress.train_macs + TRAIN_TO_FORWARD * state.costs.macs * images_now,
        train_images=progress.train_images + images_now,
    )
    count = max(1, int(sums["images"]))
    return EpochResult(sums["loss"] / count, sums["correct"] / count, sums["seconds"], int(sums["images"]), stopped)


def _mixed_seed(seed: int, epoch: int) -> int:
    """A seed for what draws from torch's global generator (dropout), different for every epoch."""
    return (seed * 1_000_003 + epoch * 7_919 + 1) % 2**63


@dataclass
class _Running:
    """Sums over an epoch, kept on the device."""

    loss: Tensor
    correct: Tensor
    images: int
    seconds: float

    @classmethod
    def of(cls, sums: dict[str, float], device: torch.device) -> "_Running":
        loss, correct = (torch.tensor(sums.get(name, 0.0), dtype=torch.float64, device=device) for name in ("loss", "correct"))
        return cls(loss, correct, int(sums.get("images", 0)), sums.get("seconds", 0.0))

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        self.loss += loss.double() * images
        self.correct += correct
        self.images += images

    def sums(self, seconds: float) -> dict[str, float]:
        return {"loss": float(self.loss), "correct": float(self.correct), "images": self.images, "seconds": self.seconds + seconds}


def _train_step(state: TrainState, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns the mean cross-entropy and the number of right guesses, both still on the device."""
    with state.autocast():
        outputs = state.forward(state.to_memory_format(images))
        loss = loss_of(outputs, labels, aux_weight=state.config.aux_weight, label_smoothing=state.config.label_smoothing)
    torch.autograd.backward(state.scaler.scale(loss))
    strength = _regularize(state, loss)
    scale = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    stepped = state.scaler.get_scale() >= scale  # a step with overflows is skipped, and the scale lowered
    if state.lasso and state.config.lasso_step == "proximal" and stepped:
        state.lasso.shrink_(lasso_pull(state.optimizer, strength))
    state.scheduler.step()
    return loss.detach(), (logits_of(outputs).detach().argmax(1) == labels).sum()


def _regularize(state: TrainState, loss: Tensor) -> float:
    """Set lambda at the first batch; add the lasso's gradient. Returns lambda."""
    if state.lasso is None:
        return 0.0
    if state.progress.lasso_strength is None:
        strength = state.lasso.strength_for(state.config.penalty_ratio, loss.detach())
        state.progress = replace(state.progress, lasso_strength=strength)
    strength = state.progress.lasso_strength or 0.0
    if state.config.lasso_step == "subgradient":
        state.scaler.unscale_(state.optimizer)
        state.lasso.add_gradient_(strength)
    return strength


@torch.inference_mode()
def evaluate(state: TrainState, data: DataSource) -> Evaluation:
    """Loss and accuracy over the validation images."""
    return evaluate_batches(state, data.val_batches(max(state.batch_size, 256)))


def evaluate_batches(state: TrainState, batches: Iterator[tuple[Tensor, Tensor]]) -> Evaluation:
    """Loss and accuracy over batches of images and labels."""
    state.model.eval()
    loss, first, five = (torch.zeros((), dtype=torch.float64, device=state.device) for _ in range(3))
    count = 0
    for images, labels in batches:
        with state.autocast():
            logits = logits_of(state.forward(state.to_memory_format(images)))
        loss += F.cross_entropy(logits.float(), labels, reduction="sum").double()
        guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = guesses == labels[:, None]
        first += hits[:, 0].sum()
        five += hits.any(1).sum()
        count += len(labels)
    return Evaluation(float(loss) / count, float(first) / count, float(five) / count)
