"""The training loop against loops written out by hand: same batches, same seed, same bits."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from runs import RESNET, Recorder, settings, write_images
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.graph.load import load_network
from prunetrain.methods.held_masks import HeldMasks
from prunetrain.methods.masks import Masks
from prunetrain.paths import RunPaths
from prunetrain.regularizers.fading import Fading
from prunetrain.regularizers.group_lasso import GroupLasso
from prunetrain.training import lasso as lasso_module
from prunetrain.training import loop as loop_module
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.confusion import GuessCollector
from prunetrain.training.creation import new_state
from prunetrain.training.data import DataSource, load_data
from prunetrain.training.data.base import Share
from prunetrain.training.distribution import Ranks
from prunetrain.training.environment import Environment
from prunetrain.training.kernels import fastest_kernels
from prunetrain.training.loop import evaluate, evaluate_batches, train_one_epoch
from prunetrain.training.outputs import balanced_weights, loss_of
from prunetrain.training.state import TrainState, trained_parameters
from prunetrain.training.stopping import Action

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images for training, 5 steps of 32; 300 for validation."""
    return write_images(tmp_path_factory.mktemp("data") / "images.npz", train=160, val=300)


class Start:
    """A run at its start, and the same network and data once more for a loop by hand."""

    def __init__(self, images: Path, folder: Path, **changes: Any) -> None:
        self.config: TrainConfig = settings(images, folder, **changes)
        self.data: DataSource = load_data(self.config, CPU)
        self.state: TrainState = new_state(self.config, RunPaths(folder, "x"), self.data, Environment(CPU))
        self.model: nn.Module = load_network(self.state.network)
        self.model.load_state_dict(load_checkpoint(self.state.run.checkpoint(0)).model)

    def train(self) -> None:
        """One epoch of the run."""
        train_one_epoch(self.state, self.data, Recorder(), lambda: Action.GO_ON)

    def batches(self, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, for the loop by hand."""
        return self.data.train_batches(epoch, self.config.batch_size)


def test_kernels_are_tried_in_training_steps_on_a_gpu_alone(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in validation, whose last batch is of another size. The GPU is pretended: what it is asked for is done on the CPU."""
    with fastest_kernels(CPU):
        assert not torch.backends.cudnn.benchmark
    start, seen = Start(images, tmp_path), []
    monkeypatch.setattr(loop_module, "fastest_kernels", lambda device: fastest_kernels(torch.device("cuda")))
    start.state.model.register_forward_hook(lambda *_: seen.append((start.state.model.training, torch.backends.cudnn.benchmark)))
    next(start.state.model.parameters()).register_hook(lambda _: seen.append(("backward", torch.backends.cudnn.benchmark)))
    start.train()
    evaluate(start.state, start.data)
    assert set(seen) == {(True, True), ("backward", True), (False, False)}


@pytest.mark.parametrize("changes", [RESNET, {"model": "lenet-300-100", "nesterov": True}, {"channels_last": True, **RESNET}], ids=str)
def test_without_lasso_it_is_a_plain_loop(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    start = Start(images, tmp_path, **{**changes, "penalty_ratio": 0.0, "epochs": 2, "milestones": (1,), "warmup_epochs": 1})
    layout = torch.channels_last if start.config.channels_last else torch.contiguous_format
    model = start.model.train().to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=start.config.nesterov, weight_decay=5e-4, fused=True)
    losses, step = [], 0
    for epoch in range(2):
        for pixels, labels in start.batches(epoch):
            step += 1
            optimizer.param_groups[0]["lr"] = 0.1 * step / 5 if epoch == 0 else 0.1 * 0.1
            loss = F.cross_entropy(model(pixels.contiguous(memory_format=layout)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    start.train()
    start.state.progress = replace(start.state.progress, epoch=1, step=0, running={})
    result = train_one_epoch(start.state, start.data, Recorder(), lambda: Action.GO_ON)
    assert result.loss == float(torch.stack(losses[5:]).double().mean())
    for name, tensor in start.state.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def penalty(model: nn.Module, groups: str) -> Tensor:
    """R of LeNet-300-100, group by group."""
    w1, w2, w3 = (model.get_parameter(f"fc{number}.weight").detach().double() for number in (1, 2, 3))
    if groups == "slices":
        return w1.norm(dim=1).sum() + w2.norm(dim=0).sum() + w2.norm(dim=1).sum() + w3.norm(dim=0).sum()
    return torch.cat([w1, w2.T], 1).norm(dim=1).sum() + torch.cat([w2, w3.T], 1).norm(dim=1).sum()


@pytest.mark.parametrize("groups", ["slices", "coupled"])
@pytest.mark.parametrize("ratio", [0.2, 0.9])
def test_lambda_comes_from_the_ratio_at_the_first_batch(images: Path, tmp_path: Path, groups: str, ratio: float) -> None:
    start = Start(images, tmp_path, penalty_ratio=ratio, lasso_groups=groups)
    batch, labels = next(start.batches())
    loss = F.cross_entropy(start.model.train()(batch), labels).detach().double()
    assert start.state.progress.lasso_strength is None
    start.train()
    strength = start.state.progress.lasso_strength
    assert strength
    share = strength * penalty(start.model, groups)
    assert float(share / (loss + share)) == pytest.approx(ratio, rel=1e-6)
    assert start.state.checkpoint().progress.lasso_strength == strength
    start.train()
    assert start.state.progress.lasso_strength == strength  # set once


def test_subgradient_joins_the_gradient(images: Path, tmp_path: Path) -> None:
    plain = {"momentum": 0.0, "weight_decay": 0.0, "batch_size": 160, "lasso_groups": "slices", "lasso_step": "subgradient"}
    start = Start(images, tmp_path, **plain)
    batch, labels = next(start.batches())
    model = start.model.train()
    F.cross_entropy(model(batch), labels).backward()
    w = model.get_parameter("fc2.weight")
    assert w.grad is not None
    start.train()
    strength = start.state.progress.lasso_strength
    assert strength
    pull = strength * w * (1 / w.norm(dim=1, keepdim=True) + 1 / w.norm(dim=0, keepdim=True))
    expected = (w - 0.1 * (w.grad + pull)).detach()
    torch.testing.assert_close(start.state.model.get_parameter("fc2.weight").detach(), expected)
    assert float(pull.detach().norm()) > float(w.grad.norm()) / 10  # the lasso has a part in it


def test_proximal_step_shrinks_after_the_step(images: Path, tmp_path: Path) -> None:
    plain = {"momentum": 0.5, "weight_decay": 0.0, "batch_size": 160, "lasso_groups": "slices", "lasso_step": "proximal"}
    start = Start(images, tmp_path, **plain)
    batch, labels = next(start.batches())
    model = start.model.train()
    F.cross_entropy(model(batch), labels).backward()
    w = model.get_parameter("fc2.weight")
    assert w.grad is not None
    start.train()
    strength = start.state.progress.lasso_strength
    assert strength
    moved = (w - 0.1 * w.grad).detach()
    amount = 0.1 * strength / (1 - 0.5)
    rows, columns = ((1 - amount / moved.norm(dim=dim, keepdim=True)).clamp(min=0) for dim in (1, 0))
    torch.testing.assert_close(start.state.model.get_parameter("fc2.weight").detach(), moved * rows * columns)
    assert float(rows.max()) < 1


EVERY_STEP = dict.fromkeys(range(1, 6), 1)


@pytest.mark.parametrize(
    ("interval", "smooth", "acts", "fades"),
    [
        (3, 0, {3: 3, 5: 2}, {3: 3, 5: 2}),
        (3, 1, {3: 3, 5: 2}, {3: 3, 4: 1, 5: 1}),  # one part of two, then at every step
        (3, 16, {3: 3, 5: 2}, EVERY_STEP),
        (1, 16, EVERY_STEP, EVERY_STEP),
        (8, 0, {5: 5}, {5: 5}),
    ],
)
def test_the_lasso_acts_every_few_steps_and_at_the_end(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    interval: int,
    smooth: int,
    acts: dict[int, int],
    fades: dict[int, int],
) -> None:
    """`acts` and `fades`: after which of the 5 steps of an epoch the lasso and fading act, and for how many steps."""
    monkeypatch.setattr(lasso_module, "_SMOOTH", smooth)
    start = Start(images, tmp_path, lasso_step="proximal", lasso_interval=interval, prune_interval=1, momentum=0.5, weight_decay=0.0)
    start.state.progress = replace(start.state.progress, fading=[200, 203])
    start.train()
    model = start.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    graph, weights = start.state.graph, dict(model.named_parameters())
    lasso = GroupLasso(graph, find_spaces(graph), weights, groups=start.config.lasso_groups)
    fading = Fading(graph, find_spaces(graph), weights, [200, 203])
    for step, (batch, labels) in enumerate(start.batches(), start=1):
        F.cross_entropy(model(batch), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in acts:
            assert start.state.progress.lasso_strength
            lasso.shrink_(acts[step] * 0.1 / (1 - 0.5) * start.state.progress.lasso_strength)
        if step in fades:
            fading.scale_((5 - step) / (5 - step + fades[step]))
    for name, weight in weights.items():
        torch.testing.assert_close(start.state.model.get_parameter(name), weight)
    assert sum(not row.any() for row in weights["fc1.weight"]) == 2


def test_the_lasso_goes_on_where_a_checkpoint_left_it(images: Path, tmp_path: Path) -> None:
    whole, halves = (Start(images, tmp_path / name, lasso_interval=2) for name in ("whole", "halves"))
    whole.train()
    for action in (Action.SAVE, Action.GO_ON):  # stops after the first step, in the middle of two
        train_one_epoch(halves.state, halves.data, Recorder(), lambda action=action: action)  # type: ignore[misc]
    assert halves.state.progress.step == 5
    for one, other in zip(whole.state.model.parameters(), halves.state.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dead_groups_are_exact_zeros(images: Path, tmp_path: Path) -> None:
    start = Start(images, tmp_path, lasso_step="proximal", penalty_ratio=0.97, epochs=100)
    for epoch in range(4):
        start.state.progress = replace(start.state.progress, epoch=epoch, step=0)
        start.train()
    weight = start.state.model.get_parameter("fc1.weight").detach()
    dead = weight.abs().amax(1) < 1e-4
    assert dead.any()
    assert not weight[dead].any()


def test_label_smoothing(images: Path, tmp_path: Path) -> None:
    start = Start(images, tmp_path, label_smoothing=0.2, penalty_ratio=0.0, batch_size=160)
    batch, labels = next(start.batches())
    logits = start.model.train()(batch)
    result = train_one_epoch(start.state, start.data, Recorder(), lambda: Action.GO_ON)
    logits = logits.detach()
    wanted = 0.8 * F.cross_entropy(logits, labels) - 0.2 * logits.log_softmax(1).mean()
    assert result.loss == pytest.approx(float(wanted), rel=1e-6)
    assert result.loss != pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-3)
    assert result.top1 == float((logits.argmax(1) == labels).double().mean())


def test_balanced_classes_add_as_much_to_the_loss(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    random, labels = np.random.default_rng(0), np.repeat([0, 1, 2], [110, 40, 10])
    pixels = random.integers(0, 256, (160, 8, 8), dtype=np.uint8)
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    start = Start(path, tmp_path, class_weights="balanced", label_smoothing=0.1, penalty_ratio=0.0, batch_size=160)
    batch, answers = next(start.batches())
    logits = start.model.train()(batch).detach()
    result = train_one_epoch(start.state, start.data, Recorder(), lambda: Action.GO_ON)
    of_a_class = [F.cross_entropy(logits[answers == k], answers[answers == k], label_smoothing=0.1) for k in range(3)]
    assert result.loss == pytest.approx(float(sum(of_a_class)) / 3, rel=1e-6)
    assert result.loss != pytest.approx(float(F.cross_entropy(logits, answers, label_smoothing=0.1)), rel=1e-3)
    assert result.top1 == float((logits.argmax(1) == answers).double().mean())
    plain = evaluate(start.state, start.data)
    with torch.inference_mode():
        seen = [(start.state.model.eval()(images), answer) for images, answer in start.data.val_batches(160)]
    assert plain.loss == pytest.approx(float(F.cross_entropy(*seen[0])), rel=1e-6)  # of validation all count alike


def test_weights_of_classes_by_hand() -> None:
    assert balanced_weights([8, 2, 0, 2]).tolist() == [0.5, 2.0, 0.0, 2.0]
    heads = tuple(torch.randn(3, 2) for _ in range(2))
    labels, weights = torch.tensor([0, 1, 1]), torch.tensor([3.0, 0.5])
    wanted = [
        sum(w * F.cross_entropy(row[None], k[None]) for w, row, k in zip((3.0, 0.5, 0.5), head, labels, strict=True)) for head in heads
    ]
    found = loss_of(heads, labels, aux_weight=0.3, class_weights=weights)
    torch.testing.assert_close(found, (wanted[0] + 0.3 * wanted[1]) / 3)


@pytest.mark.parametrize("step", ["proximal", "subgradient"])
def test_bfloat16(images: Path, tmp_path: Path, step: str) -> None:
    start = Start(images, tmp_path, **{**RESNET, "amp": "bfloat16", "channels_last": True, "lasso_step": step})
    kinds = []
    forward = start.state.forward
    start.state.forward = lambda x: (kinds.append((y := forward(x)).dtype), y)[1]
    start.train()
    assert set(kinds) == {torch.bfloat16}
    assert {parameter.dtype for parameter in start.state.model.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in start.state.model.parameters())
    assert 0 < evaluate(start.state, start.data).loss < 10


class Waits(TorchDispatchMode):
    """While entered, counts the operations that would wait for a GPU, and those that would send it something.

    Waits are values read into Python, and shapes that hang on values; sent are tensors of Python's or numpy's numbers, lists of indices
    among them.
    """

    OPERATIONS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount"})
    INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})

    def __init__(self) -> None:
        super().__init__()
        self.count = self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = name in self.INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
        self.count += name in self.OPERATIONS or chosen
        self.sent += name == "lift_fresh"
        return func(*args, **(kwargs or {}))


WAITLESS: dict[str, dict[str, Any]] = {
    "proximal": {},
    "subgradient": {"lasso_step": "subgradient"},
    "slices": {"lasso_groups": "slices"},
    "bfloat16": {**RESNET, "amp": "bfloat16", "channels_last": True},
    "loss scaler": {},
    "adamw": {"optimizer": "adamw", "lr": 0.001},
    "fading": {"target_macs": 0.5},
    "augmented": {},
    "class weights": {"class_weights": "balanced"},
    "masks": {"penalty_ratio": 0.0},
}


def test_what_waits_by_hand() -> None:
    numbers = torch.arange(4.0)
    for action, expected in (
        (lambda: numbers[numbers > 1], (1, 0)),
        (lambda: float(numbers[0]), (1, 0)),
        (lambda: bool((numbers > 1).all()), (1, 0)),
        (lambda: numbers[[0, 1]], (0, 1)),
        (lambda: numbers * torch.tensor(2.0), (0, 1)),
        (lambda: numbers.masked_fill(numbers > 1, 0.0) * 2 + torch.zeros(4), (0, 0)),
    ):
        with Waits() as waits:
            action()
        assert (waits.count, waits.sent) == expected


@pytest.mark.parametrize("case", WAITLESS)
def test_no_step_waits_for_the_device_or_sends_it_anything(
    case: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start(images, tmp_path, **WAITLESS[case], augment=case == "augmented")
    if case == "loss scaler":
        start.state.scaler = GradScaler("cpu", init_scale=4.0)
    if case == "fading":  # begins with the epoch after the first
        start.train()
        start.state.progress = replace(start.state.progress, epoch=2, step=0, running={})
    if case == "masks":
        weights = trained_parameters(start.state.model)
        start.state.run_method.method = HeldMasks(weights, Masks({name: weight.detach() > 0 for name, weight in weights.items()}))
    counts, sent, observer, train_step = [], [], Recorder(), loop_module._train_step

    def watched(*args: Any) -> tuple[Tensor, Tensor]:
        before = waits.sent
        result = train_step(*args)
        sent.append(waits.sent - before)
        return result

    monkeypatch.setattr(loop_module, "_train_step", watched)
    with Waits() as waits:
        observer.stepped = lambda epoch, step: counts.append(waits.count)  # type: ignore[method-assign]
        train_one_epoch(start.state, start.data, observer, lambda: Action.GO_ON)
    assert bool(start.state.progress.fading) == (case == "fading")
    assert len(counts) == 5
    assert counts[0] == counts[-1] < waits.count  # lambda at the first, sums at the end
    assert (counts[0] > 0) == (case != "masks")
    assert sent[1:] == [0] * 4


def test_counting_guesses_does_not_wait_for_the_device(images: Path, tmp_path: Path) -> None:
    start = Start(images, tmp_path)
    guesses, counts = GuessCollector(4), []
    with Waits() as waits:
        evaluate(start.state, start.data, lambda *batch: (guesses(*batch), counts.append(waits.count)))
        assert len(counts) > 2
        assert set(counts) == {0}
        counted = guesses.count(start.state.environment.ranks)
    assert waits.count > 0
    assert sum(counted.images) == 300


@pytest.mark.parametrize("overflow", [False, True])
def test_a_skipped_step_leaves_every_weight(overflow: bool, images: Path, tmp_path: Path) -> None:
    start = Start(images, tmp_path, batch_size=160)
    start.train()
    start.state.progress = replace(start.state.progress, epoch=1, step=0, running={})
    start.state.scaler = GradScaler("cpu", init_scale=4.0)
    forward = start.state.forward
    start.state.forward = lambda x: forward(x) * (math.inf if overflow else 1)  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in start.state.model.state_dict().items()}
    start.train()
    same = [torch.equal(tensor, before[name]) for name, tensor in start.state.model.state_dict().items()]
    assert all(same) if overflow else not any(same)
    assert start.state.scaler.get_scale() == (2.0 if overflow else 4.0)


def test_epoch_can_be_stopped_and_taken_up(images: Path, tmp_path: Path) -> None:
    whole, parts = (Start(images, tmp_path / name, penalty_ratio=0.94) for name in ("whole", "parts"))
    whole.train()
    recorder = Recorder()
    first = train_one_epoch(parts.state, parts.data, recorder, lambda: Action.STOP if len(recorder.steps) == 2 else Action.GO_ON)
    assert (first.action, first.images, parts.state.progress.step) == (Action.STOP, 64, 2)
    assert parts.state.progress.train_images == 64
    assert parts.state.progress.train_macs == 3 * costs(parts.state.graph).macs * 64
    second = train_one_epoch(parts.state, parts.data, recorder, lambda: Action.GO_ON)
    assert (second.action, second.images, parts.state.progress.step) == (Action.GO_ON, 160, 5)
    assert recorder.steps == [(1, step) for step in range(1, 6)]
    left, right = whole.state.progress, parts.state.progress
    assert {**left.running, "seconds": 0} == {**right.running, "seconds": 0}
    assert (left.train_images, left.train_macs) == (right.train_images, right.train_macs)
    for name, tensor in whole.state.model.state_dict().items():
        assert torch.equal(tensor, parts.state.model.state_dict()[name]), name


def test_evaluate_counts_every_image_once(images: Path, tmp_path: Path) -> None:
    start = Start(images, tmp_path, **{**RESNET, "batch_size": 16})  # 300 images: batches of 256 and 44
    start.train()
    before = {name: tensor.clone() for name, tensor in start.state.model.state_dict().items()}
    found = evaluate(start.state, start.data)
    model = start.state.model.eval()
    batch, labels = next(start.data.val_batches(300))
    with torch.no_grad():
        logits = model(batch)
    assert len(labels) == 300
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert found.top1 == float((logits.argmax(1) == labels).double().mean())
    assert found.top5 == 1  # there are four classes
    for name, tensor in start.state.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("batch_size", "together"), [(1, 4), (16, 64), (64, 256), (200, 256), (300, 300)])
def test_validation_takes_no_more_memory_than_training(images: Path, tmp_path: Path, batch_size: int, together: int) -> None:
    """Up to 256 images together, if training has a quarter of them."""
    start = Start(images, tmp_path)
    start.state.progress = replace(start.state.progress, batch_size=batch_size)
    asked: list[int] = []

    class Asked:
        def val_batches(self, batch_size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
            asked.append(batch_size)
            return start.data.val_batches(batch_size, share=share)

    evaluate(start.state, cast(DataSource, Asked()))
    assert asked == [together]


def test_an_epoch_lasts_until_the_device_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU goes on while the clock is asked; it has done its work when its sums are known."""
    clock = [10.0]
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: clock[0])

    class Late:
        def __float__(self) -> float:
            clock[0] += 5
            return 1.0

    running = loop_module._RunningSums(cast(Tensor, Late()), cast(Tensor, Late()), images=4, seconds=2.0)
    assert running.sums(9.0, Ranks()) == {"loss": 1.0, "correct": 1.0, "images": 4, "seconds": 2.0 + 11.0}


@pytest.mark.parametrize("stop", [0, 1, 8, 13, 16, 20])
def test_sums_of_an_epoch_do_not_depend_on_where_it_was_interrupted(stop: int) -> None:
    torch.manual_seed(0)
    steps = [(torch.rand(()) * 3, torch.randint(4, (size,)), torch.randint(4, (size,))) for size in [7] * 19 + [5]]
    sums: dict[str, float] = {}
    for part in (steps[:stop], steps[stop:]):
        running = loop_module._RunningSums.of(sums, Ranks(), torch.device("cpu"))
        for step in part:
            running.add(*step)
        sums = running.sums(0.0, Ranks())
    loss = 0.0
    for mean, _, labels in steps:
        loss += float(mean) * len(labels)
    assert sums["loss"] == loss
    assert sums["correct"] == sum(int((guesses == labels).sum()) for _, guesses, labels in steps)
    assert sums["images"] == 19 * 7 + 5


def test_top_5(images: Path, tmp_path: Path) -> None:
    state = Start(images, tmp_path).state
    state.predict = lambda x: x  # the images are the logits
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]] * 4)
    labels = torch.tensor([0, 4, 5, 6])
    found = evaluate_batches(state, iter([(logits[:3], labels[:3]), (logits[3:], labels[3:])]))
    assert (found.top1, found.top5) == (0.25, 0.5)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)))
