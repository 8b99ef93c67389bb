"""The cost of the data pipeline: crops and flips in a step, and folders of images compared with torchvision's reference pipeline.

    python benchmarks/data_pipeline.py step
    python benchmarks/data_pipeline.py folder --workers 0,1,2 --rounds 7

Out: a Markdown table. `step`: gathering, cropping, mirroring and normalising a batch from memory, as a share of a training step of
ResNet-20 on 3x32x32 images, batch 128; on a CPU in CPU time of one thread, so that other processes are not measured; and the tensor
operations of both. `folder`: images per second of an epoch over JPEGs written for this, compared with torchvision's ImageFolder,
RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize and DataLoader with as many workers, and with the same batches already decoded
(`--cache`). All take turns, one epoch each. Figures are medians over rounds, with quartiles.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from runs import machine
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from prunetrain.config import TrainConfig
from prunetrain.graph.trace import trace_with_state
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.rounds import Spread, ratios
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.training.data import load_data
from prunetrain.training.data.folder import IMAGENET
from prunetrain.zoo import build

SIDE, BATCH = 224, 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "folder"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--scale", type=int, default=1, help="factor on the size of the images, 400x300 pixels")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    print(f"{machine()}; device {device}; {arguments.rounds} rounds\n")
    if arguments.what == "step":
        _steps(device, arguments.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder) / "photos", arguments.images, arguments.scale)
            _folders(Path(folder), list(map(int, arguments.workers.split(","))), device, arguments.rounds)


def _steps(device: torch.device, rounds: int) -> None:
    graph = trace_with_state(build("resnet20", input_shape=(3, 32, 32), num_classes=10), torch.zeros(2, 3, 32, 32)).graph
    print("| precision | share of a step, median (quartiles) | operations per step | of the step |\n| --- | --- | --- | --- |")
    for amp, channels_last in (("off", False), ("bfloat16", True)):
        config = TrainConfig(dataset="fake", image_size=32, batch_size=128, amp=amp, channels_last=channels_last)
        data, step = load_data(config, device), TrainingStep(graph, Conditions(device, 128, amp, channels_last))
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def epoch(data: object = data, layout: torch.memory_format = layout) -> None:
            for images, _ in data.train_batches(0, 128):  # type: ignore[attr-defined]
                images.contiguous(memory_format=layout)

        shares = []
        for _ in range(rounds + 1):
            of_data, of_step = _timed(epoch, device) / data.steps_per_epoch(128), _timed(step, device)
            shares.append(of_data / of_step)
        spread = Spread.of(shares[1:])
        precision = f"{amp}{', channels-last' if channels_last else ''}"
        own, whole = _operations(epoch) / data.steps_per_epoch(128), _operations(step)
        print(f"| {precision} | {spread.median:.2%} ({spread.low:.2%} to {spread.high:.2%}) | {own:.1f} | {whole} |")


def _operations(run: Callable[[], object]) -> int:
    """How many operations torch does, views not counted."""
    operations = _Operations()  # type: ignore[no-untyped-call]
    with operations:
        run()
    return operations.count


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that are no views."""

    count: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def _folders(folder: Path, workers: list[int], device: torch.device, rounds: int) -> None:
    print("| workers | pipeline | images/s in those of torchvision's, median (quartiles) |\n| --- | --- | --- |")
    for number in workers:
        ours, cached = (
            load_data(
                TrainConfig(
                    dataset="folder", data_dir=str(folder / "photos"), image_size=SIDE, batch_size=BATCH, workers=number, cache=cache
                ),
                device,
            )
            for cache in ("", str(folder / "cache"))
        )
        epochs: dict[str, Callable[[int], Iterable[tuple[Tensor, Tensor]]]] = {
            "torchvision's": _Reference(folder / "photos" / "train", number, device),
            "ours": lambda epoch, source=ours: source.train_batches(epoch, BATCH),  # type: ignore[misc]
            "ours, cached": lambda epoch, source=cached: source.train_batches(epoch, BATCH),  # type: ignore[misc]
        }
        seconds: dict[str, list[float]] = {name: [] for name in epochs}
        for turn in range(rounds + 1):
            for name, epoch in epochs.items():
                start = time.perf_counter()
                for _ in epoch(turn):
                    pass
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
        for name in list(epochs)[1:]:
            spread = Spread.of(ratios(seconds["torchvision's"], seconds[name]))
            print(f"| {number} | {name} | {spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f}) |", flush=True)


class _Reference:
    """Epochs of torchvision's reference pipeline for ImageNet, with batches copied to the device."""

    def __init__(self, folder: Path, workers: int, device: torch.device) -> None:
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIDE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET.mean, IMAGENET.std),
            ]
        )
        self._device = device
        self._loader = DataLoader(
            datasets.ImageFolder(str(folder), transform),
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._loader:
            yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


def write_photos(root: Path, count: int, scale: int) -> None:
    """Random smooth JPEGs of about 400x300 pixels, times `scale`, in four classes: `count` for training, a tenth as many for validation."""
    random = np.random.default_rng(0)
    for split, images in (("train", count), ("val", max(4, count // 10))):
        for number in range(images):
            width, height = (scale * int(random.integers(*bounds)) for bounds in ((340, 461), (260, 341)))
            coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = smooth + random.integers(-12, 13, (height, width, 1))
            path = root / split / f"class{number % 4}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def _timed(action: Callable[[], object], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


if __name__ == "__main__":
    main()
