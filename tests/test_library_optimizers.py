"""Optimizers, groups, schedulers and scalers go on over a cut as if nothing had happened."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import EXAMPLE, INNER, KEPT, STEM, Nested, batches, kept_of, kill_, network, sgd, train_
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim import Optimizer, lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from prunetrain import PruneTrain
from prunetrain.errors import ConfigError

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {  # eps is large, or the step follows the noise of zero gradients
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.02),
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "fused": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: optim.Adam(p, lr=0.01, eps=1e-4),
    "amsgrad": lambda p: optim.Adam(p, lr=0.01, eps=1e-4, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, eps=1e-4, weight_decay=0.1, fused=True),
    "adamax": lambda p: optim.Adamax(p, lr=0.01, eps=1e-4),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.001, eps=1e-4, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01, eps=1e-4, initial_accumulator_value=0.1),
    "adadelta": lambda p: optim.Adadelta(p, eps=1e-4),
    "nadam": lambda p: optim.NAdam(p, lr=0.01, eps=1e-4),
    "radam": lambda p: optim.RAdam(p, lr=0.01, eps=1e-4),
    "asgd": lambda p: optim.ASGD(p, lr=0.01),
    "rprop": lambda p: optim.Rprop(p, lr=0.001),
}


def in_training(make: Callable[[Any], Optimizer], **settings: Any) -> tuple[Nested, Optimizer, PruneTrain]:
    """A network with dead channels, after three steps that filled the optimizer's state."""
    model = network()
    optimizer = make(model.parameters())
    pruner = PruneTrain(model, optimizer, EXAMPLE, **settings)
    train_(model, optimizer, 3, pruner=pruner)
    kill_(model)
    return model, optimizer, pruner


def entries(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    return dict(optimizer.state[parameter])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_cut_then_step_is_step_then_cut(name: str) -> None:
    model, optimizer, pruner = in_training(OPTIMIZERS[name])
    whole, its_optimizer = copy.deepcopy((model, optimizer))
    smaller = pruner.reconfigure().model
    start = {flat: parameter.detach().clone() for flat, parameter in smaller.named_parameters()}
    train_(whole, its_optimizer, seed=7)
    train_(smaller, optimizer, seed=7)
    for flat, parameter in smaller.named_parameters():
        origin = whole.get_parameter(KEPT[flat][0])
        expected = kept_of(flat, origin)
        assert (parameter - expected).abs().max() <= 1e-11 * expected.abs().max(), flat
        assert not torch.equal(parameter, start[flat]), flat
        for key, entry in entries(its_optimizer, origin).items():
            own = optimizer.state[parameter][key]
            wanted = kept_of(flat, entry) if isinstance(entry, Tensor) and entry.shape == origin.shape else entry
            assert torch.allclose(torch.as_tensor(own), torch.as_tensor(wanted), rtol=1e-9, atol=1e-14), (flat, key)
    assert len(optimizer.state) == (0 if name == "sgd" else len(KEPT))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_proximal_step_works_with_every_optimizer(name: str) -> None:
    model, optimizer, pruner = in_training(OPTIMIZERS[name], lasso_groups="slices")
    plain, its_optimizer = copy.deepcopy((model, optimizer))  # a copy has no hook
    train_(model, optimizer, seed=5, pruner=pruner)
    train_(plain, its_optimizer, seed=5)
    column, expected = model.head.weight.detach()[:, 0], plain.head.weight.detach()[:, 0]
    group = optimizer.param_groups[0]
    pull = group["lr"] / (1 - group.get("momentum", 0))
    assert pruner.lasso_strength
    shrunk = max(0.0, 1 - pull * pruner.lasso_strength / float(torch.linalg.vector_norm(expected)))
    assert torch.allclose(column, expected * shrunk, rtol=1e-10)
    assert shrunk < 1


def test_adafactor_keeps_the_rows_and_columns_of_what_stays() -> None:
    model, optimizer, pruner = in_training(lambda p: optim.Adafactor(p, lr=0.05))
    before = {name: entries(optimizer, parameter) for name, parameter in model.named_parameters() if parameter in optimizer.state}
    smaller = pruner.reconfigure().model
    weight, conv = smaller.get_parameter("head.weight"), smaller.get_parameter("body_0_branch_0.weight")
    old = before["head.weight"]
    assert torch.equal(optimizer.state[weight]["row_var"], old["row_var"])  # (3, 1)
    assert torch.equal(optimizer.state[weight]["col_var"], old["col_var"][:, STEM])  # (1, 6)
    old = before["body.0.branch.0.weight"]
    assert torch.equal(optimizer.state[conv]["row_var"], old["row_var"][INNER][:, STEM])  # (5, 6, 3, 1)
    assert torch.equal(optimizer.state[conv]["col_var"], old["col_var"][INNER][:, STEM])  # (5, 6, 1, 3)
    bias = smaller.get_parameter("stem_1.bias")
    assert torch.equal(optimizer.state[bias]["variance"], before["stem.1.bias"]["variance"][STEM])
    assert float(optimizer.state[conv]["step"]) == 3
    train_(smaller, optimizer, 2, pruner=pruner)


def test_adafactor_goes_on_with_the_bias_that_a_branch_leaves() -> None:
    """It was a vector and has further dimensions now, for which Adafactor keeps other entries."""
    model = network()
    with torch.no_grad():
        model.get_parameter("body.0.branch.3.weight").zero_()
    optimizer = optim.Adafactor([model.get_parameter("body.0.branch.3.bias")], lr=0.05)
    pruner = PruneTrain(model, optimizer, EXAMPLE, penalty_ratio=0)
    train_(model, optimizer, 2)
    plain, its_optimizer = copy.deepcopy((model, optimizer))
    smaller = pruner.reconfigure().model
    bias = smaller.get_parameter("body_0_branch_3_bias")
    for model_, optimizer_ in ((plain, its_optimizer), (smaller, optimizer)):
        train_(model_, optimizer_, 2)
    assert torch.allclose(bias.flatten(), plain.get_parameter("body.0.branch.3.bias"), rtol=1e-10)


def test_muon() -> None:
    model = network()
    flat = [p for p in model.parameters() if p.dim() == 2]
    optimizer = optim.Muon(flat, lr=0.02, weight_decay=0.0)
    pruner = PruneTrain(model, optimizer, EXAMPLE, lasso_groups="slices")
    plain, its_optimizer = copy.deepcopy((model, optimizer))
    train_(model, optimizer, pruner=pruner)
    train_(plain, its_optimizer)
    expected = plain.head.weight.detach()
    assert pruner.lasso_strength
    norms = torch.linalg.vector_norm(expected, dim=0)
    assert torch.allclose(model.head.weight, expected * (1 - 0.02 * pruner.lasso_strength / norms), rtol=1e-10)  # it averages its gradients
    kill_(model)
    buffer = optimizer.state[model.head.weight]["momentum_buffer"]
    smaller = pruner.reconfigure().model
    assert torch.equal(optimizer.state[smaller.get_parameter("head.weight")]["momentum_buffer"], buffer[:, STEM])
    train_(smaller, optimizer, 2, pruner=pruner)


class Lists(optim.SGD):
    """Keeps a list per parameter, whose shape says nothing."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = [torch.zeros(7)]


class Ascends(optim.Optimizer):
    """Makes no steps itself, as sharpness-aware minimisation does: another optimizer, which shares its groups, makes the second half."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.05, "momentum": 0.9})
        self.base = optim.SGD(self.param_groups, lr=0.05, momentum=0.9)
        self.param_groups = self.base.param_groups


class Delegates(optim.Optimizer):
    """Passes everything on and has no hooks, as in Accelerate."""

    def __init__(self, inner: Optimizer) -> None:
        self.optimizer = inner
        self.param_groups, self.state = inner.param_groups, inner.state


class Shares(optim.SGD):
    """Is the other optimizer but for its class and its step, as in Lightning."""

    def __init__(self, inner: Optimizer) -> None:
        self.__dict__ = dict(vars(inner))
        self._optimizer = inner

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._optimizer.step(closure)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Ascends, "Ascends only wraps SGD, which makes the steps: give its attribute 'base'"),
        (lambda p: Delegates(optim.Adam(p)), "Delegates only wraps Adam, which makes the steps: give its attribute 'optimizer'"),
        (type("ZeroRedundancyOptimizer", (optim.SGD,), {}), "only part of the state in each process"),
        (optim.LBFGS, "LBFGS keeps a single state for all parameters"),
        (lambda p: optim.SGD(p, lr=0.1, maximize=True), "maximize=False"),
        (lambda p: optim.SGD(network().parameters(), lr=0.1), "none of the model's parameters"),
        (lambda p: optim.SGD([*p, *nn.LazyLinear(2).parameters()], lr=0.1), "parameters of a lazy layer"),
        (lambda p: "adam", "str is not a torch.optim.Optimizer"),
    ],
)
def test_optimizers_that_cannot_be_used(make: Callable[[Any], Any], message: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=message):
        PruneTrain(model, make(model.parameters()), EXAMPLE)


def test_the_optimizer_inside_a_wrapper() -> None:
    model = network()
    wrapper = Ascends(model.parameters())
    smaller = _cut_in_training(model, wrapper.base, wrapper.base)
    assert all(parameter in wrapper.base.state for parameter in smaller.parameters())
    assert wrapper.param_groups[0]["params"] == list(smaller.parameters())


def test_a_wrapper_that_shares_everything() -> None:
    model = network()
    inner = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    smaller = _cut_in_training(model, Shares(inner), inner)
    assert all(parameter in inner.state for parameter in smaller.parameters())


def _cut_in_training(model: nn.Module, given: Optimizer, steps: Optimizer) -> nn.Module:
    """Train with one optimizer, give the pruner another, and cut what has faded."""
    pruner = PruneTrain(model, given, EXAMPLE)
    left = pruner.fade(macs=0.7, steps=2)
    train_(model, steps, 2, pruner=pruner)
    step = pruner.reconfigure()
    assert step.change.macs[1] == round(left * step.change.macs[0])
    train_(step.model, steps, 1, pruner=pruner)
    return step.model


def test_state_of_unknown_shape_is_refused_and_nothing_changes() -> None:
    _, optimizer, pruner = in_training(lambda p: Lists(p, lr=0.05))
    parameters = list(optimizer.param_groups[0]["params"])
    with pytest.raises(ConfigError, match=r"Lists keeps 'history' of stem_0.weight in a form that cannot be cut"):
        pruner.reconfigure()
    assert optimizer.param_groups[0]["params"] == parameters
    assert pruner.graph == pruner.dense
    whole = network()
    other = Lists(whole.parameters(), lr=0.05)
    its_pruner = PruneTrain(whole, other, EXAMPLE)
    train_(whole, other)
    assert its_pruner.reconfigure().change.channels == (20, 20)  # nothing to cut, nothing to refuse


# Groups.


def test_groups_keep_their_members_settings_and_strangers() -> None:
    model = network()
    stranger, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    decayed = [p for p in model.parameters() if p.dim() > 1 and p is not model.head.weight]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = optim.SGD(
        [
            {"params": [stranger, *reversed(decayed)], "lr": 0.1, "initial_lr": 0.3, "my_own": "word"},
            {"params": [*plain, other], "lr": 0.2, "weight_decay": 0.0},
            {"params": list(model.idle.parameters())[:0], "lr": 0.4},
        ],
        lr=1.0,
        momentum=0.9,
        weight_decay=0.05,
    )
    stranger.grad, other.grad = torch.ones(3), torch.ones(2)
    train_(model, optimizer)
    kill_(model)
    buffer = optimizer.state[stranger]["momentum_buffer"]
    before = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    smaller = PruneTrain(model, optimizer, EXAMPLE).reconfigure().model
    names = {parameter: name for name, parameter in smaller.named_parameters()} | {stranger: "stranger", other: "other"}
    weights = ["stem_0.weight", "body_0_branch_0.weight", "body_0_branch_3.weight"]
    vectors = [name for name in KEPT if name not in (*weights, "head.weight")]
    assert [[names[p] for p in group["params"]] for group in optimizer.param_groups] == [["stranger", *weights], [*vectors, "other"], []]
    assert [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups] == before
    assert optimizer.state[stranger]["momentum_buffer"] is buffer
    head = smaller.get_parameter("head.weight").clone()
    train_(smaller, optimizer)
    assert torch.equal(smaller.get_parameter("head.weight"), head)  # it never was in a group


def test_named_parameters() -> None:
    model = network()
    stranger = nn.Parameter(torch.ones(3))
    optimizer = optim.AdamW([("temperature", stranger), *model.named_parameters()], lr=0.01)
    optimizer.state["everything"] = {"step": 7}  # type: ignore[index]
    kill_(model)
    smaller = PruneTrain(model, optimizer, EXAMPLE).reconfigure().model
    assert optimizer.param_groups[0]["param_names"] == ["temperature", *(name for name, _ in smaller.named_parameters())]
    assert optimizer.param_groups[0]["params"] == [stranger, *smaller.parameters()]
    assert dict(optimizer.state) == {"everything": {"step": 7}}
    again = optim.AdamW([("temperature", stranger), *smaller.named_parameters()], lr=0.01)
    again.load_state_dict(optimizer.state_dict())


# Schedulers hold the optimizer, which stays what it is.

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda n: 0.9**n, lambda n: 1 / (n + 1)]),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.ExponentialLR(o, gamma=0.8)], milestones=[4]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)]),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.3),
}


def rates(make: Callable[[Optimizer], Any], *, cuts: tuple[int, ...]) -> list[list[float]]:
    """Learning rates and momenta of both groups over some steps; before some of them the network is cut."""
    model: nn.Module = network()
    weights = [p for p in model.parameters() if p.dim() > 1]
    optimizer: Optimizer = optim.SGD([{"params": weights, "lr": 0.05}, {"params": [model.head.bias], "lr": 0.02}], momentum=0.9)
    scheduler = make(optimizer)
    pruner = PruneTrain(model, optimizer, EXAMPLE)
    found = []
    for number in range(10):
        if number in cuts:
            if number == cuts[0]:
                kill_(model)
            step = pruner.reconfigure()
            model, optimizer = step.model, step.optimizer
        train_(model, optimizer, seed=number, pruner=pruner)
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        found.append([group[key] for group in optimizer.param_groups for key in ("lr", "momentum")])
    return found


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_do_not_notice_a_cut(name: str) -> None:
    expected = rates(SCHEDULERS[name], cuts=())
    assert len({tuple(line) for line in expected}) > 2
    assert rates(SCHEDULERS[name], cuts=(0, 4, 7)) == expected


# GradScaler.


def with_scaler(lasso_step: str, scaler: torch.amp.GradScaler | None, unscale: str, *, fused: bool = False) -> Nested:
    """Some regularized steps; the gradients are unscaled before or after the lasso, or by the scaler's own step."""
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
    pruner = PruneTrain(model, optimizer, EXAMPLE, lasso_step=lasso_step, scaler=scaler, penalty_ratio=0.5)
    for images, labels in batches(3):
        loss = F.cross_entropy(model(images), labels)
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        if scaler is not None and unscale == "before":
            scaler.unscale_(optimizer)
        pruner.regularize(loss)
        if scaler is not None and unscale == "after":
            scaler.unscale_(optimizer)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", ["before", "after", "never"])
@pytest.mark.parametrize("lasso_step", ["subgradient", "proximal"])
def test_scaler_makes_no_difference(lasso_step: str, unscale: str, fused: bool) -> None:
    expected = with_scaler(lasso_step, None, "never", fused=fused)
    scaled = with_scaler(lasso_step, torch.amp.GradScaler("cpu", init_scale=1024.0), unscale, fused=fused)
    for parameter, wanted in zip(scaled.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(parameter, wanted, rtol=1e-12, atol=1e-14)
    off = with_scaler(lasso_step, torch.amp.GradScaler("cpu", enabled=False), "never", fused=fused)
    assert torch.equal(off.head.weight, expected.head.weight)


class Waits(TorchDispatchMode):
    """Counts how often the processor asks for a number that a device may still be computing."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("lasso_step", ["subgradient", "proximal"])
def test_nobody_waits_for_a_scaler(lasso_step: str) -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.05, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    pruner = PruneTrain(model, optimizer, EXAMPLE, scaler=scaler, lasso_step=lasso_step)
    waits = []
    for images, labels in batches(3):
        loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        with Waits() as seen:
            pruner.regularize(loss)
            scaler.step(optimizer)
        waits.append(seen.count)
        scaler.update()
        optimizer.zero_grad()
    assert waits[0] > 0  # the first loss sets lambda
    assert waits[1:] == [0, 0]


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_step_shrinks_nothing(fused: bool) -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.05, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    pruner = PruneTrain(model, optimizer, EXAMPLE, scaler=scaler)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for scale in (float("inf"), 1.0):
        images, labels = next(batches(1))
        loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss * scale).backward()  # type: ignore[no-untyped-call]
        pruner.regularize(loss)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        same = [torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True)]
        assert all(same) == (scale > 1)
    assert scaler.get_scale() == 512


def test_scaler_goes_on_over_a_cut() -> None:
    model = network()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    pruner = PruneTrain(model, optimizer, EXAMPLE, scaler=scaler, lasso_step="subgradient")
    found: nn.Module = model
    kill_(model)
    for number in range(4):
        images, labels = next(batches(1, seed=number))
        loss = F.cross_entropy(found(images), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        pruner.regularize(loss)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if number == 0:
            kill_(model)
            found = pruner.reconfigure().model
    assert scaler.get_scale() == 1024
