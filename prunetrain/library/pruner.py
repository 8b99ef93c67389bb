"""`PruneTrain`: makes the network of someone's own training loop smaller while it trains.

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

`fade` leads to a number of multiply-accumulates at a known step, whatever the lasso does and with any optimizer:

    for epoch in range(epochs):
        if epoch < 10:
            pruner.fade(macs=1 - 0.05 * (epoch + 1), steps=len(loader))  # to half of them in ten cuts
        ...  # an epoch of training
        step = pruner.reconfigure()
        model, optimizer = step.model, step.optimizer

A cut makes a new network. The optimizer stays the same object and goes on with the new parameters, so that schedulers, GradScalers and
whatever else holds it need nothing done. The lasso (PruneTrain, arXiv 1901.09290) acts in every step and goes on until `close`: the command
line's is released when its target is reached, which one's own loop does by leaving `regularize` out.
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

from prunetrain.channels.slicing import Cut, propose_cut
from prunetrain.config import TrainConfig
from prunetrain.errors import CheckpointError, ConfigError, NetworkFileError
from prunetrain.files import write_atomically, write_text
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.library.ema import copy_inside, cut_average
from prunetrain.library.fade import Fade, weakest_channels
from prunetrain.library.keeping import keeping
from prunetrain.library.network import Network
from prunetrain.library.optimizer import check_optimizer, swap
from prunetrain.library.penalty import Penalty
from prunetrain.library.settings import Settings
from prunetrain.library.wrapping import unwrap
from prunetrain.paths import NETWORK_NAME
from prunetrain.training.events import Change

_OLD_MODEL = "the network has no gradients: call loss.backward() first; after reconfigure(), train the model of its result"


@dataclass(frozen=True)
class Reconfigured:
    """What to go on with after a reconfiguration.

    After a cut `model` is new, in the wrapping of the old one, which stays as it was; if nothing was cut it is the old one. `optimizer` is
    the same object, now with the new parameters. `ema` is the average that the pruner was given, cut as well: the same object where it is a
    holder such as `AveragedModel`, else a new network. `change` has channels, MACs and parameters before and after. `path` is the network
    file, if one was written.

    A new model is of the network file's own flat class: names have `_` for `.` (`layer1.0.conv1` is `layer1_0_conv1`), and methods, hooks
    and other attributes of your class are not carried over. It can be pickled, as by `torch.save(model)`; what reads that needs
    prunetrain, while the `.py` file and a `state_dict()` need torch alone.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: nn.Module | None
    change: Change
    path: Path | None


class PruneTrain:
    """Group lasso, fading and cuts for a model that someone else trains.

    The proximal step shrinks norms by the learning rate times lambda. So Adam and its kin, whose learning rates are small, prune little by
    the lasso; `fade` takes no notice of learning rates.

    Args:
        model: any module that `prunetrain.trace` takes, by itself or wrapped by DistributedDataParallel, torch.compile or both.
        optimizer: any torch optimizer whose state is shaped like its parameters (all of torch.optim but LBFGS), with any groups. Weights
            that it does not have are not penalised and do not fade. A second optimizer of the same model would go on with the tensors of
            before a cut: give one optimizer all that is trained, in groups.
        example_input: a batch; only its shape counts.
        penalty_ratio: share of the lasso in the loss at the first batch, in [0, 1); 0 is without the lasso.
        threshold: a slice is dead when all its absolute weights are under this.
        criterion: "either" cuts every channel that can go without a change, "union" those that all layers around agree on.
        lasso_groups: "coupled" penalises channels, "slices" filters and input slices.
        lasso_step: "proximal" shrinks weights right after `optimizer.step()`, by a hook on the optimizer; "subgradient" adds to `.grad`.
        round_to: channel counts are kept to multiples of this.
        scaler: the loop's GradScaler, if it has one.
        ema: an average of the model's weights, made from the model: an `AveragedModel`, or a copy.

    Raises:
        ConfigError: for a setting out of range, or an optimizer or ema that does not go with the model.
        TraceError: for a model that cannot be a network file.
    """

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
        )
        self._model = model
        module, self._wrapping = unwrap(model)
        self._network = Network.of(module, example_input)
        self._dense = self._network.graph
        check_optimizer(optimizer, self._network.parameters())
        self._optimizer = optimizer
        self._penalty = Penalty(self._network, optimizer, lasso_groups)
        self._scaler = scaler
        self._ema = ema
        if ema is not None:
            copy_inside(ema, self._network)
        self._strength: float | None = None
        self._due = False  # whether the next optimizer step is to be followed by a proximal one
        self._fade: Fade | None = None
        self._old: list[weakref.ref[nn.Parameter]] = []  # the parameters of before the last cut, without gradients then
        self._hook = optimizer.register_step_post_hook(_after_step(weakref.ref(self)))
        weakref.finalize(self, self._hook.remove)

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
        """Let the lasso act on the next optimizer step; call it between `backward()` and `optimizer.step()`, once a step.

        The first call sets lambda. With a GradScaler, call it before or after `scaler.unscale_(optimizer)`.

        Args:
            loss: the mean loss of the batch, not multiplied by a scaler, not divided for the accumulation of gradients.

        Raises:
            ConfigError: if the model that is trained is not the one that the pruner has, or the first loss can set no lambda.
        """
        if self._settings.penalty_ratio == 0:
            return
        if all(parameter.grad is None for parameter in self._network.module.parameters()):
            raise ConfigError(_OLD_MODEL)
        if self._strength is None:
            self._strength = self._first_strength(loss)
        if self._settings.lasso_step == "proximal":
            self._due = True
        else:
            self._penalty.add_gradient_(self._strength or 0.0, scale=self._gradient_scale())

    def fade(self, macs: float, steps: int) -> float:
        """Fade the weakest channels out over the next optimizer steps: then a cut takes them and changes nothing.

        Their weights, and those of `ema`, fall to zero in a straight line, and stay there until `reconfigure`, with which the fading ends.
        Neither `regularize` nor a `penalty_ratio` is needed. Channels are ranked by their norms as shares of the mean of their space
        (`docs/methods.md`).

        Args:
            macs: the multiply-accumulates to get down to, as a share of the dense network's, in (0, 1).
            steps: calls of `optimizer.step()` until the weights are zero, from 1: no more than there are before `reconfigure`, which are
                fewer than batches where gradients are accumulated, and some less where a GradScaler may skip steps.

        Returns:
            The share of the multiply-accumulates that the cut will leave: over `macs` where no more can go.

        Raises:
            ConfigError: for numbers out of range.
        """
        if not 0 < macs < 1:
            raise ConfigError(f"macs must be over 0 and under 1, a share of the dense network's, not {macs}")
        if steps < 1:
            raise ConfigError(f"steps must be 1 or more, not {steps}")
        dense, weights = costs(self._dense).macs, self._penalty.trained()
        channels, left = self._wrapping.ranks.on_first(lambda: weakest_channels(self._network, weights, macs * dense, self._settings))
        self._fade = Fade(self._network.graph, weights, self._average(), channels=channels, steps=steps)
        return left / dense

    def reconfigure(self, path: str | Path | None = None, *, keep: Mapping[str, Collection[int]] | None = None) -> Reconfigured:
        """Cut the channels that are dead. Call it between two optimizer steps; under DistributedDataParallel on every rank.

        The outputs stay what they are, in eval mode and in train mode. If some BatchNorms are in eval mode while the others train, call it
        in these modes: train mode is then what the network is in now, and the smaller network is left in it.

        Args:
            path: where to write the smaller network, as `.py`; its weights go beside it as `.pt` (a state dict). None writes nothing. A
                name like epoch_010.py puts the epoch into the file's header.
            keep: filters that you chose yourself, by the layer's name in the network file: the layer keeps these, and its others go, dead
                or not.

        Returns:
            What to go on training with: as before, if nothing was cut.

        Raises:
            ConfigError: for a path or choice that does not work, or an optimizer whose state cannot be cut.
            UserWarning: if channels are still fading; they stay.
            OutputError: if a file cannot be written; the pruner, the model and the optimizer are then as before.
        """
        start = time.perf_counter()
        file = None if path is None else Path(path)
        if file is not None and file.suffix != ".py":
            raise ConfigError(f"{file}: a network file ends in .py")
        if self._fade and self._fade.unfinished:
            warnings.warn(
                f"{self._fade.unfinished} of the fade were made, so that its channels are not zero and stay: fade() over as many calls of "
                "optimizer.step() as there are before reconfigure()",
                stacklevel=2,
            )
        network, ranks = self._network, self._wrapping.ranks
        cut = self._cut(keep or {})
        change = Change.of(costs(network.graph), cut, self._settings.round_to, {})
        source = render(cut.graph, dense=self._dense, epoch=_epoch_of(file))
        filename = str(file or "<prunetrain>")
        if cut.graph == network.graph:
            if file is not None:
                flat = network.cut(cut, source, filename).module
                ranks.on_first(lambda: _write(file, source, flat))
            self._fade = None
            return Reconfigured(self._model, self._optimizer, self._ema, _timed(change, start), file)
        smaller = network.cut(cut, source, filename)
        swapped = swap(self._optimizer, network, smaller, cut.sources)
        put_average = self._cut_average(cut, source, filename)
        if file is not None:
            ranks.on_first(lambda: _write(file, source, smaller.module))
        model = self._wrapping(smaller.module)
        # From here on nothing can fail.
        swapped.apply_(self._optimizer)
        if put_average is not None:
            self._ema = put_average()
        self._model, self._network = model, smaller
        self._old = [weakref.ref(parameter) for parameter in network.module.parameters() if not _has_gradient(parameter)]
        self._penalty = Penalty(smaller, self._optimizer, self._settings.lasso_groups)
        self._due, self._fade = False, None
        return Reconfigured(model, self._optimizer, self._ema, _timed(change, start), file)

    def _cut(self, keep: Mapping[str, Collection[int]]) -> Cut:
        """The network without what is dead, or was not chosen to be kept; of several ranks all take the first one's weights before."""
        network, settings = self._network, self._settings
        self._wrapping.ranks.share_(network.state().values())
        proposal = propose_cut(
            network.graph,
            network.state(),
            threshold=settings.threshold,
            criterion=settings.criterion,
            always_eval=network.always_eval(),
        )
        proposal = keeping(proposal, keep)
        return proposal.apply(proposal.plan(settings.round_to))

    def _cut_average(self, cut: Cut, source: str, filename: str) -> Callable[[], nn.Module] | None:
        """Cut the ema, if there is one, and say what puts the smaller one in its place; nothing has changed until that is called."""
        if self._ema is None:
            return None
        copy, put = copy_inside(self._ema, self._network)
        return partial(put, cut_average(copy, self._network, cut, source, filename))

    def state_dict(self) -> dict[str, Any]:
        """Lambda, settings, what fades and the network as plain values, for a checkpoint. Weights and optimizer state have state dicts.

        To go on: `load_network` the file that `reconfigure` wrote (or make your own model, if there was no cut yet), load its weights,
        make the optimizer and a `PruneTrain` for them, and load this.
        """
        network, dense = render(self._network.graph), render(self._dense)
        fade = self._fade and self._fade.state_dict()
        return {"lasso_strength": self._strength, "network": network, "dense": dense, "settings": asdict(self._settings), "fade": fade}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the pruner whose `state_dict` this is; its settings replace those that this one was made with.

        Raises:
            CheckpointError: for what is no such state, or one of another network.
        """
        try:
            network, dense, settings = parse(state["network"], "network"), parse(state["dense"], "dense"), Settings(**state["settings"])
            strength = None if state["lasso_strength"] is None else float(state["lasso_strength"])
            if network != self._network.graph:
                raise CheckpointError(
                    "the pruner's state is of another network: make the PruneTrain for the network that it was saved with"
                )
            penalty = Penalty(self._network, self._optimizer, settings.lasso_groups)
            fade = None if state["fade"] is None else Fade(network, penalty.trained(), self._average(), **state["fade"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ConfigError, NetworkFileError) as error:
            raise CheckpointError(f"this is not what PruneTrain.state_dict() returns ({type(error).__name__}: {error})") from None
        self._settings, self._dense, self._strength, self._penalty, self._fade = settings, dense, strength, penalty, fade

    def close(self) -> None:
        """Take the hook off the optimizer: lasso and fading act no more."""
        self._hook.remove()

    def _average(self) -> Network | None:
        """The copy of the network inside the ema."""
        return None if self._ema is None else copy_inside(self._ema, self._network)[0]

    def _first_strength(self, loss: Tensor | float) -> float | None:
        """Lambda, or None while nothing that could be penalised is trained, or the loss cannot be."""
        mean = self._wrapping.ranks.mean(float(loss.detach() if isinstance(loss, Tensor) else loss), self._network.device)
        if self._scaler is not None and self._scaler.is_enabled() and not isfinite(mean):  # an overflow, whose step is skipped
            return None
        if not isfinite(mean) or mean <= 0:
            raise ConfigError(f"the first loss sets the strength of the lasso; it must be a finite number over 0, not {mean}")
        return self._penalty.strength_for(self._settings.penalty_ratio, mean) or None

    def _gradient_scale(self) -> Tensor | None:
        """The scale of a GradScaler that has not divided the gradients by it yet; still on the device, where `get_scale` would wait."""
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        stage = self._scaler._per_optimizer_states[id(self._optimizer)]["stage"]
        return self._scaler.scale(torch.ones((), device=self._network.device)) if stage is OptState.READY else None

    def _after_step(self) -> None:
        """The proximal step, once after each optimizer step that `regularize` came before; and a step of fading.

        Raises:
            ConfigError: if the loop goes on with the model of before a cut.
        """
        if any(_has_gradient(old()) for old in self._old) and not any(map(_has_gradient, self._network.module.parameters())):
            raise ConfigError(_OLD_MODEL)
        if self._due:
            self._due = False
            self._shrink()
        if self._fade:
            self._fade.after_step_()

    def _shrink(self) -> None:
        infinite = getattr(self._optimizer, "found_inf", None)  # a GradScaler lets fused optimizers skip the step themselves
        self._penalty.shrink_(self._strength or 0.0, unless=None if infinite is None else infinite > 0)


def _after_step(reference: "weakref.ref[PruneTrain]") -> Callable[..., None]:
    """A hook that does not keep its pruner alive."""

    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pruner = reference()
        if pruner is not None:
            pruner._after_step()

    return hook


def _timed(change: Change, start: float) -> Change:
    return replace(change, seconds={"total": time.perf_counter() - start})


def _has_gradient(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.grad is not None


def _epoch_of(path: Path | None) -> int | None:
    match = NETWORK_NAME.fullmatch(path.name) if path else None
    return int(match[1]) if match else None


def _write(path: Path, source: str, module: nn.Module) -> None:
    """The network file, then its weights."""
    write_text(path, source)
    weights = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    write_atomically(path.with_suffix(".pt"), lambda file: torch.save(weights, file))
