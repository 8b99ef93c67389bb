"""Reshapes, slices and writes into them: one canonical form for all spellings, none that bakes a size it does not need."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced import IMAGES, check_same, network, targets

from prunetrain.errors import TraceError
from prunetrain.graph.layergraph import BatchSize, Step, Value
from prunetrain.graph.load import instantiate
from prunetrain.graph.parse import parse
from prunetrain.graph.trace import trace


def net(forward: Callable[[Tensor], Tensor]) -> nn.Module:
    return network(lambda self, x: forward(x))


X = Value(0)
CASES: list[tuple[Callable[[Tensor], Tensor], list[Step]]] = [
    (lambda x: x.view(x.shape[0], -1), [Step.make("torch.flatten", input=X, start_dim=1)]),
    (lambda x: x.reshape(x.size(0), 3, 64), [Step.make("torch.flatten", input=X, start_dim=2)]),
    (lambda x: x.view(-1, 8, 8), [Step.make("torch.flatten", input=X, end_dim=1)]),
    (lambda x: x.view(x.shape), []),
    (lambda x: x.view(len(x), 1, 3, 8, 8), [Step.make("torch.unsqueeze", input=X, dim=1)]),
    (lambda x: x[:, None], [Step.make("torch.unsqueeze", input=X, dim=1)]),
    (lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1), None),
    (lambda x: x.view(x.shape[0], 3, 2, 4, 8), [Step.make("torch.unflatten", input=X, dim=2, sizes=(2, 4))]),
    (lambda x: x.unflatten(3, (4, -1)), [Step.make("torch.unflatten", input=X, dim=3, sizes=(4, 2))]),
    (lambda x: x.reshape(x.shape[0], 12, 16), [Step.make("torch.reshape", input=X, shape=(-1, 12, 16))]),
    (lambda x: x.permute(0, 2, 3, 1), [Step.make("torch.permute", input=X, dims=(0, 2, 3, 1))]),
    (lambda x: torch.movedim(x, 1, -1), [Step.make("torch.permute", input=X, dims=(0, 2, 3, 1))]),
    (lambda x: torch.movedim(x, destination=-1, source=1), [Step.make("torch.permute", input=X, dims=(0, 2, 3, 1))]),
    (lambda x: x.permute([0, 1, 3, 2]), [Step.make("torch.transpose", input=X, dim0=2, dim1=3)]),
    (lambda x: x.transpose(-1, -2), [Step.make("torch.transpose", input=X, dim0=2, dim1=3)]),
    (lambda x: x.mT, [Step.make("torch.transpose", input=X, dim0=2, dim1=3)]),
    (lambda x: torch.swapaxes(x, 3, 2), [Step.make("torch.transpose", input=X, dim0=2, dim1=3)]),
    (lambda x: x[..., ::2], [Step.make("[:]", input=X, dim=3, step=2)]),
    (lambda x: x[:, 0], [Step.make("[]", input=X, dim=1, index=0)]),
    (lambda x: x[: x.shape[0], 1:], [Step.make("[:]", input=X, dim=1, start=1)]),
    (lambda x: x.narrow(1, 0, 2), [Step.make("[:]", input=X, dim=1, stop=2)]),
    (lambda x: x.chunk(2, dim=2)[1], [Step.make("[:]", input=X, dim=2, start=4)]),
    (lambda x: torch.split(x, [1, 2], 1)[0], [Step.make("[:]", input=X, dim=1, stop=1)]),
    (lambda x: x.unbind(1)[2], [Step.make("[]", input=X, dim=1, index=2)]),
    (lambda x: torch.tensor_split(x, 3, dim=1)[1], [Step.make("[:]", input=X, dim=1, start=1, stop=2)]),
    (lambda x: F.pad(x, (0, 0, 1, 2, 0, 0)), [Step.make("F.pad", input=X, pad=(0, 0, 1, 2))]),
    (lambda x: F.pad(x, (0, 0, 0, 0)), []),
    (lambda x: F.pad(x, (0, 0, 0, 0), mode="circular"), []),
    *[
        (lambda x, mode=mode: F.pad(x, (1, 2, 0, 0), mode=mode), [Step.make("F.pad", input=X, pad=(1, 2, 0, 0), mode=mode)])
        for mode in ("reflect", "replicate", "circular")
    ],
    (lambda x: F.pad(x.flatten(1, 2), (1, 2), mode="reflect").unflatten(1, (3, 8)), None),
    (lambda x: F.pad(x.flatten(2), (1, 2, 0, 0), mode="reflect").unflatten(1, (3, 1)), None),
    (lambda x: torch.cat([x]), []),
    (lambda x: torch.concat((x, x), dim=1), [Step.make("torch.cat", tensors=(X, X), dim=1)]),
    (lambda x: torch.cat([x, x.new_zeros(x.shape)], 1), [Step.make("F.pad", input=X, pad=(0, 0, 0, 0, 0, 3))]),
    (
        lambda x: torch.cat((torch.zeros(len(x), 3, 2, 8), x, x, torch.zeros_like(x)), -2),
        [Step.make("torch.cat", tensors=(X, X), dim=2), Step.make("F.pad", input=Value(1), pad=(0, 0, 2, 8))],
    ),
    (lambda x: torch.cat((torch.ones_like(x), x, torch.zeros_like(x), x), 1), None),
    (lambda x: x.repeat(1, 2, 1, 1), [Step.make("torch.cat", tensors=(X, X), dim=1)]),
    (lambda x: x.contiguous().clone().float().to(torch.float32).type_as(x), []),
    (lambda x: torch.roll(x, shifts=(1, -1), dims=(2, 3)), [Step.make("torch.roll", input=X, shifts=(1, -1), dims=(2, 3))]),
    # the tensor by its keyword
    (lambda x: torch.flatten(start_dim=1, input=x), [Step.make("torch.flatten", input=X, start_dim=1)]),
    (lambda x: torch.squeeze(input=torch.unsqueeze(input=x, dim=1)), None),
    (lambda x: torch.permute(input=x, dims=(0, 2, 3, 1)), [Step.make("torch.permute", input=X, dims=(0, 2, 3, 1))]),
    (lambda x: torch.chunk(input=x, chunks=2, dim=2)[1], [Step.make("[:]", input=X, dim=2, start=4)]),
    (lambda x: torch.split(dim=1, tensor=x, split_size_or_sections=2)[1], [Step.make("[:]", input=X, dim=1, start=2)]),
    (lambda x: torch.tile(input=x, dims=(1, 2, 1, 1)), [Step.make("torch.cat", tensors=(X, X), dim=1)]),
    (lambda x: torch.reciprocal(input=x.exp()), [Step.make("torch.exp", input=X), Step.make("/", input=1, other=Value(1))]),
    (lambda x: x + torch.zeros_like(input=x), None),
    (lambda x: torch.clamp_(input=x + 1, min=1.5), [Step.make("+", input=X, other=1), Step.make("torch.clamp", input=Value(1), min=1.5)]),
    (lambda x: (x + 1).fill_(value=2) * x, None),
    (lambda x: x * torch.where(condition=torch.tensor([True, False]), input=torch.ones(2), other=torch.zeros(2))[0], None),
    (lambda x: F.batch_norm(input=x, running_mean=torch.zeros(3), running_var=torch.ones(3)), None),
]


@pytest.mark.parametrize(("forward", "steps"), [case for case in CASES if case[1] is not None])
def test_the_canonical_step(forward: Callable[[Tensor], Tensor], steps: list[Step]) -> None:
    graph = trace(net(lambda x: forward(torch.sigmoid(x)).flatten(0, 1).unflatten(0, (x.shape[0], -1)).exp()), IMAGES)
    moved = [step.map_values(lambda value: Value(value.index + 1)) for step in steps]
    first, *others = targets(graph)[1 + len(steps) :]
    assert list(graph.steps[1 : 1 + len(steps)]) == moved
    assert first == "torch.flatten"
    assert others in (["torch.unflatten", "torch.exp"], ["torch.unsqueeze", "torch.exp"])


@pytest.mark.parametrize("forward", [case[0] for case in CASES])
def test_it_computes_the_same(forward: Callable[[Tensor], Tensor]) -> None:
    check_same(net(lambda x: forward(torch.sigmoid(x)).flatten(0, 1).unflatten(0, (x.shape[0], -1))), (2, 3, 8, 8))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(0, 1), (1, 0), "same"])
def test_a_conv_pads_one_dimension(mode: str, padding: tuple[int, int] | str) -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    graph = check_same(nn.Sequential(nn.Conv2d(3, 4, (1, 3), padding=padding, padding_mode=mode)), (2, 3, 8, 8))
    assert (targets(graph), graph.layers[0]["padding_mode"]) == (["self.layer_0"], mode)
    check_same(nn.Sequential(Doubled(3, 4, (1, 3), padding=padding, padding_mode=mode)), (2, 3, 8, 8))


def test_channel_shuffle_by_hand() -> None:
    def forward(x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    model = network(lambda self, x: forward(self.conv(x)), conv=nn.Conv2d(3, 6, 1))
    assert check_same(model, (2, 3, 8, 8), (1, 3, 5, 7)).steps[1] == Step.make("F.channel_shuffle", input=Value(1), groups=3)
    assert targets(trace(nn.Sequential(nn.ChannelShuffle(3)), IMAGES)) == ["F.channel_shuffle"]


@pytest.mark.parametrize("size_of", [lambda x: x.data.size(), lambda x: x.detach().shape], ids=["data", "detach"])
def test_a_tensor_without_gradients_may_be_asked_for_its_size(size_of: Callable[[Tensor], torch.Size]) -> None:
    model = network(lambda self, x: self.conv(x) / size_of(x)[-1], conv=nn.Conv2d(3, 6, 1))
    assert targets(check_same(model, (2, 3, 8, 8))) == ["self.conv", "/"]


def test_a_gate_that_is_expanded_is_left_to_the_operator() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, _, _ = x.shape
        gate = torch.sigmoid(x.mean((2, 3))).view(n, c, 1, 1)
        return x * gate.expand_as(x)

    graph = check_same(network(forward, conv=nn.Conv2d(3, 4, 1)), (2, 3, 8, 8), (1, 3, 6, 5))
    assert targets(graph) == ["self.conv", "torch.mean", "torch.sigmoid", "torch.unsqueeze", "torch.unsqueeze", "*"]


def test_two_gates_that_are_expanded_to_each_others_shape() -> None:
    """As in BAM (arXiv 1807.06514): one number for each channel times one for each pixel."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True).expand_as(x) * self.spatial(x).expand_as(x))

    graph = check_same(network(forward, conv=nn.Conv2d(3, 4, 1), spatial=nn.Conv2d(4, 1, 1)), (2, 3, 8, 8), (1, 3, 6, 5))
    assert targets(graph) == ["self.conv", "torch.mean", "self.spatial", "*", "torch.sigmoid", "*"]


def test_a_class_token_is_repeated_for_each_image() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1)

    graph = check_same(network(forward, conv=nn.Conv2d(3, 4, 1), token=nn.Parameter(torch.ones(1, 1, 4))), (2, 3, 8, 8), (1, 3, 4, 4))
    (repeated,) = (step for step in graph.steps if step.target == "torch.broadcast_to")
    assert repeated["size"] == (BatchSize(Value(3)), -1, -1)


def test_one_image_may_share_its_memory_where_several_cannot() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1).contiguous()  # (L, N, C), as sequences often come
        x = torch.sigmoid(x).transpose(0, 1).contiguous()
        return x.view(x.shape[0], -1)

    check_same(network(forward), (2, 3, 8, 8), (1, 3, 8, 8))


def test_what_fails_with_one_image_alone_is_no_branch() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.conv(x), 1).squeeze()  # (N, C), and (C,) of one image
        return self.bn(x).view(x.shape[0], 2, 2)

    model = network(forward, conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm1d(4))
    assert targets(check_same(model, (2, 3, 8, 8)))[-1] == "torch.unflatten"


def test_windows_of_the_images_become_rows() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        windows = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
        windows = self.conv(windows)
        return windows.view(n, h // 4, w // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)

    check_same(network(forward, conv=nn.Conv2d(3, 3, 3, padding=1)), (2, 3, 8, 8))


def test_writes_into_slices_become_new_tensors() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        bias = self.bias.clone()
        bias[1:2].zero_()
        x = self.conv(x) + bias.view(-1, 1, 1)
        x[:, 0, :2] = x[:, 1, 2:4]
        x[:, 2] += 1
        return x

    graph = check_same(network(forward, conv=nn.Conv2d(3, 3, 1), bias=nn.Parameter(torch.ones(3))), (2, 3, 8, 8))
    assert targets(graph).count("torch.slice_scatter") == 4


def test_positions_become_an_index() -> None:
    swapped = torch.tensor([2, 0, 1])
    for forward in (lambda self, x: x[:, swapped], lambda self, x: x[:, [2, 0, 1]], lambda self, x: x.index_select(1, swapped)):
        graph = check_same(network(forward), (2, 3, 8, 8))
        assert [(tensor.role, tensor.values) for tensor in graph.declared] == [("index", (2, 0, 1))]


@pytest.mark.parametrize("persistent", [True, False])
def test_positions_of_a_buffer_become_an_index(persistent: bool) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        swapped = torch.index_select(x, 1, self.order)
        return torch.index_add(x[:, self.order], 1, self.some, swapped[:, :2])

    model = network(forward)
    model.register_buffer("order", torch.tensor([2, 0, 1]), persistent=persistent)
    model.register_buffer("some", torch.tensor([1, 2]), persistent=persistent)
    graph = check_same(model, (2, 3, 8, 8))
    assert [(tensor.name, tensor.values) for tensor in graph.declared] == [("order", (2, 0, 1)), ("some", (1, 2))]


def test_negative_positions_of_a_buffer() -> None:
    model = network(lambda self, x: x[:, self.order])
    model.register_buffer("order", torch.tensor([2, -3, 1]))
    graph = check_same(model, (2, 3, 8, 8))
    assert [(tensor.role, tensor.values) for tensor in graph.declared] == [("index", (2, 0, 1))]


@pytest.mark.parametrize("name", ["gating", "shuffle"])
def test_a_file_with_positions_is_traced_as_it_is(name: str) -> None:
    source = (Path(__file__).parent / "golden" / f"{name}.py").read_text()
    graph = parse(source)
    assert trace(instantiate(source, "net.py"), torch.zeros(2, *graph.input_shape)) == graph


def test_positions_in_rows_and_a_single_one() -> None:
    positions = torch.tensor([[2, 0], [-1, 1]])
    assert targets(check_same(network(lambda self, x: x[:, positions]), (2, 3, 8, 8))) == ["torch.index_select", "torch.unflatten"]
    assert targets(check_same(network(lambda self, x: x[:, positions[0, 0]]), (2, 3, 8, 8))) == ["[]"]


def test_exponents_that_are_tensors() -> None:
    """Generalised-mean pooling, whose exponent is trained."""
    exponent = nn.Parameter(torch.full((1,), 3.0))
    for forward in (
        lambda self, x: (x.clamp(min=1e-6) ** self.p).mean((2, 3)) ** (1 / self.p),
        lambda self, x: x.clamp(1e-6).pow(exponent=self.p).mean((2, 3)).pow(self.p.reciprocal()),
    ):
        assert targets(check_same(network(forward, p=exponent), (2, 3, 8, 8))) == ["torch.clamp", "**", "torch.mean", "/", "**"]
    assert targets(check_same(network(lambda self, x: x.sigmoid() ** x), (2, 3, 8, 8))) == ["torch.sigmoid", "**"]


def test_the_largest_along_a_dimension() -> None:
    """As CBAM and maxout spell it: of equal numbers one gets the whole gradient."""
    pooled = network(lambda self, x: torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], 1))
    assert "torch.max" in targets(check_same(pooled, (2, 3, 8, 8)))
    ties = network(lambda self, x: F.relu(x).unflatten(1, (1, 3)).min(2, keepdim=True).values.squeeze(2))
    assert "torch.min" in targets(check_same(ties, (2, 3, 8, 8)))


def test_a_gate_of_the_second_half() -> None:
    """The same bits forwards; backwards torch's own function rounds differently."""
    graph = check_same(network(lambda self, x: F.glu(torch.cat([x, -x], 1), 1)), (2, 3, 8, 8), same_in_training=False)
    assert targets(graph)[-3:] == ["[:]", "torch.sigmoid", "*"]
    assert targets(check_same(network(lambda self, x: self.gate(x), gate=nn.GLU()), (2, 3, 8, 8), same_in_training=False))[-1] == "*"


def test_a_table_is_looked_up() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        bias = self.table[self.positions.view(-1)].view(8, 8, 3).permute(2, 0, 1).contiguous()
        return torch.softmax(x + bias.unsqueeze(0), dim=-1)

    positions = torch.arange(64).view(8, 8) % 10
    graph = check_same(network(forward, table=nn.Parameter(torch.rand(10, 3)), positions=positions), (2, 3, 8, 8))
    assert [(tensor.name, tensor.role, tensor.dtype) for tensor in graph.declared] == [
        ("positions", "buffer", "int64"),
        ("table", "parameter", "float32"),
    ]


def test_constants_become_buffers_or_numbers() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mask = x.new_zeros((8, 8))
        mask[:4, 4:] = 1
        mask = mask.masked_fill(mask != 0, -100.0)
        return (x + mask) * torch.tensor(2.0) + x.new_ones(x.shape[0], 1, 1, 8)

    graph = check_same(network(forward), (2, 3, 8, 8))
    assert [(tensor.name, tensor.role, tensor.shape) for tensor in graph.declared] == [
        ("constant", "buffer", (8, 8)),
        ("constant_2", "buffer", (1, 1, 1, 8)),
    ]
    assert targets(graph) == ["+", "*", "+"]
    assert graph.steps[1]["other"] == 2.0


def read_through_a_view(self: nn.Module, x: Tensor) -> Tensor:
    y = self.conv(x)
    flat = y.flatten(2)
    F.relu(y, inplace=True)
    return flat


def write_through_a_view(self: nn.Module, x: Tensor) -> Tensor:
    y = self.conv(x)
    torch.flatten(y, 2).mul_(torch.flatten(x, 2))
    return torch.flatten(y, 2)


@pytest.mark.parametrize("forward", [read_through_a_view, write_through_a_view], ids=lambda forward: forward.__name__)
def test_memory_that_was_changed_through_another_tensor_is_not_read(forward: Callable[..., Tensor]) -> None:
    with pytest.raises(TraceError, match="reads a tensor whose memory was changed in place through another tensor"):
        trace(network(forward, conv=nn.Conv2d(3, 3, 1)), IMAGES)


def test_parts_that_do_not_overlap_may_change() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.conv(x)
        one, two = y[:, :1], y[:, 1:]
        one.relu_()
        return torch.cat((one, two, y), 1)

    assert check_same(network(forward, conv=nn.Conv2d(3, 3, 1)), (2, 3, 8, 8)).steps[-1].target == "torch.cat"


def test_changes_in_place_are_seen_by_later_readers() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += 1
        z = y * 2
        self.relu(y)
        return y + z

    graph = check_same(network(forward, conv=nn.Conv2d(3, 3, 1), relu=nn.ReLU(inplace=True)), (2, 3, 8, 8))
    assert targets(graph) == ["self.conv", "+", "*", "F.relu", "+"]
    assert graph.steps[-1].inputs() == (Value(4), Value(3))
