"""The device of a process, on a machine whose GPUs are pretended: nothing here computes on one."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.training import environment
from prunetrain.training.environment import check_devices, choose_device

CUDA = TrainConfig(device="cuda")


class Machine:
    """So many GPUs, of which torch uses those that are not broken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpus, self.touched, self.current = 0, False, 0
        self.broken: Exception | None = None
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.gpus)
        monkeypatch.setattr(torch.cuda, "is_available", self.is_available)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(self, "current", device.index))
        monkeypatch.setattr(torch, "ones", self.ones)
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    def is_available(self) -> bool:
        if self.broken is not None:
            warnings.warn(f"CUDA initialization: {self.broken}", stacklevel=2)
        return self.gpus > 0 and self.broken is None

    def ones(self, size: int, device: torch.device) -> None:
        self.touched |= device.type == "cuda"
        if device.type == "cuda" and self.broken is not None:
            raise self.broken
        if device.type == "cuda" and (device.index or 0) >= self.gpus:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal\nmore of it")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    environment._usable_gpus.cache_clear()
    yield Machine(monkeypatch)
    environment._usable_gpus.cache_clear()


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        action()
    return str(error.value)


def test_the_gpu_has_a_number_and_becomes_the_current_one(machine: Machine) -> None:
    machine.gpus, machine.current = 4, 2
    assert choose_device(CUDA) == torch.device("cuda", 2)
    assert choose_device(TrainConfig(device="auto")) == torch.device("cuda", 2)
    assert choose_device(TrainConfig(device="cuda:1")) == torch.device("cuda", 1)
    assert machine.current == 1
    assert choose_device(TrainConfig(device="cpu")) == torch.device("cpu")
    assert machine.current == 1


@pytest.mark.parametrize(("gpus", "number"), [(4, 3), (1, 0)])
def test_a_worker_has_the_gpu_of_its_number_or_the_only_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, gpus: int, number: int
) -> None:
    """SLURM shows each process its own GPU, as number 0, with --gpus-per-task=1."""
    for name, value in {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    machine.gpus = gpus
    assert choose_device(CUDA) == torch.device("cuda", number)


def test_a_gpu_that_cannot_be_used_is_told_with_the_drivers_reason(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.gpus = 1
    assert refusal(lambda: choose_device(TrainConfig(device="cuda:1"))) == (
        "device 'cuda:1' is not on this machine: use auto, cpu, or cuda where there is a GPU (CUDA error: invalid device ordinal)"
    )
    machine.broken = RuntimeError("The NVIDIA driver on your system is too old\nmore of it")
    assert refusal(lambda: choose_device(CUDA)) == (
        "device 'cuda' cannot be used: use another, or --device cpu (The NVIDIA driver on your system is too old)"
    )
    assert [choose_device(TrainConfig(device="auto")) for _ in range(2)] == [torch.device("cpu")] * 2
    assert capfd.readouterr().err == (
        "torch cannot use this machine's GPU, so the CPU is used (CUDA initialization: The NVIDIA driver on your system is too old)\n"
    )


def test_a_machine_without_gpu_says_nothing(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    assert choose_device(TrainConfig(device="auto")) == torch.device("cpu")
    assert capfd.readouterr().err == ""


def test_the_launcher_counts_gpus_and_touches_none(machine: Machine) -> None:
    machine.gpus = 2
    for device in ("cuda", "auto", "cpu"):
        check_devices(TrainConfig(device=device), 2)
    assert not machine.touched
    assert refusal(lambda: check_devices(CUDA, 3)) == ("3 workers need a GPU each, and this machine has 2: use --gpus 2, or --device cpu")
    assert refusal(lambda: check_devices(TrainConfig(device="cuda:1"), 2)) == (
        "device 'cuda:1' is one GPU, and several workers need one each: use --device cuda"
    )
    assert refusal(lambda: check_devices(TrainConfig(device="abacus"), 2)).startswith("device 'abacus' is not on this machine: ")
    assert not machine.touched
    machine.gpus = 0
    check_devices(TrainConfig(device="auto"), 2)
    assert not machine.touched
