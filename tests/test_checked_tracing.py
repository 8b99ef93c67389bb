"""Tracing that is checked: what a model does behind torch's back is noticed before anything is trained or written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import invoke
from torch import Tensor, nn
from torch.nn import functional as F
from traced import network

import prunetrain
from prunetrain.errors import NetworkFileError, TraceError
from prunetrain.graph import memory
from prunetrain.graph.render import render
from prunetrain.models.assembling import assemble
from prunetrain.models.checked_tracing import trace_and_check, with_own_storage

EXAMPLE = torch.zeros(2, 3, 8, 8)


def conv_and_head(**modules: nn.Module | Tensor) -> nn.Module:
    return network(lambda self, x: self.fc(F.relu(self.conv(x)).mean((2, 3))), conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2), **modules)


def computed_weight() -> nn.Module:
    """A conv whose weight is set in every forward pass."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.conv.weight = 2 * self.weight
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))

    conv = nn.Conv2d(3, 4, 3)
    del conv._parameters["weight"]
    return network(forward, conv=conv, weight=nn.Parameter(torch.rand(4, 3, 3, 3)), fc=nn.Linear(4, 2))


def test_a_model_that_is_what_it_says_passes_and_stays_as_it_was() -> None:
    model = conv_and_head().train()
    before, numbers = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    traced = trace_and_check(model, EXAMPLE)
    assert traced.graph == prunetrain.trace(model, EXAMPLE)
    assert model.training
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_outputs_that_are_no_numbers_are_the_same() -> None:
    model = conv_and_head()
    nn.init.constant_(model.get_parameter("fc.weight"), torch.inf)
    trace_and_check(model, EXAMPLE)


def test_other_weights_than_the_layers_imply() -> None:
    with pytest.raises(TraceError, match=r"^Net has weights that do not fit its own layers: .*conv.weight"):
        trace_and_check(computed_weight(), EXAMPLE)


def test_weights_without_numbers() -> None:
    with pytest.raises(TraceError, match=r"^Net has no weights, only their shapes \(device meta\): load them first$"):
        trace_and_check(conv_and_head().to("meta"), EXAMPLE)


def test_code_that_tracing_does_not_see() -> None:
    """Here what is done to real tensors only."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x)
        if type(x) is Tensor:
            x = 2 * x
        return self.fc(F.relu(x).mean((2, 3)))

    with pytest.raises(TraceError, match=r"^Net computes different results than its network file: "):
        trace_and_check(network(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2)), EXAMPLE)


@pytest.mark.parametrize("way", ["module", "in place", "function"])
def test_parts_that_are_compiled_run_as_they_are_written(way: str) -> None:
    """Names are those of the parts, and nothing is compiled."""

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        raise AssertionError("was compiled")

    part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    expected = trace_and_check(network(lambda self, x: self.part(x).relu().mean((2, 3)), part=part), EXAMPLE).graph
    relu = torch.compile(F.relu, backend=backend) if way == "function" else F.relu
    if way == "in place":
        part.compile(backend=backend)
    compiled: Any = torch.compile(part, backend=backend) if way == "module" else part
    assert trace_and_check(network(lambda self, x: relu(self.part(x)).mean((2, 3)), part=compiled), EXAMPLE).graph == expected


def test_code_that_fails_with_numbers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if type(x) is Tensor:
            raise ZeroDivisionError("no images today")
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))

    with pytest.raises(TraceError, match=r"test_checked_tracing.py:\d+: Net fails with 2 random images: no images today$"):
        trace_and_check(network(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2)), EXAMPLE)


def in_train_mode(change: Callable[[Any, Tensor], Tensor], **modules: nn.Module | Tensor) -> nn.Module:
    """conv, BatchNorm, dropout and head; what is done to real tensors in train mode only tracing does not see."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        if type(x) is Tensor and self.training:
            x = change(self, x)
        return self.fc(F.dropout(F.relu(x).mean((2, 3)), self.p, self.training))

    made = network(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2), **modules)
    made.p = 0.0
    return made


def doubled(self: Any, x: Tensor) -> Tensor:
    return 2 * x


def shifted_mean(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.bn.running_mean += 0.1
    return x


def test_code_that_runs_in_train_mode_only() -> None:
    with pytest.raises(TraceError, match=r"^Net computes different results in train mode than its network file: "):
        trace_and_check(in_train_mode(doubled), EXAMPLE)


def test_running_statistics_are_compared() -> None:
    with pytest.raises(TraceError, match=r"^Net has different buffers after a batch in train mode than its network file: "):
        trace_and_check(in_train_mode(shifted_mean), EXAMPLE)
    model = in_train_mode(doubled)
    model.p = 0.5
    trace_and_check(model, EXAMPLE)  # with random numbers outputs say nothing


def reset_statistics(self: Any, x: Tensor) -> Tensor:
    self.bn.reset_running_stats()
    return x


def test_with_random_numbers_what_counts_is_which_statistics_move() -> None:
    model = in_train_mode(reset_statistics)
    model.p = 0.5
    with pytest.raises(TraceError, match=r"^Net has different buffers after a batch in train mode than its network file: "):
        trace_and_check(model, EXAMPLE)


def test_random_numbers_that_a_file_draws_otherwise_move_the_same_statistics() -> None:
    """`rand` and `floor` in the place of `bernoulli`: another mask from the same seed, and other statistics behind it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training:
            x = x / 0.5 * torch.floor(0.5 + torch.rand(x.shape[0], 1, 1, 1))
        return self.fc(self.bn(x).mean((2, 3)))

    model = network(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2))
    for seed in range(4):
        torch.manual_seed(seed)
        trace_and_check(model, EXAMPLE)


def test_a_fixed_filter_is_compared_as_well() -> None:
    """In the file it is the weight of a frozen layer."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.filter)
        if type(x) is Tensor and self.training:
            self.filter.mul_(self.factor)
        return self.fc(x.mean((2, 3)))

    model = network(forward, filter=torch.rand(4, 3, 3, 3), fc=nn.Linear(4, 2))
    model.factor = 1.0
    trace_and_check(model, EXAMPLE)
    model.factor, before = 0.9, model.filter.clone()
    with pytest.raises(TraceError, match=r"^Net has different buffers after a batch in train mode than"):
        trace_and_check(model, EXAMPLE)
    assert torch.equal(model.filter, before)


def test_a_model_that_fails_in_train_mode() -> None:
    def fails(self: Any, x: Tensor) -> Tensor:
        raise ZeroDivisionError("no training today")

    with pytest.raises(TraceError, match=r"py:\d+: Net fails with 2 random images in train mode: no training today$"):
        trace_and_check(in_train_mode(fails), EXAMPLE)


def test_the_comparison_in_train_mode_leaves_no_trace() -> None:
    """Nor does it in what was traced: the file's BatchNorm counts batches, that of the model does not."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.batch_norm(self.bn(self.conv(x)), self.mean, self.var, training=self.training)
        self.steps = self.steps + 1
        return self.fc(F.dropout(x.mean((2, 3)), 0.5))

    model = network(
        forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2), mean=torch.zeros(4), var=torch.ones(4)
    ).eval()
    model.steps = 0
    buffers = dict(model.named_buffers())
    before, numbers = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    traced = trace_and_check(model, EXAMPLE)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert (model.training, model.bn.training, model.steps) == (False, False, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor is buffers[name] for name, tensor in model.named_buffers())
    assert all(torch.equal(tensor, before[name]) for name, flat in traced.names.items() for tensor in [traced.state[flat]])
    counted = [tensor for name, tensor in traced.state.items() if name.endswith("num_batches_tracked")]
    assert [int(tensor) for tensor in counted] == [0] * len(counted)


def test_gradients_are_on_in_train_mode() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc((x.sin() if self.training and not x.requires_grad else x).mean((2, 3)))

    trace_and_check(network(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2)), EXAMPLE)


def test_a_layer_that_has_too_few_numbers_for_statistics() -> None:
    """Of an image of one pixel, in train mode; in eval mode it has those of before."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x).mean((2, 3), keepdim=True)).flatten(1))

    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    trace_and_check(network(forward, conv=nn.Conv2d(3, 4, 3), norm=norm, fc=nn.Linear(4, 2)), EXAMPLE)


def test_images_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(NetworkFileError, match="of memory are free"):
        trace_and_check(conv_and_head(), EXAMPLE)


def test_stored_tensors_have_memory_of_their_own() -> None:
    whole = torch.rand(40)
    traced = trace_and_check(network(lambda self, x: x * self.a + self.b, a=torch.rand(3, 1, 1).expand(3, 8, 8), b=whole[:8]), EXAMPLE)
    kept = with_own_storage(traced).state
    assert all(torch.equal(kept[name], tensor) for name, tensor in traced.state.items())
    assert [tensor.untyped_storage().nbytes() for tensor in kept.values()] == [4 * tensor.numel() for tensor in kept.values()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_file_has_weights_in_float32(dtype: torch.dtype) -> None:
    """Which training needs. A buffer may have another type than the rest: torch multiplies by a single number in any type."""
    model = network(lambda self, x: self.conv(x * self.scale), conv=nn.Conv2d(3, 4, 1), scale=torch.tensor(2.5, dtype=dtype))
    for everything in (False, True):
        stored = with_own_storage(trace_and_check(model.to(dtype) if everything else model, EXAMPLE))
        built = assemble(render(stored.graph), "<test>", stored.graph, stored.state, same_types=True)
        assert torch.equal(built.state_dict()["scale"], torch.tensor(2.5))


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        (lambda y, x: {"logits": y}, "dict"),
        (lambda y, x: (y,), "tuple"),
        (lambda y, x: (y, [x]), "tuple"),
        (lambda y, x: [y, None], "list"),
        (lambda y, x: (y, x), None),
        (lambda y, x: y, None),
    ],
)
def test_the_library_takes_outputs_that_stay_what_they_are(returned: Any, kind: str | None) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return returned(self.fc(F.relu(self.conv(x)).mean((2, 3))), x + 1)

    model = network(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if kind is None:
        before, after = model(EXAMPLE), prunetrain.PruneTrain(model, optimizer, EXAMPLE, penalty_ratio=0.0).reconfigure().model(EXAMPLE)
        assert type(after) is type(before)
        return
    with pytest.raises(TraceError, match=f"^Net returns a {kind} that is neither a tensor nor a tuple of several tensors"):
        prunetrain.PruneTrain(model, optimizer, EXAMPLE)


def test_of_a_dict_the_logits_are_trained() -> None:
    """Whatever comes first in it."""

    def forward(self: Any, x: Tensor) -> dict[str, Tensor]:
        features = F.relu(self.conv(x)).mean((2, 3))
        return {"features": features, "logits": self.fc(features)}

    graph = prunetrain.trace(network(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2)), EXAMPLE)
    assert next(step.layer for value, step in graph.results() if value == graph.output) == "fc"


BARE = '''
from torch import nn

def make(num_classes):
    """A linear layer whose weight is no parameter."""
    linear = nn.Linear(64, num_classes)
    weight = linear.weight.detach()
    del linear._parameters["weight"]
    linear.weight = weight
    return nn.Sequential(nn.Flatten(), linear)
'''


def test_the_commands_check(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BARE)
    for command in (
        ["train", "--model", f"{tmp_path}/net.py:make", "--output-dir", f"{tmp_path}/out"],
        ["flatten", f"{tmp_path}/net.py:make", "--input-shape", "1,8,8", "-o", f"{tmp_path}/out/flat.py"],
    ):
        result = invoke(*command)
        assert result.exit_code != 0
        assert "Sequential has weights that do not fit its own layers: " in result.stderr
    assert not (tmp_path / "out").exists()
