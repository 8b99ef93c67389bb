"""What `prunetrain bench` measures with: rounds, memory, and profiles of steps with their MACs and bytes, by hand."""

import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import attention, auxiliary, chain, concat, depthwise, gate, gating, layer_norm, residual, shuffle, windows
from sketch import Sketch
from torch.utils._python_dispatch import TorchDispatchMode

from prunetrain.graph.costs import costs, step_macs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.training.benchmarking import rounds
from prunetrain.training.benchmarking.conditions import Conditions, device_name, threads
from prunetrain.training.benchmarking.measuring import measure
from prunetrain.training.benchmarking.memory import peak_memory
from prunetrain.training.benchmarking.peaks import Peaks, matmul_at_conv_precision
from prunetrain.training.benchmarking.profiling import profile_steps, step_names
from prunetrain.training.benchmarking.rounds import Spread, ratios, time_in_turn
from prunetrain.training.benchmarking.steps import Inference, LassoStep, TrainingStep

CPU = torch.device("cpu")
FLOAT32 = Conditions(CPU, 2)
BFLOAT16 = Conditions(CPU, 2, "bfloat16", channels_last=True)


def test_spread() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert ratios([1.0, 3.0], [2.0, 2.0]) == [0.5, 1.5]


def test_actions_take_turns_and_short_ones_are_repeated() -> None:
    """On a clock by hand: a takes 30 ms, b 6 ms, so that b is done four times a round."""
    now, order = [0.0], []

    def action(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    actions = [lambda: action("a", 0.03), lambda: action("b", 0.006)]
    seconds = time_in_turn(actions, rounds=2, wait=lambda: None, clock=lambda: now[0], warmup=1)
    assert "".join(order) == "ab" + 2 * "abbbb"
    assert seconds[0] == pytest.approx([0.03, 0.03])
    assert seconds[1] == pytest.approx([0.006, 0.006])


def test_one_cpu_thread_is_timed_by_cpu_time() -> None:
    """Sleeping is what a process does while others compute: it counts only where threads share the work."""

    def slept() -> float:
        start = FLOAT32.clock()
        time.sleep(0.05)
        return FLOAT32.clock() - start

    with threads(1):
        assert FLOAT32.is_single_threaded()
        assert slept() < 0.04
    with threads(2):
        assert not FLOAT32.is_single_threaded()
        assert slept() >= 0.05
    assert not Conditions(torch.device("cuda"), 2).is_single_threaded()


def test_an_action_without_duration_is_not_repeated_for_ever() -> None:
    assert rounds._repeats(0.0) == rounds._repeats(1e-7) == 50
    assert rounds._repeats(1.0) == 1


def test_peak_memory_by_hand() -> None:
    """A weight of 4,000 bytes; then, twice, 800 bytes and 1,600 bytes at once, and 400 after these are gone."""

    def prepare() -> object:
        weight = torch.zeros(1000)

        def action() -> None:
            small = torch.zeros(200)
            large = small.repeat(2)
            view = large.view(2, -1)
            del small, large, view
            torch.zeros(100)
            assert weight.numel() == 1000

        return action

    assert peak_memory(prepare, CPU) == 4000 + 800 + 1600  # type: ignore[arg-type]


def test_memory_of_training_grows_with_weights_and_images() -> None:
    graph = residual()
    narrow = residual(stem=4, inner=(4, 8), wide=8)
    peaks = [peak_memory(lambda: TrainingStep(graph, FLOAT32.with_batch(size)), CPU) for size in (2, 4)]  # noqa: B023
    assert peaks[0] > 3 * 4 * costs(graph).params  # weights, gradients, momentum
    assert peaks[0] < peaks[1] < 2 * peaks[0]
    assert peak_memory(lambda: TrainingStep(narrow, FLOAT32), CPU) < peaks[0]
    assert peak_memory(lambda: TrainingStep(graph, FLOAT32), CPU) == peaks[0]


def test_a_profile_by_hand() -> None:
    """conv1 (2 -> 4, 1x1) on 3x3 images, ReLU, x + x, flatten, fc (36 -> 5); two images, float32."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.call("F.relu", net.conv("conv1", net.x, 4, kernel_size=1, bias=False))
    x = net.call("+", x, x)
    graph = net.graph(net.linear("fc", net.call("torch.flatten", x, start_dim=1), 5))
    (profiles,) = profile_steps([graph], FLOAT32, rounds=3)
    assert [profile.name for profile in profiles] == [
        "conv1",
        "F.relu after conv1",
        "+ after conv1",
        "torch.flatten after conv1",
        "fc",
    ]
    assert [profile.kind for profile in profiles] == ["Conv2d", "F.relu", "+", "torch.flatten", "Linear"]
    assert [profile.output_shape for profile in profiles] == [(4, 3, 3)] * 3 + [(36,), (5,)]
    # nobody needs the gradient of the images: forward and the weight's gradient for conv1, one pass more for fc
    assert [profile.macs for profile in profiles] == [2 * 2 * 72, 0, 0, 0, 2 * 3 * 180]
    image, small, weight, linear = 4 * 2 * 18, 4 * 2 * 36, 4 * 8, 4 * 180
    assert profiles[0].moved == (image + weight + small) + (small + (image + weight) + weight)
    assert profiles[1].moved == (small + small) + (small + small + small)  # relu keeps its output
    assert profiles[3].moved == 0
    bias, logits = 4 * 5, 4 * 2 * 5
    assert profiles[4].moved == (small + linear + bias + logits) + (logits + (small + linear) + (small + linear + bias))
    assert all(len(profile.seconds) == 3 for profile in profiles)
    assert all(profile.forward[0] > 0 for profile in profiles)


class Event:
    """Stands in for an event of a GPU, whose clock gives as many milliseconds as operations were done."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = Event.done

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, last: "Event") -> float:
        return float(last.time - self.time)

    done = 0


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Event.done += 1
        return func(*args, **(kwargs or {}))


def test_a_gpu_does_steps_in_a_row_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes and MACs are those of one time."""
    net = Sketch("Toy", (2, 3, 3))
    graph = net.graph(net.classifier("fc", net.call("F.relu", net.conv("conv1", net.x, 4, kernel_size=1, bias=False)), 5))
    (once,) = profile_steps([graph], FLOAT32, rounds=1)
    monkeypatch.setattr(Conditions, "is_asynchronous", True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    with Counted():
        (in_a_row,) = profile_steps([graph], FLOAT32, rounds=2)
    assert [replace(step, forward=(), backward=()) for step in in_a_row] == [replace(step, forward=(), backward=()) for step in once]
    assert in_a_row[0].forward == (0.001, 0.001)  # one operation: the mean of ten times
    assert all(0.001 <= seconds <= 0.01 for step in in_a_row for seconds in step.backward)


def test_a_gpus_peak_is_in_the_precision_of_convolutions() -> None:
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision
    assert before != convolutions.fp32_precision  # torch's defaults
    with matmul_at_conv_precision(torch.device("cuda")):
        assert matmul.fp32_precision == convolutions.fp32_precision
    assert matmul.fp32_precision == before
    with matmul_at_conv_precision(CPU):
        assert matmul.fp32_precision == before


def test_bfloat16_moves_half_the_bytes_of_an_activation() -> None:
    (exact,), (mixed,) = (profile_steps([residual()], setting, rounds=1) for setting in (FLOAT32, BFLOAT16))
    relu = next(number for number, profile in enumerate(exact) if profile.kind == "F.relu")
    assert 2 * mixed[relu].moved == exact[relu].moved


def test_names_of_steps_are_unique() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.call("F.relu", net.call("F.relu", net.conv("conv1", net.call("F.relu", net.x), 4, kernel_size=1)))
    graph = net.graph(net.classifier("fc", x, 5))
    assert step_names(graph)[:4] == ["F.relu after input", "conv1", "F.relu after conv1", "F.relu after conv1 (2)"]


@pytest.mark.parametrize("make", [attention, auxiliary, chain, concat, depthwise, gate, gating, layer_norm, shuffle, windows])
def test_any_network_can_be_profiled(make: object) -> None:
    graph: LayerGraph = make()  # type: ignore[operator]
    (profiles,) = profile_steps([graph], FLOAT32, rounds=1)
    assert [profile.name for profile in profiles] == step_names(graph)
    assert len(step_macs(graph)) == len(graph.steps)
    assert sum(step_macs(graph)) >= costs(graph).macs  # auxiliary heads count in training


def test_measuring_leaves_torch_as_it_is() -> None:
    state = torch.get_rng_state()
    measured = measure([chain(), residual()], FLOAT32, rounds=2)
    assert [len(m.train_step) for m in measured] == [2, 2]
    assert all(min(m.train_step + m.inference + m.inference_one + m.lasso_step) > 0 for m in measured)
    profile_steps([chain()], BFLOAT16, rounds=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_trains_and_inference_and_lasso_do_not() -> None:
    step = TrainingStep(residual(), FLOAT32)
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    step()
    after = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    assert all(parameter.grad is None for parameter in step.model.parameters())
    Inference(residual(), BFLOAT16)()
    LassoStep(residual(), step.model)()
    for name, tensor in step.model.state_dict().items():
        torch.testing.assert_close(tensor, after[name])


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_the_roofline_is_the_slower_of_two() -> None:
    peaks = Peaks(macs_per_second=100.0, bytes_per_second=10.0)
    assert peaks.least_seconds(200, 10) == 2.0
    assert peaks.least_seconds(200, 50) == 5.0


def test_the_machine_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_name(CPU)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert isinstance(device_name(CPU), str)


_FAULTS = """
import resource, torch
from prunetrain.training.benchmarking.allocator import keep_freed_memory

def faults_of_twenty_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**26, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left_alone = faults_of_twenty_steps()
keep_freed_memory()
faults_of_twenty_steps()
print(left_alone, faults_of_twenty_steps())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_freed_memory_is_kept() -> None:
    """In a process of its own, which has 64 MB for a moment again and again."""
    ended = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    left_alone, kept = map(int, ended.stdout.split())
    assert kept < left_alone / 10  # pages that the system cleared anew
