"""The estimate of a training step's memory: the counter by hand, and against what torch's allocator really gave out, network by network."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import zoo_graph
from runs import settings, write_images
from torch.profiler import ProfilerActivity, profile

from prunetrain import zoo
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.paths import RunPaths
from prunetrain.training import memory
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.memory import LiveBytes
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.training.creation import new_state
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.memory import OUT_OF_MEMORY, available_memory, is_measured, release_memory, step_memory
from prunetrain.training.state import TrainState

CPU = torch.device("cpu")
DEEP = {"resnet32", "resnet44", "resnet56", "resnet110"}  # more of resnet20's blocks, and slow
WORKSPACE = 2**18  # bytes that an operation may take inside itself, beside copies of its weight and its weight's gradient
BFLOAT16 = {"amp": "bfloat16", "channels_last": True, "optimizer": "adamw"}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> TrainState:
    folder = tmp_path_factory.mktemp("run")
    config = settings(write_images(folder / "images.npz"), folder)
    return new_state(config, RunPaths(folder, "x"), load_data(config, CPU), Environment(CPU))


def allocated(state: TrainState, graph: LayerGraph, images: int, file: Path) -> int:
    """Bytes that torch's allocator had given out at the peak of two real steps, the network included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step = TrainingStep(graph, Conditions.of(state.config, CPU).with_batch(images))
        step()
        step()
    profiler.export_chrome_trace(str(file))
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def test_counter_by_hand() -> None:
    with LiveBytes() as live:
        a = torch.zeros(100)  # 400 bytes
        b = a.view(10, 10).t()[2:]  # the same memory
        assert live.peak == 400
        c = a + 1
        assert live.peak == 800
        del a, c
        d = torch.zeros(50)  # `b` keeps the memory of `a`
        assert live.peak == 800
        e = torch.zeros(75, dtype=torch.int64)
        assert live.peak == 400 + 200 + 600
        del b, d, e
        torch.zeros(300)
        assert live.peak == 1200
    torch.zeros(1000)
    assert live.peak == 1200


def test_linear_layer_by_hand(state: TrainState) -> None:
    graph = state.graph  # LeNet-300-100 on 1x8x8 images of 4 classes
    weights = 4 * (64 * 300 + 300 + 300 * 100 + 100 + 100 * 4 + 4)
    one, two = (step_memory(state, graph, images) for images in (1000, 2000))
    # At the peak: images, labels, both hidden layers before and after ReLU, logits' log-softmax, its and the hidden layers' gradients.
    forward = 4 * 64 + 8 + 4 * 2 * (300 + 100)
    assert forward * 1000 < two - one < (forward + 4 * 3 * 300) * 1000
    assert one > 2 * weights + forward * 1000  # weights and momentum


@pytest.mark.parametrize("name", sorted(set(zoo.names()) - DEEP))
def test_estimate_is_what_torch_allocates(state: TrainState, tmp_path: Path, name: str) -> None:
    graph = zoo_graph(name, width=16)
    estimate, real = step_memory(state, graph, 16), allocated(state, graph, 16, tmp_path / "trace.json")
    assert estimate <= real <= estimate * 1.07


@pytest.mark.parametrize(
    ("name", "width", "changes"),
    [
        ("resnet20", 64, BFLOAT16),  # dense
        ("vgg8", 16, BFLOAT16),
        ("mobilenet-v1-cifar", 16, BFLOAT16),
        ("lenet5", 500, {"momentum": 0.0}),  # dense
        ("vgg8", 512, {"channels_last": True}),  # dense
    ],
)
def test_every_precision(state: TrainState, tmp_path: Path, name: str, width: int, changes: dict[str, Any]) -> None:
    other = replace(state, config=replace(state.config, **changes))
    graph = zoo_graph(name, width=width)
    estimate, real = step_memory(other, graph, 32), allocated(other, graph, 32, tmp_path / "trace.json")
    largest = max(cost.params for cost in costs(graph).layers)
    assert estimate <= real <= estimate * 1.07 + WORKSPACE + 2 * 4 * largest


def test_estimate_draws_no_random_numbers_and_takes_no_memory(state: TrainState) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert step_memory(state, zoo_graph("resnet20", width=16), 10**9) > 10**13
    assert torch.equal(torch.rand(3), expected)


def test_cpu_estimates_and_has_no_limit_of_its_own(state: TrainState) -> None:
    assert not is_measured(state)
    assert available_memory(state) == float("inf")


class Allocator:
    """Stands in for a GPU of 1,000 bytes with 100 in use of the 250 that this process holds, and 300 held by others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak = 0
        self.released = 0
        for name, answer in {"mem_get_info": (450, 1000), "memory_reserved": 250, "memory_allocated": 100}.items():
            monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(self, "peak", 100))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: setattr(self, "released", self.released + 1))


def test_gpu_is_measured(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch)
    on_gpu = replace(state, environment=Environment(torch.device("cuda")))

    def training_step(graph: LayerGraph, conditions: Conditions) -> Callable[[], None]:
        """Its first time takes more, for kernels that are tried."""
        taken = iter((10, 3))

        def step() -> None:
            assert torch.backends.cudnn.benchmark
            allocator.peak = 100 + next(taken) * conditions.batch_size

        return step

    monkeypatch.setattr(memory, "TrainingStep", training_step)
    assert is_measured(on_gpu)
    assert step_memory(on_gpu, state.graph, 50) == 150
    assert not torch.backends.cudnn.benchmark
    assert (allocator.peak, allocator.released) == (100, 1)  # what the trial took is given back, and forgotten
    assert available_memory(on_gpu) == 450 + (250 - 100) - 50  # a twentieth stays free


def test_gpu_gives_back_what_is_no_longer_used(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch)
    release_memory(state)
    assert allocator.released == 0
    release_memory(replace(state, environment=Environment(torch.device("cuda"))))
    assert allocator.released == 1


def failing(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("GET was unable to find an engine to execute this computation")]
)
def test_gpu_that_is_too_small(state: TrainState, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    allocator = Allocator(monkeypatch)
    monkeypatch.setattr(memory, "TrainingStep", failing(error))
    on_gpu = replace(state, environment=Environment(torch.device("cuda")))
    assert step_memory(on_gpu, state.graph, 50) == OUT_OF_MEMORY
    assert (allocator.peak, allocator.released) == (100, 1)


def test_gpu_that_is_broken(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    Allocator(monkeypatch)
    monkeypatch.setattr(memory, "TrainingStep", failing(torch.AcceleratorError("CUDA error: unspecified launch failure")))
    with pytest.raises(torch.AcceleratorError):
        step_memory(replace(state, environment=Environment(torch.device("cuda"))), state.graph, 50)
