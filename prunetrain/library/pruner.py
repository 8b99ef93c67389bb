"""`PruneTrain`: makes the network of your own training loop smaller while it trains.

    pruner = prunetrain.PruneTrain(model, optimizer, example_input=torch.randn(1, 3, 224, 224), penalty_ratio=0.2)
    for epoch in range(epochs):
        for x, y in loader:
            loss = criterion(model(x), y)
            loss.backward()
            pruner.regularize(loss)
            optimizer.step()
            optimizer.zero_grad()
        if epoch % 10 == 9:
            step = pruner.reconfigure(f"generated_nets/mine/epoch_{epoch + 1:03d}.py")
            model, optimizer = step.model, step.optimizer

`fade` reaches a given number of multiply-accumulates at a known step, whatever the lasso does and with any optimizer:

    for epoch in range(epochs):
        if epoch < 10:
            pruner.fade(macs=1 - 0.05 * (epoch + 1), steps=len(loader))  # to half of them in ten cuts
        ...  # one epoch of training
        step = pruner.reconfigure()
        model, optimizer = step.model, step.optimizer

A cut makes a new network. The optimizer stays the same object and continues with the new parameters, so that schedulers, GradScalers and
whatever else holds it need no change. The lasso (PruneTrain, arXiv 1901.09290) acts in every step that follows a call of `regularize`,
until `close`. The command line releases it once the target is reached; in your own loop, stop calling `regularize`.
"""

import time
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunetrain.channels.slicing import Cut, propose_cut
from prunetrain.config import NORM, TrainConfig
from prunetrain.errors import CheckpointError, ConfigError, NetworkFileError, TraceError
from prunetrain.files import write_atomically, write_text
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.library.chosen_filters import keep_filters
from prunetrain.library.ema import cut_average, find_average
from prunetrain.library.fade import Fade, weakest_channels
from prunetrain.library.importance import Args, Kwargs, StepImportance
from prunetrain.library.network import Network
from prunetrain.library.optimizer import check_optimizer, prepare_swap
from prunetrain.library.penalty import Penalty
from prunetrain.library.settings import Settings
from prunetrain.library.undisturbed import undisturbed
from prunetrain.library.wrapping import unwrap
from prunetrain.paths import NETWORK_NAME
from prunetrain.regularizers.fused_layers import kernels_work
from prunetrain.training.events import Change

_OLD_MODEL = "the network has no gradients: call loss.backward() first; after reconfigure(), train the model of its result"


@dataclass(frozen=True)
class Reconfigured:
    """What to continue training with after a reconfiguration.

    After a cut, `model` is a new network in the old one's wrapping, and the old one only loses its gradients; if nothing was cut, it is the
    old one.
    `optimizer` is the same object, now with the new parameters. `ema` is the average that the pruner was given, cut as well: the same
    object if it is a holder such as `AveragedModel`, else a new network. `change` has channels, MACs and parameters before and after.
    `path` is the network file, if one was written.

    A new model's class is the flat one of the network file: names have `_` for `.` (`layer1.0.conv1` is `layer1_0_conv1`), and methods,
    hooks and other attributes of your class are not carried over. It can be pickled, as by `torch.save(model)`. Reading the pickle needs
    prunetrain, while the `.py` file and a `state_dict()` need only torch.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: nn.Module | None
    change: Change
    path: Path | None


class PruneTrain:
    """Group lasso, fading and cuts for the model of your own training loop.

    The proximal step shrinks norms by the learning rate times lambda. So with Adam and its relatives, whose learning rates are small, the
    lasso prunes little; `fade` does not depend on the learning rate.

    Args:
        model: any module that `prunetrain.trace` accepts, by itself or wrapped by DistributedDataParallel, torch.compile or both. Under
            DistributedDataParallel, every rank makes its own pruner, at the same point of the program.
        optimizer: any torch optimizer whose state has the shapes of its parameters (all of torch.optim but LBFGS), with any groups. Weights
            that it does not have are not penalised and do not fade. Give a single optimizer all trained parameters, in groups: a second
            one would keep the old tensors after a cut, and is refused at its next step.
        example_input: a batch; only its shape matters.
        penalty_ratio: share of the lasso in the loss at the first batch, in [0, 1); 0 turns the lasso off.
        threshold: a slice is dead when all its absolute weights are under this.
        criterion: "either" cuts every channel that can go without changing the outputs, "union" those that are dead in all layers around.
        lasso_groups: "coupled" penalises channels, "slices" filters and input slices.
        lasso_step: "proximal" shrinks weights right after `optimizer.step()`, by a hook on the optimizer; "subgradient" adds to `.grad`.
        round_to: channel counts are kept at multiples of this.
        importance: what ranks channels for `fade`: "norm", that of their weights, or "taylor", a first-order expansion of the loss over the
            optimizer steps since the last fade (`docs/methods.md`). For networks that are trained already, "taylor" is a little better.
        scaler: the loop's GradScaler, if it has one.
        ema: an average of the model's weights, made from the model: an `AveragedModel`, or a copy.

    Raises:
        ConfigError: for a setting out of range, or an optimizer or ema that does not fit the model.
        TraceError: for a model that cannot be written as a network file.
    """

    @undisturbed()
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example_input: Tensor,
        *,
        penalty_ratio: float = TrainConfig.penalty_ratio,
        threshold: float = TrainConfig.threshold,
        criterion: str = TrainConfig.criterion,
        lasso_groups: str = TrainConfig.lasso_groups,
        lasso_step: str = TrainConfig.lasso_step,
        round_to: int = 1,
        importance: str = NORM,
        scaler: GradScaler | None = None,
        ema: nn.Module | None = None,
    ) -> None:
        self._settings = Settings(
            penalty_ratio=penalty_ratio,
            threshold=threshold,
            criterion=criterion,
            lasso_groups=lasso_groups,
            lasso_step=lasso_step,
            round_to=round_to,
            importance=importance,
        )
        self._model = model
        module, self._wrapping = unwrap(model)
        self._network = Network.of(module, example_input)
        self._dense = self._network.graph
        check_optimizer(optimizer, self._network.parameters())
        self._optimizer = optimizer
        ranks = self._wrapping.ranks
        self._kernels = ranks.world_size == 1 or ranks.all_agree(kernels_work(self._network.device), self._network.device)
        self._penalty = Penalty(self._network, optimizer, lasso_groups, kernels=self._kernels)
        self._scaler = scaler
        self._ema = ema
        if ema is not None:
            find_average(ema, self._network)
        self._strength: float | None = None
        self._proximal_step_due = False  # whether a proximal step must follow the next optimizer step
        self._fade: Fade | None = None
        self._importance = StepImportance.wanted(self._network, self._settings)
        self._old_parameters: list[weakref.ref[nn.Parameter]] = []  # from before the last cut, which took their gradients away
        self._closed = False
        self._hooks = [
            optimizer.register_step_pre_hook(_hook(weakref.WeakMethod(self._before_step))),
            optimizer.register_step_post_hook(_hook(weakref.WeakMethod(self._after_step))),
            register_optimizer_step_post_hook(_hook(weakref.WeakMethod(self._check_other))),
        ]
        for handle in self._hooks:
            weakref.finalize(self, handle.remove)

    @property
    def graph(self) -> LayerGraph:
        """The network as it is now."""
        return self._network.graph

    @property
    def dense(self) -> LayerGraph:
        """The network before any cut."""
        return self._dense

    @property
    def lasso_strength(self) -> float | None:
        """Lambda; None before the first call of `regularize`."""
        return self._strength

    def penalty(self) -> float:
        """Lambda * R: what the lasso adds to the loss now."""
        return self._penalty.value() * (self._strength or 0.0)

    def regularize(self, loss: Tensor | float) -> None:
        """Apply the lasso in the next optimizer step; call it between `backward()` and `optimizer.step()`, once per step.

        The first call sets lambda. With a GradScaler, call it before or after `scaler.unscale_(optimizer)`.

        Args:
            loss: the mean loss of the batch, neither multiplied by a scaler nor divided for gradient accumulation.

        Raises:
            ConfigError: if the loop does not train the pruner's current model, or lambda cannot be set from the first loss.
        """
        if self._settings.penalty_ratio == 0 or self._closed:
            return
        if all(parameter.grad is None for parameter in self._network.module.parameters()):
            raise ConfigError(_OLD_MODEL)
        if self._strength is None:
            self._strength = self._first_strength(loss)
        if self._settings.lasso_step == "proximal":
            self._proximal_step_due = True
        else:
            scale = self._gradient_scale()
            if self._importance is not None:  # of the loss without the lasso
                self._importance.gather_(scale)
            self._penalty.add_gradient_(self._strength or 0.0, scale=scale)

    @undisturbed()
    def fade(self, macs: float, steps: int) -> float:
        """Fade out the weakest channels over the next optimizer steps, so that cutting them afterwards does not change the outputs.

        Their weights, and those of `ema`, fall to zero linearly and stay there until `reconfigure`, which ends the fade. Neither
        `regularize` nor a `penalty_ratio` is needed. Channels are ranked by their norm or importance relative to the mean of their space
        (`docs/methods.md`); importance needs optimizer steps before the fade, else it is the norm.

        Args:
            macs: the multiply-accumulates to reach, as a share of the dense network's, in (0, 1).
            steps: calls of `optimizer.step()` until the weights are zero, from 1, and at most as many as there are before `reconfigure`.
                With gradient accumulation these are fewer than batches; with a GradScaler, which may skip steps, ask for some fewer.

        Returns:
            The share of the multiply-accumulates that the cut will leave: over `macs` if no more channels can be removed. Where frozen
            layers read fading channels it may leave more, of which it warns; where other channels are dead by then, less.

        Raises:
            ConfigError: for numbers out of range.
        """
        if not 0 < macs < 1:
            raise ConfigError(f"macs must be over 0 and under 1, a share of the dense network's, not {macs}")
        if steps < 1:
            raise ConfigError(f"steps must be 1 or more, not {steps}")
        dense, weights = costs(self._dense).macs, self._penalty.trained_parameters()
        measured = None if self._importance is None else self._importance.take()
        channels, left = self._wrapping.ranks.on_rank_zero(
            lambda: weakest_channels(self._network, weights, macs * dense, self._settings, measured)
        )
        self._fade = Fade(self._network.graph, weights, self._average(), channels=channels, steps=steps)
        return left / dense

    @undisturbed()
    def reconfigure(self, path: str | Path | None = None, *, keep: Mapping[str, Collection[int]] | None = None) -> Reconfigured:
        """Cut the dead channels. Call it right after an optimizer step, as gradients are lost; under DistributedDataParallel, on each rank.

        The outputs stay the same, in eval mode and in train mode. If your loop keeps some BatchNorms in eval mode while others train, call
        it in these modes: "train mode" then means the network's current modes, and the smaller network has the same.

        Args:
            path: where to write the smaller network, as `.py`; its weights are written beside it as `.pt` (a state dict). None writes
                nothing. A name like epoch_010.py puts the epoch into the file's header.
            keep: filters of your own choice, by the layer's name in the network file: the layer keeps these and loses all others, dead
                or not.

        Returns:
            What to continue training with; the same model as before if nothing was cut.

        Raises:
            ConfigError: for an unusable path or choice, or an optimizer whose state cannot be cut.
            UserWarning: if channels are still fading, or have faded and yet cannot be cut.
            OutputError: if a file cannot be written; the pruner, the model and the optimizer are then unchanged.
        """
        start = time.perf_counter()
        file = None if path is None else Path(path)
        if file is not None and file.suffix != ".py":
            raise ConfigError(f"{file}: a network file ends in .py")
        if self._fade and self._fade.unfinished:
            warnings.warn(
                f"only {self._fade.unfinished} of the fade were made, so its channels are not zero yet and stay: call fade() with no more "
                "steps than there are calls of optimizer.step() before reconfigure()",
                stacklevel=3,  # the decorator is one more
            )
        network, ranks = self._network, self._wrapping.ranks
        cut = self._cut(keep or {})
        change = Change.of(costs(network.graph), cut, self._settings.round_to, {})
        if self._fade and not self._fade.unfinished and not keep and change.macs[1] > (macs := self._fade.macs_left()):
            dense = costs(self._dense).macs
            warnings.warn(
                f"channels that have faded stay, so that {change.macs[1] / dense:.1%} of the multiply-accumulates are left instead of "
                f"{macs / dense:.1%}: something has changed their weights after optimizer.step() (Lookahead does, every few steps), or a "
                "frozen layer reads them, or no weight is under the threshold",
                stacklevel=3,
            )
        source = render(cut.graph, dense=self._dense, epoch=_epoch_of(file))
        filename = str(file or "<prunetrain>")
        if cut.graph == network.graph:
            if file is not None:
                flat = network.cut(cut, source, filename).module
                ranks.on_rank_zero(lambda: _write(file, source, flat))
            self._fade = None
            return Reconfigured(self._model, self._optimizer, self._ema, _timed(change, start), file)
        smaller = network.cut(cut, source, filename)
        swapped = prepare_swap(self._optimizer, network, smaller, cut.sources)
        put_average = self._cut_average(cut, source, filename)
        if file is not None:
            ranks.on_rank_zero(lambda: _write(file, source, smaller.module))
        model = self._wrapping(smaller.module)
        importance = None if self._importance is None else self._importance.cut(smaller, cut.sources)
        # From here on nothing can fail.
        swapped.apply_(self._optimizer)
        if put_average is not None:
            self._ema = put_average()
        self._model, self._network, self._importance = model, smaller, importance
        network.module.zero_grad()  # so that a gradient, later, tells of a loop that continues with the old model
        self._old_parameters = [weakref.ref(parameter) for parameter in network.module.parameters()]
        self._penalty = Penalty(smaller, self._optimizer, self._settings.lasso_groups, kernels=self._kernels)
        self._proximal_step_due, self._fade = False, None
        return Reconfigured(model, self._optimizer, self._ema, _timed(change, start), file)

    def _cut(self, keep: Mapping[str, Collection[int]]) -> Cut:
        """Cut the dead channels, and in layers of `keep` all but the chosen filters. First, all ranks take over rank 0's weights."""
        network, settings = self._network, self._settings
        self._wrapping.ranks.broadcast_(network.state().values())
        proposal = propose_cut(
            network.graph,
            network.state(),
            threshold=settings.threshold,
            criterion=settings.criterion,
            always_eval=network.always_eval(),
        )
        proposal = keep_filters(proposal, keep)
        return proposal.apply(proposal.plan(settings.round_to))

    def _cut_average(self, cut: Cut, source: str, filename: str) -> Callable[[], nn.Module] | None:
        """Cut the ema, if there is one, and return a function that puts the smaller one in its place; nothing changes before its call."""
        if self._ema is None:
            return None
        copy, put = find_average(self._ema, self._network)
        return partial(put, cut_average(copy, self._network, cut, source, filename))

    def state_dict(self) -> dict[str, Any]:
        """Lambda, settings, fading channels, importance and network, to save along with the model's and optimizer's state dicts.

        To resume: `load_network` the file that `reconfigure` wrote (or make your own model, if there was no cut yet), load its weights,
        make the optimizer and a `PruneTrain` for them, and load this.
        """
        network, dense = render(self._network.graph), render(self._dense)
        fade = self._fade and self._fade.state_dict()
        return {
            "lasso_strength": self._strength,
            "network": network,
            "dense": dense,
            "settings": asdict(self._settings),
            "fade": fade,
            "importance": None if self._importance is None else self._importance.state_dict(),
        }

    @undisturbed()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as the pruner whose `state_dict` this is; its settings replace those given to this one.

        Raises:
            CheckpointError: if this is not such a state, or is the state of another network.
        """
        try:
            network, dense, settings = parse(state["network"], "network"), parse(state["dense"], "dense"), Settings(**state["settings"])
            strength = None if state["lasso_strength"] is None else float(state["lasso_strength"])
            if not self._network.fits(network):
                raise CheckpointError(
                    "the pruner's state is of another network: make the PruneTrain for the network that it was saved with"
                )
            saved = replace(self._network, graph=network)
            penalty = Penalty(saved, self._optimizer, settings.lasso_groups, kernels=self._kernels)
            importance = StepImportance.wanted(saved, settings, state.get("importance"))
            fade = None if state["fade"] is None else Fade(network, penalty.trained_parameters(), self._average(), **state["fade"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ConfigError, NetworkFileError, TraceError) as error:
            raise CheckpointError(f"this is not what PruneTrain.state_dict() returns ({type(error).__name__}: {error})") from None
        self._settings, self._dense, self._network = settings, dense, saved
        self._strength, self._penalty, self._fade, self._importance = strength, penalty, fade, importance

    def close(self) -> None:
        """Remove the hooks from the optimizers: the lasso and fading no longer act."""
        self._closed = True
        for handle in self._hooks:
            handle.remove()

    def _average(self) -> Network | None:
        """The copy of the network inside the ema."""
        return None if self._ema is None else find_average(self._ema, self._network)[0]

    def _first_strength(self, loss: Tensor | float) -> float | None:
        """Return lambda, or None as long as no penalised weight is trained, or the first steps overflow under a GradScaler."""
        mean = self._wrapping.ranks.mean(float(loss.detach() if isinstance(loss, Tensor) else loss), self._network.device)
        if self._scaler is not None and self._scaler.is_enabled() and not isfinite(mean):  # an overflow, whose step is skipped
            return None
        if not isfinite(mean) or mean <= 0:
            raise ConfigError(f"the first loss sets the lasso's strength, so it must be a finite number over 0, not {mean}")
        return self._penalty.strength_for(self._settings.penalty_ratio, mean) or None

    def _gradient_scale(self) -> Tensor | None:
        """The scale of a GradScaler that has not unscaled the gradients yet, on the device, since `get_scale` would synchronise."""
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        stage = self._scaler._per_optimizer_states[id(self._optimizer)]["stage"]
        return self._scaler.scale(torch.ones((), device=self._network.device)) if stage is OptState.READY else None

    def _before_step(self, optimizer: Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Gather importance."""
        return None if self._importance is None else self._importance.before_step(optimizer, args, kwargs)

    def _after_step(self, optimizer: Optimizer, args: Args, kwargs: Kwargs) -> None:
        """Make a proximal step if `regularize` was called before this optimizer step, and a step of fading.

        Raises:
            ConfigError: if the loop still trains the model from before a cut.
        """
        if any(_has_gradient(old()) for old in self._old_parameters) and not any(map(_has_gradient, self._network.module.parameters())):
            raise ConfigError(_OLD_MODEL)
        if self._importance is not None:
            self._importance.after_step()
        if self._proximal_step_due:
            self._proximal_step_due = False
            self._shrink()
        if self._fade:
            self._fade.after_step_()

    def _check_other(self, optimizer: Optimizer, args: Args, kwargs: Kwargs) -> None:
        """Refuse the step of any optimizer for parameters that a cut has replaced, unless the old model is trained on for itself.

        Raises:
            ConfigError: for such a step.
        """
        old = {reference() for reference in self._old_parameters}
        stale = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter in old]
        if stale and not any(map(_has_gradient, stale)):
            raise ConfigError(
                f"{type(optimizer).__name__} trains parameters that a cut has replaced: give the optimizer of PruneTrain all parameters "
                "that are trained, in groups"
            )

    def _shrink(self) -> None:
        infinite = getattr(self._optimizer, "found_inf", None)  # a GradScaler lets fused optimizers skip the step themselves
        self._penalty.shrink_(self._strength or 0.0, unless=None if infinite is None else infinite > 0)


def _hook(reference: "weakref.WeakMethod[Callable[[Optimizer, Args, Kwargs], Any]]") -> Callable[..., Any]:
    """Return a hook that calls a pruner's method and does not keep the pruner alive."""

    def hook(optimizer: Optimizer, args: Args, kwargs: Kwargs) -> Any:
        method = reference()
        return None if method is None else method(optimizer, args, kwargs)

    return hook


def _timed(change: Change, start: float) -> Change:
    return replace(change, seconds={"total": time.perf_counter() - start})


def _has_gradient(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.grad is not None


def _epoch_of(path: Path | None) -> int | None:
    match = NETWORK_NAME.fullmatch(path.name) if path else None
    return int(match[1]) if match else None


def _write(path: Path, source: str, module: nn.Module) -> None:
    """Write the network file, then its weights."""
    write_text(path, source)
    weights = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    write_atomically(path.with_suffix(".pt"), lambda file: torch.save(weights, file))
