"""What tracing works out without torch is what torch says, and what it has to do once it does once."""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prunetrain.graph.trace import trace
from prunetrain.graph.tracing.layers import layer_of
from prunetrain.graph.tracing.shortcuts import empty_like_of_shape, result_without_torch

JOINS: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "channels": ([(7, 3, 4, 4), (7, 5, 4, 4), (7, 1, 4, 4)], {"dim": 1}),
    "from the end": ([(7, 3, 4), (7, 3, 2)], {"dim": -1}),
    "the batch": ([(7, 3), (2, 3)], {}),
    "one": ([(7, 3)], {"dim": 1}),
}
LEFT_TO_TORCH: dict[str, tuple[list[Tensor], dict[str, Any]]] = {
    "other sizes": ([torch.empty(7, 3, 4), torch.empty(7, 3, 5)], {"dim": 1}),
    "other ranks": ([torch.empty(0), torch.empty(7, 3)], {"dim": 0}),
    "two types": ([torch.empty(7, 3), torch.empty(7, 3, dtype=torch.int64)], {"dim": 1}),
    "another memory format": ([torch.empty(7, 3, 4, 4).contiguous(memory_format=torch.channels_last)], {"dim": 1}),
    "gradients": ([torch.empty(7, 3, requires_grad=True)], {"dim": 1}),
    "no such dimension": ([torch.empty(7, 3)], {"dim": 2}),
    "nothing": ([], {"dim": 1}),
    "out": ([torch.empty(7, 3)], {"dim": 1, "out": torch.empty(7, 3)}),
}


@pytest.mark.parametrize("case", JOINS)
def test_join_as_torch_does_it(case: str) -> None:
    shapes, options = JOINS[case]
    with FakeTensorMode():
        tensors = [torch.empty(shape) for shape in shapes]
        wanted = torch.cat(tensors, **options)
        made = result_without_torch("cat", (tensors,), options)
    assert made is not None
    assert (type(made), made.shape, made.stride(), made.dtype, made.device) == (
        type(wanted),
        wanted.shape,
        wanted.stride(),
        wanted.dtype,
        wanted.device,
    )


@pytest.mark.parametrize("case", LEFT_TO_TORCH)
def test_join_left_to_torch(case: str) -> None:
    tensors, options = LEFT_TO_TORCH[case]
    assert result_without_torch("cat", (tensors,), options) is None


def test_empty_tensor_like_another() -> None:
    with FakeTensorMode():
        tensor = torch.empty(7, 3, dtype=torch.float64)
        made, wanted = empty_like_of_shape(tensor, (7, 5, 2)), tensor.new_empty(7, 5, 2)
    assert type(made) is type(wanted)
    assert (made.shape, made.stride(), made.dtype, made.device) == (wanted.shape, wanted.stride(), wanted.dtype, wanted.device)
    assert made.untyped_storage()._cdata != wanted.untyped_storage()._cdata
    assert type(empty_like_of_shape(torch.empty(2), (3,))) is Tensor


class Counting(nn.Module):
    """A chain of convs that counts its forward passes where no snapshot undoes it."""

    def __init__(self, depth: int, passes: list[bool]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(depth))
        self.count = lambda: passes.append(self.training)

    def forward(self, x: Tensor) -> Tensor:
        self.count()
        for conv in self.convs:
            x = conv(x)
        return x


def test_two_passes_in_each_mode() -> None:
    passes: list[bool] = []
    trace(Counting(2, passes), torch.empty(1, 3, 4, 4))
    assert passes == [True, True, False, False]


@pytest.mark.parametrize("asks", [lambda x: x.shape[1], lambda x: x.size(0), len, lambda x: x.numel()])
def test_a_pass_of_one_image_if_forward_asks_for_a_size(asks: Callable[[Tensor], int]) -> None:
    passes: list[bool] = []
    model = Counting(2, passes)
    model.register_forward_pre_hook(lambda module, images: bool(asks(*images)) and None)
    trace(model, torch.empty(1, 3, 4, 4))
    assert passes == [True, True, False, False, False]


def test_signature_of_a_class_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer_of(nn.Conv2d(3, 3, 1))
    read: Counter[object] = Counter()
    signature = inspect.signature

    def counted(function: Any) -> inspect.Signature:
        read[function] += 1
        return signature(function)

    monkeypatch.setattr(inspect, "signature", counted)
    trace(Counting(5, []), torch.empty(1, 3, 4, 4))
    assert read[nn.Conv2d] == 0
