"""The Taylor importance of channels: against autograd's gradients of gates, in checkpoints, over cuts, in runs and in others' loops."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from loops import EXAMPLE, batches, network, sgd, train_
from runs import Recorder, assert_identical, assert_same_run, settings
from torch import Tensor, nn
from torch.nn import functional as F

import prunetrain
from prunetrain.channels.slicing import propose_cut
from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig, check_ignored_settings
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import read_graph
from prunetrain.graph.trace import trace_with_state
from prunetrain.library.prune import prune
from prunetrain.methods.taylor import TaylorImportance
from prunetrain.methods.training_method import cut_state, empty_method_state
from prunetrain.regularizers.fading import Ranking
from prunetrain.training.checkpoints import load_checkpoint, save_checkpoint
from prunetrain.training.pruned_run import pruning_config
from prunetrain.training.run import Outcome, resume_run, start_run
from prunetrain.training.run_method import build_run_method

LOSS = torch.zeros(())


class Residual(nn.Module):
    """Two layers write the stream; inside the block one has no normalisation behind it."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(2, 6, 3, padding=1, bias=False), norm(6)
        self.inner = nn.Conv2d(6, 5, 3, padding=1)
        self.outer, self.norm2 = nn.Conv2d(5, 6, 3, padding=1), norm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        x = x + self.norm2(self.outer(F.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


AXES = {"norm1": "features", "inner": "out", "norm2": "features"}  # of the layers with a gate


def traced(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, seed: int = 0) -> tuple[Residual, LayerGraph, TaylorImportance]:
    torch.manual_seed(seed)
    model = Residual(norm).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    graph = trace_with_state(model, torch.zeros(2, 2, 6, 6)).graph
    return model, graph, TaylorImportance(graph, dict(model.named_parameters()))


def backward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model.train()(images), labels).backward()


def squares_of_gates(model: Residual, graph: LayerGraph, count: int) -> npt.NDArray[np.float64]:
    """For every channel, the squares of the gradients of factors of one behind the layers, added up over batches and layers."""
    spaces = find_spaces(graph)
    squares = np.zeros(spaces.num_channels)
    for images, labels in batches(count):
        gates = {name: torch.ones(model.get_submodule(name).bias.numel(), dtype=torch.float64, requires_grad=True) for name in AXES}
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda module, inputs, output, gate=gate: output * gate.view(1, -1, 1, 1))
            for name, gate in gates.items()
        ]
        backward(model, images, labels)
        for name, gate in gates.items():
            assert gate.grad is not None
            np.add.at(squares, spaces.ids[name, AXES[name]], gate.grad.square().numpy())
        for hook in hooks:
            hook.remove()
    return squares


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda size: nn.GroupNorm(3, size), lambda size: nn.InstanceNorm2d(size, affine=True)])
def test_importance_is_the_square_of_a_gates_gradient(norm: Callable[[int], nn.Module]) -> None:
    """Summed over the steps and the layers of a channel; what has no gate is the input and the output."""
    model, graph, importance = traced(norm)
    for images, labels in batches(3):
        backward(model, images, labels)
        importance.after_backward_(LOSS)
    found = importance.of_channels()
    np.testing.assert_allclose(found, np.sqrt(squares_of_gates(model, graph, 3)), rtol=1e-9, atol=1e-12)
    assert (found > 0).sum() == len({int(channel) for name in AXES for channel in find_spaces(graph).ids[name, AXES[name]]})


def test_a_scaled_loss_changes_nothing_and_overflows_count_as_zero() -> None:
    model, _, plain = traced()
    (images, labels), *_ = batches(1)
    backward(model, images, labels)
    plain.gather_()
    other, graph, scaled = traced()
    other.zero_grad()
    (1024 * F.cross_entropy(other.train()(images), labels)).backward()
    scaled.gather_(scale=torch.tensor(1024.0))
    np.testing.assert_allclose(scaled.of_channels(), plain.of_channels(), rtol=1e-12)
    bias = other.norm1.bias
    bias.grad[:] = torch.tensor([float("inf"), float("nan"), -float("inf"), 1e300, 0.0, 0.0])
    scaled.reset_()
    scaled.gather_()
    stream = scaled.of_channels()[find_spaces(graph).ids["norm1", "features"]]
    assert np.isfinite(stream).all()
    np.testing.assert_array_less(0, stream)  # from the stream's other layer


def test_what_has_no_gradient_adds_nothing() -> None:
    model, _, importance = traced()
    model.zero_grad()
    importance.after_backward_(LOSS)
    assert not importance.of_channels().any()
    frozen = TaylorImportance(traced()[1], {})
    frozen.after_backward_(LOSS)
    assert not frozen.of_channels().any()


def test_what_is_trained_in_part_counts_in_part() -> None:
    model, graph, _ = traced()
    importance = TaylorImportance(graph, {"inner.bias": model.inner.bias})
    (images, labels), *_ = batches(1)
    backward(model, images, labels)
    importance.gather_()
    assert model.inner.bias.grad is not None
    expected = (model.inner.bias * model.inner.bias.grad).abs().detach().numpy()
    np.testing.assert_allclose(importance.of_channels()[find_spaces(graph).ids["inner", "out"]], expected)


def test_normalised_channels_are_read_from_scales_alone() -> None:
    """The filters in front of a normalisation have no say: scaling them changes nothing, so their gate's gradient is noise."""
    model, _, importance = traced()
    (images, labels), *_ = batches(1)
    backward(model, images, labels)
    importance.gather_()
    expected = importance.of_channels()
    model.outer.weight.grad = 100 * torch.randn_like(model.outer.weight)
    importance.reset_()
    importance.gather_()
    np.testing.assert_array_equal(importance.of_channels(), expected)


def test_what_a_normalisation_without_scales_reads_has_no_gate() -> None:
    """Its gate's gradient is zero but for rounding, by which nothing should be ranked."""
    model, graph, importance = traced(lambda size: nn.BatchNorm2d(size, affine=False))
    (images, labels), *_ = batches(1)
    backward(model, images, labels)
    importance.gather_()
    assert set(np.flatnonzero(importance.of_channels())) == set(find_spaces(graph).ids["inner", "out"])


class HalfNormalised(nn.Module):
    """Channels with and without a gate, tied to each other by what is added to both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.right, self.both = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(2, 6, 1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        sides = torch.cat([self.norm(self.left(x)), self.right(x)], 1)
        return self.head(F.relu(sides + self.both(x)).mean((2, 3)))


def test_channels_without_a_gate_are_not_the_weakest() -> None:
    """Nothing tells how important they are compared to the others of their space, so that the norms rank them all."""
    torch.manual_seed(0)
    model = HalfNormalised().double()
    graph = trace_with_state(model, torch.zeros(2, 2, 6, 6)).graph
    importance = TaylorImportance(graph, dict(model.named_parameters()))
    (images, labels), *_ = batches(1)
    backward(model, images, labels)
    importance.gather_()
    assert importance.state_dict()["tensors"]["importance"]["norm.bias"].all()
    assert not importance.of_channels().any()


def test_sums_go_through_a_cut_with_their_channels() -> None:
    model, graph, importance = traced()
    with torch.no_grad():
        model.inner.weight[[0, 3]] = 0
        model.inner.bias[[0, 3]] = 0
        model.outer.weight[:, [0, 3]] = 0
    for images, labels in batches(2):
        backward(model, images, labels)
        importance.gather_()
    before = importance.of_channels()[find_spaces(graph).ids["inner", "out"]]
    proposal = propose_cut(graph, model.state_dict(), threshold=1e-4, criterion="either")
    cut = proposal.apply(proposal.plan())
    smaller = TaylorImportance(cut.graph, cut.state)
    smaller.load_state_dict(cut_state(importance.state_dict(), cut.sources))
    spaces = find_spaces(cut.graph)
    np.testing.assert_array_equal(smaller.of_channels()[spaces.ids["inner", "out"]], before[[1, 2, 4]])
    assert smaller.of_channels()[spaces.ids["norm1", "features"]].all()


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_sums_must_be_sums_of_squares(wrong: float) -> None:
    importance = traced()[2]
    state = importance.state_dict()
    state["tensors"]["importance"]["norm1.bias"][2] = wrong
    with pytest.raises(ValueError, match="not a finite number of at least 0"):
        importance.load_state_dict(state)
    state["tensors"]["importance"]["norm1.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match="does not fit"):
        importance.load_state_dict(state)


def test_importance_takes_the_place_of_norms_where_there_is_any() -> None:
    """The stream has none, so there the norms decide; inside the block they would choose channel 1."""
    model, graph, _ = traced()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[:] = 1
        model.inner.weight[1] *= 0.5
        for conv in (model.stem, model.outer):
            conv.weight[4] *= 0.1
        model.inner.weight[:, 4] *= 0.1
        model.head.weight[:, 4] *= 0.1
    ids = find_spaces(graph).ids
    importance = np.zeros(find_spaces(graph).num_channels)
    importance[ids["inner", "out"]] = [2, 3, 0.5, 2, 2]
    least = costs(graph).macs - 1
    for measure in (None, importance):
        ranking = Ranking(graph, model.state_dict(), criterion="either", importance=measure)
        assert ranking.weakest(least)[0] == ids["norm1", "features"][4]
    by_norm, by_importance = (
        Ranking(graph, model.state_dict(), criterion="either", importance=measure).weakest(0.6 * least) for measure in (None, importance)
    )
    inner = set(map(int, ids["inner", "out"]))
    assert next(channel for channel in by_norm if channel in inner) == ids["inner", "out"][1]
    assert next(channel for channel in by_importance if channel in inner) == ids["inner", "out"][2]


# In runs.

NETWORK = f"{Path(__file__).with_name('networks_of_users') / 'my_net.py'}:Net"  # residual, concatenation, depthwise conv, squeeze-excite
RUN: dict[str, Any] = {"model": NETWORK, "epochs": 4, "prune_interval": 1, "target_macs": 0.3, "target_by": 1.0, "importance": "taylor"}


def test_a_run_that_was_stopped_goes_on_bit_for_bit(images: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, when a part of the sums is there, and at its end."""
    config = settings(images, tmp_path / "whole", **RUN)
    whole = start_run(config, Recorder())
    assert costs(read_graph(whole.network)).macs <= 0.3 * whole.history[0]["macs"]
    outcome = start_run(settings(images, tmp_path / "parts", **RUN), Recorder((1, 3)))
    sums = load_checkpoint(outcome.run.last).method["tensors"]["importance"]
    assert any(tensor.any() for tensor in sums.values())
    for stop in ((2, 2), (2, 5), (3, 1), None):
        assert not outcome.finished
        outcome = resume_run(outcome.run.last, {}, Recorder(stop))
    assert_same_run(outcome.run, whole.run)
    left, right = (load_checkpoint(run.last).method for run in (outcome.run, whole.run))
    assert_identical(left, right, "method")


@pytest.mark.parametrize(("interval", "prune_at", "anew"), [(1, 1, True), (2, 1, True), (2, 0, False)], ids=str)
def test_an_interval_begins_without_what_was_gathered_before(
    images: Path, tmp_path: Path, interval: int, prune_at: int, *, anew: bool
) -> None:
    """Also the first, after epochs of dense training: here the second epoch, unless it is the second of two."""
    sums = []
    for stop in ((1, 5), (2, 1)):
        changes = RUN | {"prune_at": prune_at, "prune_interval": interval, "epochs": 6}
        outcome = start_run(settings(images, tmp_path / str(stop[0]), **changes), Recorder(stop))
        sums.append(load_checkpoint(outcome.run.last).method["tensors"]["importance"])
    before, after = (torch.cat(list(found.values())) for found in sums)
    assert after.any()
    assert (after < before).any() == anew  # sums of squares never fall


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return start_run(settings(images, tmp_path_factory.mktemp("dense"), model=NETWORK, penalty_ratio=0.0, epochs=2), Recorder())


def widths(outcome: Outcome) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in load_checkpoint(outcome.run.last).model.items() if tensor.dim() == 4}


def test_a_trained_network_is_pruned_by_importance_unless_asked_otherwise(trained: Outcome) -> None:
    """Nothing is gathered once the target is reached."""
    common: dict[str, Any] = {"method": "group-lasso", "epochs": 3, "target_macs": 0.5, "target_by": 0.6, "prune_interval": 1}
    ways: dict[str, dict[str, Any]] = {"taylor": {}, "norm": {"importance": "norm"}}
    found = {name: prune(trained.run.last, name=name, **common, **changes) for name, changes in ways.items()}
    assert widths(found["taylor"]) != widths(found["norm"])
    for outcome in found.values():
        assert 0.4 <= costs(read_graph(outcome.network)).macs / trained.history[0]["macs"] <= 0.5
    assert not load_checkpoint(found["norm"].run.last).method["tensors"]
    assert not any(tensor.any() for tensor in load_checkpoint(found["taylor"].run.last).method["tensors"]["importance"].values())


@pytest.mark.parametrize(
    ("trained_with", "given", "expected"),
    [("auto", None, "taylor"), ("auto", "auto", "taylor"), ("norm", None, "norm"), ("norm", "auto", "taylor"), ("taylor", "norm", "norm")],
)
def test_what_auto_is_for_a_trained_network(trained: Outcome, tmp_path: Path, trained_with: str, given: str | None, expected: str) -> None:
    checkpoint = load_checkpoint(trained.run.last)
    path = tmp_path / "checkpoints" / "x" / "last.pt"
    path.parent.mkdir(parents=True)
    save_checkpoint(path, replace(checkpoint, config=checkpoint.config | {"importance": trained_with}))
    config = pruning_config(path, {"method": "group-lasso"} | ({} if given is None else {"importance": given}))
    assert config.importance == expected


def test_a_run_of_an_older_version_goes_on_as_it_began(trained: Outcome) -> None:
    """By norms, without being asked."""
    common: dict[str, Any] = {"method": "group-lasso", "epochs": 2, "name": "older"}
    stopped = prune(trained.run.last, observer=Recorder((3, 2)), importance="norm", **common)
    assert not stopped.finished
    checkpoint = load_checkpoint(stopped.run.last)
    older = {name: value for name, value in checkpoint.config.items() if name != "importance"}
    save_checkpoint(stopped.run.last, replace(checkpoint, config=older))
    outcome = prune(trained.run.last, resume=True, **common)
    assert outcome.finished
    assert not load_checkpoint(outcome.run.last).method["tensors"]
    with pytest.raises(ConfigError, match="--importance cannot change"):
        prune(trained.run.last, resume=True, importance="taylor", **common)


def test_damaged_sums_are_the_checkpoints_fault(images: Path, tmp_path: Path) -> None:
    outcome = start_run(settings(images, tmp_path, **RUN), Recorder((1, 2)))
    checkpoint = load_checkpoint(outcome.run.last)
    next(iter(checkpoint.method["tensors"]["importance"].values()))[0] = -1.0
    save_checkpoint(outcome.run.last, checkpoint)
    with pytest.raises(CheckpointError, match="importance of a channel"):
        resume_run(outcome.run.last, {}, Recorder())


@pytest.mark.parametrize(
    ("changes", "gathers"), [({}, True), ({"target_macs": 0.0}, False), ({"penalty_ratio": 0.0}, False), ({"importance": "norm"}, False)]
)
def test_nothing_is_gathered_in_vain(changes: dict[str, Any], *, gathers: bool) -> None:
    model, graph, _ = traced()
    config = TrainConfig(**{"importance": "taylor", **changes})
    method = build_run_method(config, graph, model, 0, empty_method_state()).method
    assert isinstance(method, TaylorImportance) == gathers


def test_it_is_for_targets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--importance has no effect with --target-macs 0"):
        prunetrain.train(importance="taylor", target_macs=0.0, output_dir=str(tmp_path))
    other = TrainConfig(method="fpgm", rate=0.5, importance="taylor", target_macs=0.0)
    check_ignored_settings({"importance": "taylor", "method": "fpgm"}, other)  # for which targets mean nothing either
    with pytest.raises(ConfigError, match="did you mean taylor"):
        prunetrain.train(importance="tailor", output_dir=str(tmp_path))


# In other loops.


def pruner_of(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> prunetrain.PruneTrain:
    return prunetrain.PruneTrain(model, optimizer, EXAMPLE, **{"penalty_ratio": 0, "importance": "taylor", **settings})


def faded(pruner: prunetrain.PruneTrain) -> list[int]:
    channels = pruner.state_dict()["fade"]["channels"]
    assert isinstance(channels, list)
    return channels


def test_a_fade_goes_by_the_steps_before_it() -> None:
    """Without any, by norms; the sums begin again with every fade, and their place is in the middle of the optimizer's step."""
    chosen = {}
    for steps in (0, 3):
        for importance in ("taylor", "norm"):
            model = network()
            optimizer = sgd(model)
            pruner = pruner_of(model, optimizer, importance=importance)
            train_(model, optimizer, steps)
            pruner.fade(macs=0.7, steps=2)
            chosen[steps, importance] = faded(pruner)
            if importance == "taylor":
                assert not any(tensor.any() for tensor in pruner.state_dict()["importance"]["tensors"]["importance"].values())
    assert chosen[0, "taylor"] == chosen[0, "norm"]
    assert chosen[3, "taylor"] != chosen[3, "norm"]
    model = network()
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer)
    weights = dict(model.named_parameters())
    reference = TaylorImportance(pruner.graph, {name.replace(".", "_", name.count(".") - 1): weight for name, weight in weights.items()})
    for images, labels in batches(3):
        F.cross_entropy(model(images), labels).backward()
        reference.gather_()
        optimizer.step()
        optimizer.zero_grad()
    ranking = Ranking(
        pruner.graph, reference_state(model), criterion="either", trained=reference_state(model), importance=reference.of_channels()
    )
    assert chosen[3, "taylor"] == ranking.weakest(0.7 * costs(pruner.graph).macs)


def reference_state(model: nn.Module) -> dict[str, Tensor]:
    return {name.replace(".", "_", name.count(".") - 1): tensor.detach() for name, tensor in model.state_dict().items()}


def test_a_loop_goes_on_in_another_process_and_after_a_cut(tmp_path: Path) -> None:
    """Saved between two fades, loaded into a new pruner for the same network; the second fade goes by what both have seen."""
    found = []
    for saved in (False, True):
        model: nn.Module = network()
        optimizer = sgd(model)
        pruner = pruner_of(model, optimizer)
        train_(model, optimizer, 2)
        pruner.fade(macs=0.8, steps=3)
        train_(model, optimizer, 4, seed=1)
        step = pruner.reconfigure(tmp_path / "net.py")
        assert step.change.macs[1] < step.change.macs[0]
        model, optimizer = step.model, step.optimizer
        if saved:
            torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], tmp_path / "state.pt")
            weights, moments, own = torch.load(tmp_path / "state.pt", weights_only=True)
            model = prunetrain.load_network(tmp_path / "net.py").double()
            model.load_state_dict(weights)
            optimizer = sgd(model)
            optimizer.load_state_dict(moments)
            pruner = pruner_of(model, optimizer, importance="norm")
            pruner.load_state_dict(own)
        pruner.fade(macs=0.5, steps=2)
        found.append(faded(pruner))
    assert found[0] == found[1]
    norms = pruner_of(model, optimizer, importance="norm")
    norms.fade(macs=0.5 * costs(pruner.dense).macs / costs(norms.dense).macs, steps=2)
    assert faded(norms) != found[0]


def test_states_of_older_versions_have_no_sums() -> None:
    model = network()
    pruner = pruner_of(model, sgd(model))
    state = pruner.state_dict()
    del state["importance"], state["settings"]["importance"]
    pruner.load_state_dict(state)
    assert pruner.state_dict()["importance"] is None
    state = pruner_of(model, sgd(model)).state_dict()
    next(iter(state["importance"]["tensors"]["importance"].values()))[0] = -1.0
    with pytest.raises(CheckpointError, match="importance of a channel"):
        pruner.load_state_dict(state)


@pytest.mark.parametrize(("importance", "message"), [("auto", "must be norm or, for .*, taylor"), ("tailor", "did you mean taylor")])
def test_a_loop_says_what_ranks_its_channels(importance: str, message: str) -> None:
    """The pruner cannot know whether its network is trained."""
    model = network()
    with pytest.raises(ConfigError, match=message):
        pruner_of(model, sgd(model), importance=importance)


@pytest.mark.parametrize("by_name", [False, True])
def test_gradients_may_come_from_the_closure_of_a_step(*, by_name: bool) -> None:
    """As Lightning computes them: before the step there are none, or those of the step before."""
    sums = []
    for with_closure in (False, True):
        model = network()
        optimizer = sgd(model)
        pruner = pruner_of(model, optimizer)
        for images, labels in batches(3):

            def closure(model: nn.Module = model, images: Tensor = images, labels: Tensor = labels) -> float:
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                return float(loss.detach())

            optimizer.zero_grad()
            if not with_closure:
                closure()
                optimizer.step()
            else:
                loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
                assert isinstance(loss, float)
        sums.append(pruner.state_dict()["importance"]["tensors"]["importance"])
    assert_identical(sums[1], sums[0], "importance")
    assert any(tensor.any() for tensor in sums[0].values())


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_of_the_lasso_is_no_part_of_it(*, fused: bool) -> None:
    """A subgradient is added before the step, in which importance is gathered otherwise; steps without it count as well."""
    sums = []
    for ratio, enabled in ((0.0, False), (0.5, False), (0.5, True)):
        model = Residual(lambda size: nn.Identity()).double()
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        pruner = pruner_of(model, optimizer, penalty_ratio=ratio, lasso_step="subgradient", scaler=scaler)
        for step, (images, labels) in enumerate(batches(3)):
            loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            if step < 2:
                pruner.regularize(loss)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        sums.append(pruner.state_dict()["importance"]["tensors"]["importance"])
    assert sums[0]["inner.bias"].all()
    for name, tensor in sums[0].items():
        for other in sums[1:]:
            torch.testing.assert_close(other[name], tensor, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_makes_no_difference(*, fused: bool, unscale: bool) -> None:
    sums = []
    for enabled in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        pruner = pruner_of(model, optimizer, scaler=scaler)
        for images, labels in batches(3):
            scaler.scale(F.cross_entropy(model(images), labels)).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        sums.append(pruner.state_dict()["importance"]["tensors"]["importance"])
    for name, tensor in sums[0].items():
        torch.testing.assert_close(sums[1][name], tensor, rtol=1e-9, atol=0.0)
        assert tensor.any()
