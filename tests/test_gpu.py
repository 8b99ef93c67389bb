"""What runs on a GPU, on a pretended one: tensors of two devices never meet, results are the CPU's bits, and no step waits for the GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import CUDA, PretendedGpu, pretended_gpu
from runs import Recorder, assert_identical, invoke, repeatable, settings, write_images
from torch import Tensor, nn
from torch.nn import functional as F

import prunetrain
from prunetrain.paths import RunPaths
from prunetrain.regularizers.fused_layers import kernels_work
from prunetrain.training import environment
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.run import start_run

NETWORK = f"{Path(__file__).with_name('networks_of_users') / 'my_net.py'}:Net"  # residual, concatenation, depthwise conv, squeeze-excite
FADING = {"epochs": 3, "prune_interval": 1, "penalty_ratio": 0.25, "target_macs": 0.5, "target_by": 0.5}
LASSO = {"epochs": 4, "prune_interval": 2, "penalty_ratio": 0.97, "milestones": (3,)}


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    for cached in (environment._usable_gpus, kernels_work):
        cached.cache_clear()
    with pretended_gpu() as machine:
        yield machine
    for cached in (environment._usable_gpus, kernels_work):
        cached.cache_clear()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 steps of 32 an epoch."""
    return write_images(tmp_path_factory.mktemp("data") / "images.npz", train=160, val=80)


class StepWaits(Recorder):
    """Notes for what the CPU waited between two steps of an epoch; the first batch of a run sets lambda, for which it must wait."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu
        self.before = 0
        self.waits: list[str] = []

    def stepped(self, epoch: int, step: int) -> None:
        super().stepped(epoch, step)
        if step > 1:
            self.waits += self.gpu.waits[self.before :]
        self.before = len(self.gpu.waits)


def test_the_pretended_gpu_is_as_strict_as_a_real_one(gpu: PretendedGpu) -> None:
    here, there = torch.arange(3.0), torch.ones(3, device=CUDA)
    assert (there.device, there.is_cuda, (there + 1).sum().device) == (CUDA, True, CUDA)
    assert gpu.waits == []
    for mixed in (lambda: here + there, lambda: there.add_(here), lambda: here[there.long()], lambda: F.linear(there, here[None])):
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            mixed()
    with pytest.raises((RuntimeError, TypeError), match="numpy"):
        there.numpy()
    for read in (
        lambda: float(there[0]),
        there.tolist,
        there.cpu,
        lambda: torch.equal(there, there),
        there.nonzero,
        lambda: bool(there.any()),
    ):
        gpu.waits.clear()
        read()
        assert gpu.waits, read


@pytest.mark.parametrize(
    "changes",
    [
        FADING,
        FADING | {"channels_last": True, "residual": "gating", "importance": "taylor"},
        LASSO | {"lasso_groups": "slices", "lasso_step": "subgradient", "class_weights": "balanced", "label_smoothing": 0.1},
        LASSO | {"optimizer": "adamw", "lr": 0.001, "prune_at": 1},
        LASSO | {"dynamic_batch": True, "criterion": "union", "round_to": "auto"},
        {"model": "lenet-300-100", "method": "admm", "rate": 0.5, "structure": "filters", "slice": True, "prune_at": 2},
        {"model": "lenet-300-100", "method": "magnitude", "rate": 0.5, "rounds": 3, "prune_at": 1, "retrain": "weight-rewind"},
        {"method": "fpgm", "rate": 0.3, "prune_at": 2},
    ],
    ids=str,
)
def test_a_run_ends_with_the_bits_of_a_cpu_and_no_step_waits(
    images: Path, tmp_path: Path, gpu: PretendedGpu, changes: dict[str, Any]
) -> None:
    changes = {"model": NETWORK, **changes}
    reference = start_run(settings(images, tmp_path, name="cpu", **changes), Recorder())
    assert gpu.waits == []
    observer = StepWaits(gpu)
    outcome = start_run(settings(images, tmp_path, name="gpu", **{**changes, "device": "auto"}), observer)
    assert gpu.waits
    assert observer.waits == []
    for part in ("model", "optimizer"):
        here, there = (getattr(load_checkpoint(RunPaths(tmp_path, name).last), part) for name in ("cpu", "gpu"))
        assert_identical(here, there, part)
    assert repeatable(outcome.history) == repeatable(reference.history)


def test_losses_of_float16_are_scaled_without_waiting(images: Path, tmp_path: Path, gpu: PretendedGpu) -> None:
    """Autocast is not pretended, so what is left of float16 is its scaler."""
    observer = StepWaits(gpu)
    outcome = start_run(settings(images, tmp_path, **{**FADING, "model": NETWORK, "device": "cuda", "amp": "float16"}), observer)
    assert observer.waits == []
    assert outcome.missed is None
    assert load_checkpoint(outcome.run.last).scaler["scale"] == 65536.0


def test_a_run_that_began_on_a_gpu_is_measured_there_and_continued_on_a_cpu(images: Path, tmp_path: Path, gpu: PretendedGpu) -> None:
    outcome = start_run(settings(images, tmp_path, name="x", device="cuda"), Recorder())
    printed = {}
    for device in ("cpu", "cuda"):
        gpu.waits.clear()
        result = invoke("evaluate", outcome.run.last, "--per-class", "--device", device)
        assert (result.exit_code, result.stderr) == (0, "")
        assert bool(gpu.waits) == (device == "cuda")
        printed[device] = result.stdout
    assert printed["cpu"] == printed["cuda"]
    result = invoke("train", "--resume", outcome.run.last, "--epochs", "5", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")


class Small(nn.Module):
    """Two convs with BatchNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def train_and_cut(device: torch.device, folder: Path) -> nn.Module:
    """Someone's own loop on a device: lasso, fading, an average of the weights, three cuts. The model moves after the pruner is made."""
    torch.manual_seed(0)
    model: nn.Module = Small()
    images, labels = torch.randn(8, 3, 12, 12).to(device), torch.arange(8, device=device) % 4
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ema: nn.Module = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    pruner = prunetrain.PruneTrain(model, optimizer, torch.randn(1, 3, 12, 12), penalty_ratio=0.2, importance="taylor", ema=ema)
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects, as they do on a real GPU
    model.to(device)
    ema.to(device)
    torch.__future__.set_swap_module_params_on_conversion(False)
    for epoch in range(3):
        if epoch < 2:
            pruner.fade(macs=0.75 - 0.25 * epoch, steps=4)
        for _ in range(4):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update_parameters(model)  # type: ignore[operator]
        step = pruner.reconfigure(folder / f"{epoch}.py")
        model, optimizer = step.model, step.optimizer
        assert step.ema is not None
        ema = step.ema
    assert {tensor.device for tensor in (*model.state_dict().values(), *ema.parameters(), *optimizer.state)} == {device}
    return nn.ModuleList([model, ema])


def test_a_loop_of_ones_own_on_a_gpu(tmp_path: Path, gpu: PretendedGpu) -> None:
    here = train_and_cut(torch.device("cpu"), tmp_path).state_dict()
    assert gpu.waits == []
    there = train_and_cut(CUDA, tmp_path).state_dict()
    assert_identical(here, {name: getattr(tensor, "held", tensor) for name, tensor in there.items()})
