"""One epoch of training, and validation; each of several processes takes its share of every batch.

No value leaves the device during an epoch except at its start and end, and for lambda at the run's first batch.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count, takewhile
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from prunetrain.graph.costs import TRAIN_TO_FORWARD
from prunetrain.methods.training_method import TrainingMethod
from prunetrain.training.data import DataSource
from prunetrain.training.distribution import Ranks, StepAgreement
from prunetrain.training.events import Observer
from prunetrain.training.kernels import fastest_kernels
from prunetrain.training.lasso import LassoMethod
from prunetrain.training.lasso_schedule import set_lasso_for_epoch
from prunetrain.training.outputs import balanced_weights, logits_of, loss_of
from prunetrain.training.state import TrainState, mixed_seed
from prunetrain.training.stopping import Action

_STEPS_ADDED_AT_ONCE: Final = 8
GuessCallback = Callable[[Tensor, Tensor], object]
"""Receives the first guesses of a batch and its labels, both (N,) and on the device."""


@dataclass(frozen=True)
class EpochResult:
    """An epoch's mean cross-entropy and top-1 (a fraction), its seconds and images, and what all processes agreed to do after it."""

    loss: float
    top1: float
    seconds: float
    images: int
    action: Action


@dataclass(frozen=True)
class Evaluation:
    """Means over a data set: cross-entropy, and how often the label is the first guess and among the first five (fractions)."""

    loss: float
    top1: float
    top5: float


def train_one_epoch(state: TrainState, data: DataSource, observer: Observer, wish: Callable[[], Action]) -> EpochResult:
    """Train the current epoch of `state.progress`, from its next step on.

    Args:
        state: updated in place, `progress` included.
        data: the data set.
        observer: notified after every step.
        wish: called after every step, on every rank; if any rank wants anything but to go on, the epoch ends early on all and can be
            resumed.
    """
    config, progress, ranks = state.config, state.progress, state.environment.ranks
    state.model.train()
    running = _RunningSums.of(progress.running, ranks, state.device)
    start = time.perf_counter()
    step = progress.step
    if step == 0:
        set_lasso_for_epoch(state)
        torch.manual_seed(mixed_seed(config.seed, progress.epoch, ranks.rank))
    agreement, action = StepAgreement(ranks), Action.GO_ON
    lasso = state.lasso if progress.epoch >= config.prune_at else None
    method = LassoMethod(state, lasso, data.steps_per_epoch(state.batch_size)) if lasso else state.run_method.method
    class_weights = balanced_weights(data.train_counts).to(state.device) if config.class_weights == "balanced" else None
    for images, labels in data.train_batches(progress.epoch, state.batch_size, start=step, share=state.environment.share):
        with fastest_kernels(state.device):
            loss, guesses = _train_step(state, method, images, labels, class_weights)
        running.add(loss, guesses, labels)
        step += 1
        observer.stepped(progress.epoch + 1, step)
        action = Action(agreement.after_step(wish()))
        if action is not Action.GO_ON:
            break
    action = max(action, Action(agreement.wait()))
    sums = running.sums(start, ranks)
    images_now = (step - progress.step) * state.batch_size
    state.progress = replace(
        state.progress,
        step=step,
        running=sums,
        train_macs=progress.train_macs + TRAIN_TO_FORWARD * state.costs.macs * images_now,
        train_images=progress.train_images + images_now,
    )
    total = max(1, int(sums["images"]))
    return EpochResult(sum(_losses(sums)) / total, sums["correct"] / total, sums["seconds"], int(sums["images"]), action)


@dataclass
class _RunningSums:
    """Sums over an epoch, kept on the device. Each rank adds up its own, so that a resumed run adds in the same order.

    Steps are added a few at a time: for so few numbers, operations take longer to call than to do.
    """

    loss: Tensor
    correct: Tensor
    images: int
    seconds: float
    pending: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, sums: dict[str, float], ranks: Ranks, device: torch.device) -> "_RunningSums":
        """This rank's part of what `sums` returned. If the number of processes has changed, rank 0 takes it all."""
        losses = _losses(sums)
        if len(losses) != ranks.world_size:
            losses = [sum(losses)] + [0.0] * (ranks.world_size - 1)
        whole = sums if ranks.rank == 0 else {}
        numbers = (losses[ranks.rank], whole.get("correct", 0.0))
        loss, correct = (torch.tensor(number, dtype=torch.float64, device=device) for number in numbers)
        return cls(loss, correct, int(whole.get("images", 0)), whole.get("seconds", 0.0))

    def add(self, loss: Tensor, guesses: Tensor, labels: Tensor) -> None:
        """Add a step: its mean loss, and the first guesses and labels of its images, both (N,)."""
        self.pending.append((loss, guesses, labels))
        if len(self.pending) == _STEPS_ADDED_AT_ONCE:
            self._add_pending()

    def _add_pending(self) -> None:
        if not self.pending:
            return
        losses, guesses, labels = zip(*self.pending, strict=True)
        self.pending = []
        for loss, images in zip(losses, map(len, labels), strict=True):
            self.loss.add_(loss, alpha=images)  # in float64
            self.images += images
        self.correct += (torch.cat(guesses) == torch.cat(labels)).sum()

    def sums(self, start: float, ranks: Ranks) -> dict[str, float]:
        """Sums over the ranks, except the losses, which stay apart to keep the order of adding; seconds are rank 0's, up to now."""
        self._add_pending()
        loss, correct_here = float(self.loss), float(self.correct)  # a GPU has done all its work when these are known
        parts = ranks.gather((loss, correct_here, self.images, self.seconds + time.perf_counter() - start))
        losses, correct, images, times = zip(*parts, strict=True)
        return dict(zip(_loss_keys(), losses, strict=False)) | {"correct": sum(correct), "images": sum(images), "seconds": times[0]}


def _loss_keys() -> Iterator[str]:
    """The key of each rank's sum of losses."""
    return chain(["loss"], (f"loss_{rank}" for rank in count(1)))


def _losses(sums: dict[str, float]) -> list[float]:
    """Each rank's sum of losses."""
    return [sums[key] for key in takewhile(sums.__contains__, _loss_keys())]


def _train_step(
    state: TrainState, method: TrainingMethod, images: Tensor, labels: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Take one optimizer step; return the mean loss and the first guesses (N,), both still on the device."""
    config = state.config
    with state.autocast():
        outputs = state.forward(state.to_memory_format(images))
        loss = loss_of(outputs, labels, aux_weight=config.aux_weight, label_smoothing=config.label_smoothing, class_weights=class_weights)
    torch.autograd.backward(state.scaler.scale(loss))
    state.scaler.unscale_(state.optimizer)
    method.after_backward_(loss.detach())
    scale = _loss_scale(state) if state.scaler.is_enabled() else None
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    skipped = None if scale is None else scale > _loss_scale(state)  # after an overflow, which lowers the scale
    method.after_step_(state.optimizer, skipped)
    state.scheduler.step()
    return loss.detach(), logits_of(outputs).detach().argmax(1)


def _loss_scale(state: TrainState) -> Tensor:
    """The loss scaler's factor; still on the device, where `get_scale` would wait for it."""
    return state.scaler.scale(torch.ones((), device=state.device))


@torch.inference_mode()
def evaluate(state: TrainState, data: DataSource, on_guesses: GuessCallback | None = None) -> Evaluation:
    """Loss and accuracy over the validation images, with rank 0's BatchNorm statistics, which checkpoints hold."""
    state.environment.ranks.broadcast_(state.model.buffers())
    return evaluate_batches(state, data.val_batches(validation_batch(state), share=state.environment.share), on_guesses)


def validation_batch(state: TrainState) -> int:
    """Images per validation batch, over all processes: 256, but at least one training batch and at most four.

    Four training batches need less memory than a training step, which keeps the results of all layers for the backward pass.
    """
    return max(state.batch_size, min(256, 4 * state.batch_size))


def evaluate_batches(state: TrainState, batches: Iterable[tuple[Tensor, Tensor]], on_guesses: GuessCallback | None = None) -> Evaluation:
    """Loss and accuracy over batches of images and labels, of all ranks together; `on_guesses` receives only this rank's."""
    state.model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=state.device)  # loss, first guess right, among the first five, images
    for pixels, labels in batches:
        with state.autocast():
            outputs = logits_of(state.predict(state.to_memory_format(pixels)))
        guesses = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        if on_guesses is not None:
            on_guesses(guesses[:, 0], labels)
        hits = guesses == labels[:, None]
        sums[0] += F.cross_entropy(outputs.float(), labels, reduction="sum")
        sums[1] += hits[:, 0].sum()
        sums[2] += hits.any(1).sum()
        sums[3] += len(labels)
    loss, first, five, images = state.environment.ranks.sum_(sums).tolist()
    return Evaluation(loss / images, first / images, five / images)


@torch.inference_mode()
def logits(state: TrainState, images: Tensor) -> Tensor:
    """The network's outputs (N, classes) in eval mode, in full precision and not compiled, so that they can be compared."""
    state.model.eval()
    return logits_of(state.model(state.to_memory_format(images)))
