"""Train and eval mode in one graph: dropout, stochastic depth in all its copies, auxiliary heads, and what cannot be said."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth
from traced import IMAGES, check_same, network, targets

from prunetrain.errors import TraceError
from prunetrain.graph.layergraph import TRAINING, Attribute, Value
from prunetrain.graph.trace import trace
from prunetrain.graph.tracing.arithmetic import probability_of


def drop_path(x: Tensor, p: float, training: bool) -> Tensor:
    """As several libraries write it."""
    if p == 0.0 or not training:
        return x
    keep = 1 - p
    noise = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    if keep > 0.0:
        noise.div_(keep)
    return x * noise


def older_drop_path(x: Tensor, p: float, training: bool) -> Tensor:
    if not training:
        return x
    keep = 1 - p
    noise = keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
    noise.floor_()
    return x.div(keep) * noise


def test_dropout_follows_the_mode() -> None:
    for model in (nn.Sequential(nn.Dropout(0.3)), network(lambda self, x: F.dropout(x, 0.3, self.training))):
        (step,) = check_same(model, (2, 3, 8, 8)).steps
        assert (step.target, step["p"], step["training"]) == ("F.dropout", 0.3, TRAINING)


def test_dropout_that_is_always_on_stays_on_and_one_that_never_is_goes() -> None:
    always = network(lambda self, x: F.dropout(x, 0.5))
    (step,) = trace(always, IMAGES).steps
    assert step["training"] is True
    assert targets(trace(network(lambda self, x: F.dropout(x.exp(), 0.5, False)), IMAGES)) == ["torch.exp"]
    assert targets(trace(nn.Sequential(nn.Sigmoid(), nn.Dropout(0.0)), IMAGES)) == ["torch.sigmoid"]


GRADIENTS: list[tuple[Callable[[nn.Module, Tensor], Tensor], bool]] = [
    (lambda self, x: x, False),
    (lambda self, x: x.exp() + x.flip(2), False),
    (lambda self, x: self.frozen(x) * self.mean, False),
    (lambda self, x: self.conv(x), True),
    (lambda self, x: F.relu(self.conv(x), inplace=True).flatten(1) + 1, True),
    (lambda self, x: self.frozen(self.conv(x)), True),
    (lambda self, x: x * self.scale, True),
    (lambda self, x: F.conv2d(x, self.frozen.weight, self.conv.bias), True),
    (lambda self, x: F.conv2d(x, self.frozen.weight, self.frozen.bias), False),
    (lambda self, x: torch.cat([x, self.conv(x)]), True),
    (lambda self, x: x.exp().add_(self.conv(x)), True),
    (lambda self, x: written(x.exp(), self.conv(x)), True),
    (lambda self, x: self.conv(x).argmax(1), False),
    (lambda self, x: torch.zeros_like(self.conv(x)), False),
    (lambda self, x: torch.empty_like(self.conv(x)), False),
]


def written(x: Tensor, part: Tensor) -> Tensor:
    x[:, :1] *= part[:, :1]
    return x


@pytest.mark.parametrize(("result", "learns"), GRADIENTS)
def test_results_of_trained_layers_require_gradients(result: Callable[[nn.Module, Tensor], Tensor], learns: bool) -> None:
    """As they do in training. In eval mode none does, as under no_grad()."""
    said = []

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        made = result(self, x)
        said.append((made.requires_grad, made.is_leaf))
        return F.dropout(x.exp(), 0.5) if self.training and made.requires_grad else x.exp()

    modules = {"conv": nn.Conv2d(3, 3, 1), "frozen": nn.Conv2d(3, 3, 1).requires_grad_(False)}
    model = network(forward, **modules, scale=nn.Parameter(torch.ones(1)), mean=torch.ones(1))
    model(torch.rand(2, 3, 8, 8))
    assert targets(trace(model, IMAGES)) == ["torch.exp", "F.dropout"][: 1 + learns]
    assert said == [(learns, not learns)] * 3 + [(False, True)] * (len(said) - 3)


def test_dropout_of_channels() -> None:
    assert targets(check_same(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout2d(0.2)), (2, 3, 8, 8))) == ["self.layer_0", "F.dropout2d"]


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("drop", [drop_path, StochasticDepth(0.0, "row")], ids=["drop_path", "torchvision"])
def test_stochastic_depth_draws_the_same_numbers(rank: int, p: float, drop: Callable[[Tensor, float, bool], Tensor]) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = x.flatten(rank - 1)
        if isinstance(drop, StochasticDepth):
            drop.p, drop.training = p, self.training
            return x + drop(x.sigmoid())
        return x + drop(x.sigmoid(), p, self.training)

    graph = check_same(network(forward), (6, 3, 4, 4))
    assert targets(graph)[-4:] == ["torch.unsqueeze", f"F.dropout{rank - 1}d", "torch.squeeze", "+"]
    dropped = graph.steps[-3]
    assert dropped["p"] == p and dropped["training"] == TRAINING
    assert graph.steps[-1].inputs()[1] == Value(len(graph.steps) - 1)


def test_older_copies_of_stochastic_depth_are_the_same_steps() -> None:
    graphs = [trace(network(lambda self, x, drop=drop: drop(x.exp(), 0.2, self.training)), IMAGES) for drop in (drop_path, older_drop_path)]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("p", [0.1, 0.2, 0.3, 0.05, 0.5, 0.123456789, 1 / 3, 0.9, 0.99, 0.1 * 3 / 7])
def test_a_probability_comes_back_to_the_last_bit(p: float) -> None:
    keep = 1.0 - p
    assert 1.0 - probability_of(keep) == keep
    assert len(repr(probability_of(keep))) <= max(len(repr(p)), 18)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: x + StochasticDepth(0.5, "batch")(x.exp()), "needs one random number for each image"),
        (lambda self, x: x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5), "drops images without dividing the others by 0.5"),
        (lambda self, x: x + torch.randn(x.shape), "randn draws random numbers: only dropout and stochastic depth are supported"),
        (lambda self, x: x + torch.rand_like(x), "rand_like draws random numbers: only dropout and stochastic depth are supported"),
        (lambda self, x: x + torch.rand(x.shape[0], 1, 1, 1), "random numbers are supported only in dropout and stochastic depth"),
        (lambda self, x: x.relu() if self.training else x, "forward runs different steps in train and eval mode"),
        (lambda self, x: x if self.training else x.relu(), "forward runs different steps in train and eval mode"),
        (lambda self, x: (x + 1 if self.training else x + 2).exp(), "forward runs different steps in train and eval mode"),
        (lambda self, x: x if self.training else x.softmax(1), "F.softmax runs in eval mode only: leave it out, so that both modes return"),
    ],
)
def test_refusals(forward: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(TraceError, match=rf"^/.*\.py:\d+: .*{message}"):
        trace(network(forward), IMAGES)


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    noise = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5).div_(0.5)
    return x.exp() * noise, x * noise


def twice_by_a_copy(x: Tensor) -> tuple[Tensor, Tensor]:
    drawn = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)
    return x.exp() * (drawn / 0.5), x * drawn.clone().div(0.5)


def twice_rounded_down(x: Tensor) -> tuple[Tensor, Tensor]:
    noise = 0.5 + torch.rand(x.shape[0], 1, 1, 1)
    return x.exp().div(0.5) * noise.floor(), x.div(0.5) * noise.floor()


@pytest.mark.parametrize("drop", [twice, twice_by_a_copy, twice_rounded_down])
def test_a_mask_is_multiplied_by_once(drop: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """In a file it would be two, which drop other images."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        one, two = drop(x) if self.training else (x.exp(), x)
        return one + two

    with pytest.raises(
        TraceError, match=r"py:\d+: (__)?mul(__)?: multiplies by the same random numbers twice, but a network file draws new"
    ):
        trace(network(forward), IMAGES)


class Outputs(NamedTuple):
    logits: Tensor
    auxiliary: Tensor | None


def test_heads_of_train_mode_alone() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor | Outputs:
        x = self.stem(x)
        head = self.head(F.dropout(x, 0.4, self.training).mean((2, 3))) if self.training else None
        x = self.fc(x.flatten(1))
        return Outputs(x, head) if self.training else x

    model = network(forward, stem=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 5), fc=nn.Linear(144, 5))
    graph = check_same(model, (2, 3, 8, 8))
    assert targets(graph) == ["self.stem", "F.dropout", "torch.mean", "self.head", "torch.flatten", "self.fc"]
    assert (graph.output, graph.extra, graph.auxiliary) == (Value(6), (), (Value(4),))
    assert graph.in_training_only == {1, 2, 3}


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


@pytest.mark.parametrize("first", [True, False])
def test_a_head_of_train_mode_takes_steps_that_both_modes_take(first: bool) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.bn(self.stem(x))
        head = self.head(self.shared(pooled(x))) if self.training and first else None
        main = self.fc(self.shared(pooled(x)))
        if self.training and not first:
            head = self.head(self.shared(pooled(x)))
        return main if head is None else (main, head)

    linear = {"shared": nn.Linear(4, 4), "head": nn.Linear(4, 5), "fc": nn.Linear(4, 6)}
    graph = check_same(network(forward, stem=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), **linear), (2, 3, 8, 8))
    head = {3, 4, 5, 6} if first else {7, 8, 9, 10}
    assert targets(graph).count("F.adaptive_avg_pool2d") == 2
    assert {number + 1 for number in graph.in_training_only} == head


def test_chance_that_a_head_of_train_mode_had_is_not_the_networks() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.conv(x)
        head = F.dropout(x, 0.5) if self.training else None
        main = F.dropout(x, 0.5)
        return main if head is None else (main, head)

    with pytest.raises(TraceError, match="forward runs different steps in train and eval mode"):
        trace(network(forward, conv=nn.Conv2d(3, 4, 1)), IMAGES)


def test_several_outputs_in_both_modes() -> None:
    graph = check_same(network(lambda self, x: {"out": x.exp(), "deep": [x.sigmoid(), None]}), (2, 3, 8, 8))
    assert (graph.output, graph.extra, graph.auxiliary) == (Value(1), (Value(2),), ())


def test_a_frozen_batch_norm_is_a_function() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, training=False)

    tensors = {"weight": nn.Parameter(torch.ones(3)), "bias": nn.Parameter(torch.zeros(3)), "mean": torch.zeros(3), "var": torch.ones(3)}
    graph = check_same(network(forward, **tensors), (2, 3, 8, 8))
    assert targets(graph) == ["F.batch_norm"]
    assert graph.steps[0]["training"] is False
    assert graph.steps[0]["running_mean"] == Attribute("mean")


class Keeping(nn.Module):
    """Conv, BatchNorm, and what else is given; its train() keeps the parts with these names in another mode."""

    def __init__(self, *kept: str, mode: bool = False, **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.parts = nn.ModuleDict(parts)
        self.kept, self.mode = kept, mode

    def train(self, mode: bool = True) -> "Keeping":
        super().train(mode)
        for name in self.kept:
            self.get_submodule(name).train(self.mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.bn(self.conv(x)))
        for part in self.parts.values():
            x = part(x)
        return x


def test_a_batch_norm_that_train_keeps_frozen_is_a_function() -> None:
    model = Keeping("bn")
    graph = check_same(model, (2, 3, 8, 8))
    assert targets(graph) == ["self.conv", "F.batch_norm", "self.last"]
    assert (graph.steps[1]["training"], graph.steps[1]["running_mean"]) == (False, Attribute("bn_running_mean"))


@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}, {"eps": 0.1}])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_frozen_batch_norms_of_all_kinds(kind: type[nn.Module], options: dict[str, object]) -> None:
    frozen = nn.Sequential(nn.Flatten(2) if kind is nn.BatchNorm1d else nn.ReLU(), kind(4, **options))
    assert "F.batch_norm" in targets(check_same(Keeping("parts.frozen", frozen=frozen), (2, 3, 8, 8)))


def test_dropout_that_train_keeps_off_goes_and_what_it_keeps_on_stays() -> None:
    drop = nn.Dropout(0.5)
    assert "F.dropout" not in targets(check_same(Keeping("parts.drop", drop=drop), (2, 3, 8, 8)))
    dropped = trace(Keeping("parts.drop", mode=True, drop=drop), IMAGES).steps[-1]
    assert (dropped.target, dropped["training"]) == ("F.dropout", True)


def test_layers_that_are_the_same_in_both_modes_may_be_kept_in_one() -> None:
    parts = {"conv": nn.Conv2d(4, 4, 1), "untracked": nn.BatchNorm2d(4, track_running_stats=False), "norm": nn.InstanceNorm2d(4)}
    graph = check_same(Keeping(*(f"parts.{name}" for name in parts), **parts), (2, 3, 8, 8))
    assert targets(graph)[-3:] == ["self.parts_conv", "self.parts_untracked", "self.parts_norm"]


@pytest.mark.parametrize(
    ("part", "mode", "message"),
    [
        (nn.InstanceNorm2d(4, track_running_stats=True), False, "stays in eval mode when the model is trained"),
        (nn.BatchNorm2d(4), True, "stays in train mode when the model is evaluated"),
    ],
)
def test_layers_that_are_kept_in_a_mode_that_a_file_cannot_say(part: nn.Module, mode: bool, message: str) -> None:
    kind = type(part).__name__
    said = rf"^/.*\.py:\d+: parts\.part {message}, which a network file cannot express for nn\.{kind}: let it follow the model's train\(\)$"
    with pytest.raises(TraceError, match=said):
        trace(Keeping("parts.part", mode=mode, part=part), IMAGES)


def test_what_train_does_is_undone() -> None:
    class Merging(Keeping):
        def train(self, mode: bool = True) -> Keeping:
            self.merged = not mode
            self.conv.weight.data += 1
            self.bn.requires_grad_(False)
            return super().train(mode)

    model = Merging("bn")
    weight = model.conv.weight.detach().clone()
    model.last.eval()
    trace(model, IMAGES)
    assert (model.training, model.bn.training, model.last.training, hasattr(model, "merged")) == (True, True, False, False)
    assert torch.equal(model.conv.weight, weight)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_train_that_fails_is_a_line() -> None:
    class Failing(Keeping):
        def train(self, mode: bool = True) -> Keeping:
            raise NotImplementedError("only for inference\nreally")

    with pytest.raises(TraceError, match=r"^/.*\.py:\d+: Failing cannot be traced: train\(True\) fails: only for inference$"):
        trace(Failing(), IMAGES)


def test_modes_that_were_set_from_outside_do_not_count() -> None:
    model = Keeping()
    expected = trace(model, IMAGES)
    model.bn.eval()
    assert trace(model, IMAGES) == trace(model.eval(), IMAGES) == expected
    assert targets(expected) == ["self.conv", "self.bn", "self.last"]
