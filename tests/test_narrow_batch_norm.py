"""BatchNorm over rows: what torch's own computes, within rounding of double precision, and taken only where it is meant to be."""

import copy
from pathlib import Path

import pytest
import torch
from runs import settings, write_images
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.paths import RunPaths
from prunetrain.training import narrow_batch_norm
from prunetrain.training.benchmarking.conditions import Conditions, threads
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.creation import new_state
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.events import Observer
from prunetrain.training.narrow_batch_norm import faster_over_rows, over_rows, speed_up_batch_norm_
from prunetrain.training.run import start_run

CPU = torch.device("cpu")
SHAPES = [(32, 6, 23, 25), (64, 12, 16, 16), (100, 20, 20, 9)]
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of images, relative to the largest value


def batch_norms(channels: int) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """One as torch has it, and one with the same numbers that may go over rows."""
    plain, quick = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    nn.init.uniform_(plain.weight, -1, 1)
    nn.init.normal_(plain.bias)
    quick.load_state_dict(plain.state_dict())
    speed_up_batch_norm_(quick, CPU)
    return plain, quick


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, mean: float = 5.0, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(shape) + mean).to(dtype).to(memory_format=torch.channels_last)


def step(module: nn.Module, images: Tensor, gradient: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """A training step: output and the images' gradient; the parameters' gradients and the buffers."""
    images = images.clone().requires_grad_()
    module.zero_grad()
    output = module(images)
    output.backward(gradient)
    assert images.grad is not None
    parameters = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return [output.detach(), images.grad], [*parameters, *(buffer.clone() for buffer in module.buffers())]


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest, relative to the largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images that went over rows."""
    shapes: list[tuple[int, ...]] = []

    def noted(images: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shapes.append(tuple(images.shape))
        return over_rows(images, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(narrow_batch_norm, "over_rows", noted)
    return shapes


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_are_those_in_double_precision(shape: tuple[int, ...], dtype: torch.dtype, taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    plain, quick = batch_norms(shape[1])
    double = copy.deepcopy(plain).double()
    for _ in range(3):
        images, gradient = batch(shape, dtype), batch(shape, dtype, mean=0.5)
        (results, sums), (_, plain_sums) = step(quick, images, gradient), step(plain, images, gradient)
        exact, exact_sums = step(double, images.double(), gradient.double())
        assert results[0].dtype == results[1].dtype == dtype
        assert all(result.is_contiguous(memory_format=torch.channels_last) for result in results)
        assert max(map(error, results, exact)) < ROUNDING[dtype]
        assert max(map(error, sums, exact_sums)) < 2 * max(map(error, plain_sums, exact_sums))
    assert taken == 3 * [shape]
    assert quick.num_batches_tracked == 3


def test_a_variance_far_from_zero_keeps_its_digits() -> None:
    """Squares of the values less the square of the mean would leave nothing of it."""
    torch.manual_seed(0)
    images = batch((64, 12, 16, 16), mean=1e4, scale=1.0)
    output, mean, variance = over_rows(images, torch.ones(12), torch.zeros(12), 0.0)
    exact = images.double().var((0, 2, 3), correction=0)
    assert error(mean, images.double().mean((0, 2, 3))) < 1e-6
    assert error(variance, exact) < 1e-3
    assert abs(float(output.std()) - 1) < 1e-3


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_a_gradient_far_from_zero_keeps_its_digits(dtype: torch.dtype, mean: float) -> None:
    """Its mean goes out of the result; rounded with it in bfloat16, the rest would be lost."""
    torch.manual_seed(0)
    (plain, quick), images, gradient = batch_norms(12), batch((64, 12, 16, 16), dtype), batch((64, 12, 16, 16), dtype, mean, 1.0)
    double = copy.deepcopy(plain).double()
    ours, torchs, exact = (
        step(module, images.to(kind), gradient.to(kind))[0][1].double()
        for module, kind in ((quick, dtype), (plain, dtype), (double, torch.float64))
    )
    assert (ours - exact).norm() < 1.5 * (torchs - exact).norm()


def test_gradients_in_another_memory_format(taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    (plain, quick), images = batch_norms(12), batch((64, 12, 16, 16))
    for gradient in (
        torch.randn(64, 12, 16, 16),
        torch.randn(64, 12, 1, 1).expand(64, 12, 16, 16),
        torch.randn(12, 64, 16, 16).transpose(0, 1),
    ):
        (found, _), (wanted, _) = step(quick, images, gradient), step(plain.double(), images.double(), gradient.double())
        assert max(map(error, found, wanted)) < ROUNDING[torch.float32]
    assert len(taken) == 3


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", ["images", "gradient"])
def test_what_is_not_finite_stays_so_and_where_it_was(place: str, value: float, taken: list[tuple[int, ...]]) -> None:
    """GradScaler and the check for runs that diverge look for it."""
    torch.manual_seed(0)
    (plain, quick), images, gradient = batch_norms(12), batch((64, 12, 16, 16)), batch((64, 12, 16, 16))
    {"images": images, "gradient": gradient}[place][3, 5, 7, 9] = value
    found, wanted = (step(module, images, gradient) for module in (quick, plain))
    for ours, theirs in zip(found[0] + found[1], wanted[0] + wanted[1], strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert not found[0][1].isfinite().all()
    assert len(taken) == 1


def test_the_result_can_be_changed_in_place(taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    (plain, quick), images = batch_norms(12), batch((64, 12, 16, 16))
    gradients = []
    for module in (plain, quick):
        output = module(images)
        output += 1
        F.relu(output, inplace=True).square().mean().backward()
        gradients.append(module.weight.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert len(taken) == 1


def test_images_without_a_gradient_and_a_frozen_scale(taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    (plain, quick), images, gradient = batch_norms(12), batch((64, 12, 16, 16)), batch((64, 12, 16, 16))
    for module in (plain, quick):
        module.weight.requires_grad_(False)
        module(images).backward(gradient)
    assert quick.weight.grad is None
    assert quick.bias.grad is not None and plain.bias.grad is not None
    assert torch.allclose(quick.bias.grad, plain.bias.grad, rtol=1e-5, atol=1e-2)  # sums of 2**14 numbers
    with torch.no_grad():
        quick(images)
    assert len(taken) == 2


ELSEWHERE = {
    "16 channels": (batch((64, 16, 16, 16)), {}),
    "61 channels": (batch((64, 61, 16, 16)), {}),
    "one channel": (batch((64, 1, 16, 16)), {}),
    "few pixels": (batch((63, 12, 16, 16)), {}),
    "pictures of one pixel": (batch((2**14, 12, 1, 1)), {}),
    "channels first": (batch((64, 12, 16, 16)).contiguous(), {}),
    "no scale": (batch((64, 12, 16, 16)), {"affine": False}),
    "no running statistics": (batch((64, 12, 16, 16)), {"track_running_stats": False}),
    "a momentum that falls": (batch((64, 12, 16, 16)), {"momentum": None}),
    "double precision": (batch((64, 12, 16, 16), torch.float64), {"dtype": torch.float64}),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_elsewhere_it_is_torchs(case: str, taken: list[tuple[int, ...]]) -> None:
    images, arguments = ELSEWHERE[case]
    plain, quick = (nn.BatchNorm2d(images.shape[1], **arguments) for _ in range(2))  # type: ignore[arg-type]
    speed_up_batch_norm_(quick, CPU)
    found, wanted = (step(module, images, images.flip(0)) for module in (quick, plain))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[0] + found[1], wanted[0] + wanted[1], strict=True))
    assert taken == []


def test_in_eval_mode_it_is_torchs(taken: list[tuple[int, ...]]) -> None:
    (plain, quick), images = batch_norms(12), batch((64, 12, 16, 16))
    assert torch.equal(quick.eval()(images), plain.eval()(images))
    assert taken == []


def test_statistics_that_are_switched_off_later_stay(taken: list[tuple[int, ...]]) -> None:
    _, quick = batch_norms(12)
    quick.track_running_stats = False
    before = quick.running_mean.clone()  # type: ignore[union-attr]
    quick(batch((64, 12, 16, 16)))
    assert torch.equal(quick.running_mean, before)  # type: ignore[arg-type]
    assert taken == []


def test_a_wrong_number_of_channels_is_told_as_torch_tells_it() -> None:
    (plain, quick), images = batch_norms(12), batch((64, 13, 16, 16))
    messages = []
    for module in (plain, quick):
        with pytest.raises(RuntimeError) as raised:
            module(images)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("dtype", "number", "channels"),
    [
        (torch.float32, 1, {4, 8, 12, 20, 28, 31}),
        (torch.float32, 2, {4, 8, 12, 20, 24, 28, 31, 33, 47}),
        (torch.bfloat16, 1, {4, 8, 12, 20, 24, 28, 31, 33, 47}),
        (torch.bfloat16, 2, {4, 8, 12, 20, 24, 28, 31, 33, 40, 47, 49, 63}),
    ],
)
def test_of_which_counts(dtype: torch.dtype, number: int, channels: set[int]) -> None:
    """More with threads, which share cache lines, and in half precision, whose vectors are longer."""
    with threads(number):
        counts = {
            count
            for count in range(1, 130)
            if faster_over_rows(torch.empty(64, count, 16, 16, dtype=dtype).to(memory_format=torch.channels_last), torch.ones(count))
        }
    assert counts >= channels
    assert not counts & {1, 16, 32, 48, 56, 64, 65, 100, 128}
    assert (24 in counts, 40 in counts, max(counts)) == (24 in channels, 40 in channels, max(channels))


def test_what_is_left_alone() -> None:
    class Own(nn.BatchNorm2d):
        pass

    network = nn.Sequential(Own(4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm2d(4)))
    for device, compiled in ((torch.device("cuda"), False), (CPU, True)):
        speed_up_batch_norm_(network, device, compiled=compiled)
        assert type(network[2][0]) is nn.BatchNorm2d
    before = network.state_dict()
    speed_up_batch_norm_(network, CPU)
    assert (type(network[0]), type(network[1])) == (Own, nn.BatchNorm1d)
    assert type(network[2][0]) is not nn.BatchNorm2d
    assert isinstance(network[2][0], nn.BatchNorm2d)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == tensor.data_ptr() for name, tensor in before.items())


NETWORK = """
from torch import nn

class Narrow(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4),
        )
"""


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch 2.11 about its compiler's own code
def test_who_puts_it_in(tmp_path: Path) -> None:
    """Runs and measurements alike, so that what is measured is what runs; not where the network is compiled."""
    (tmp_path / "narrow.py").write_text(NETWORK)
    images = write_images(tmp_path / "images.npz", side=16)
    for mode in ("off", "default"):
        config = settings(images, tmp_path, model=f"{tmp_path / 'narrow.py'}:Narrow", channels_last=True, compile=mode)
        state = new_state(config, RunPaths(tmp_path, f"run-{mode}"), load_data(config, CPU), Environment(CPU))
        conditions = Conditions.of(config, CPU)
        layer = conditions.prepare_for_training(nn.BatchNorm2d(4))
        for model in (state.model, conditions.build(state.graph), layer):
            kinds = {type(module).__name__ for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
            assert kinds == ({"BatchNorm2d"} if mode == "default" else {"_NarrowBatchNorm2d"})


def test_runs_take_it_and_come_to_the_same(tmp_path: Path, taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "narrow.py").write_text(NETWORK)
    images = write_images(tmp_path / "images.npz", side=16)
    weights = []
    for name in ("rows", "torchs"):
        config = settings(
            images,
            tmp_path,
            model=f"{tmp_path / 'narrow.py'}:Narrow",
            batch_size=64,
            lr=0.01,
            epochs=1,
            penalty_ratio=0.0,
            channels_last=True,
            name=name,
        )
        outcome = start_run(config, Observer())
        weights.append(load_checkpoint(outcome.run.last).model)
        monkeypatch.setattr(narrow_batch_norm, "faster_over_rows", lambda *_: False)
    assert taken == 5 * [(64, 12, 16, 16), (64, 20, 16, 16)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(tensor, weights[1][name], rtol=1e-5, atol=1e-6) for name, tensor in weights[0].items())
