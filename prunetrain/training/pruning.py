"""One pruning of a network by a method, at some point of its training: decide, mask or cut, rewind, reset the optimizer.

In: a checkpoint and the settings. Out: the checkpoint to continue from, of the same network with zeros or of a smaller one. `pruned_run.py`
applies this to runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from prunetrain import methods
from prunetrain.channels.removal import remove_channels
from prunetrain.channels.selection import KeepPlan
from prunetrain.channels.slicing import Cut
from prunetrain.config import TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.method_settings import ADMM, GROUP_LASSO
from prunetrain.methods.conversions import filter_masks, plan_of_masks
from prunetrain.methods.counting import rates_of_rounds, removed_count
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Decision, Options
from prunetrain.methods.registry import decide
from prunetrain.methods.rewinding import WEIGHT_REWINDING_MODES, cut_start_weights, masked_start_weights
from prunetrain.methods.training_method import EARLY, KEEP, empty_method_state
from prunetrain.methods.weights import maskable_layers
from prunetrain.training.checkpoints import Checkpoint
from prunetrain.training.run_method import (
    channels_before_pruning,
    early_weights,
    next_amount,
    next_options,
    rounds_done,
    state_after_pruning,
)


@dataclass(frozen=True)
class PruningResult:
    """A network after a pruning, and its checkpoint; its masks, if weights stay zero; the cut, if channels were removed."""

    graph: LayerGraph
    checkpoint: Checkpoint
    masks: Masks | None
    cut: Cut | None

    @property
    def changed(self) -> bool:
        """Whether it was pruned, or only read."""
        return self.masks is not None or self.cut is not None

    def summary(self) -> str:
        """What is left, in a few words."""
        params = costs(self.graph).params
        if self.masks is None:
            return f"{params:,} parameters"
        left = params - self.masks.removed
        return f"{left:,} of {params:,} parameters, {1 - self.masks.sparsity:.2%} of the {self.masks.total:,} weights that have a mask"


def is_due(config: TrainConfig, rounds: int, epoch: int) -> bool:
    """Whether a run that has done `rounds` prunings must prune now, after `epoch` epochs."""
    return config.method != GROUP_LASSO and rounds < config.rounds and epoch >= config.prune_at + rounds * config.retrain_epochs


def prune_checkpoint(graph: LayerGraph, checkpoint: Checkpoint, config: TrainConfig) -> PruningResult:
    """Do the next pruning of a run, on its checkpoint; the arguments are not changed.

    Args:
        graph: the network.
        checkpoint: the checkpoint at the end of an epoch, of a run that may have pruned before.
        config: only `method`, `rate`, `rounds`, `retrain`, `slice` and the method's own settings matter.

    Raises:
        ConfigError: if the method does not work on this network.
    """
    rounds = rounds_done(checkpoint.method)
    kept = checkpoint.method["tensors"].get(KEEP)
    options = next_options(config, rounds, Masks(kept) if kept and rounds else None)
    sizes = channels_before_pruning(checkpoint.method) if rounds else channels_of(graph)
    if config.rounds > 1 and _cuts(config):
        options = replace(options, layer_rates=_layer_rates_of_round(graph, config, rounds, sizes))
    decision = _decide(graph, checkpoint.model, config, rounds, options)
    early = early_weights(checkpoint.method) if config.retrain in WEIGHT_REWINDING_MODES else {}
    last = rounds + 1 == config.rounds
    fresh = replace(checkpoint, optimizer={}, parameters=[])
    epoch = checkpoint.progress.epoch
    if isinstance(decision, Masks):
        state = masked_start_weights(decision, checkpoint.model, early or None)
        method = state_after_pruning(masks=decision, early={} if last else early, rounds=rounds + 1, epoch=epoch)
        return PruningResult(graph, replace(fresh, model=state, method=method), decision, None)
    masks, plan = decision
    cut = remove_channels(graph, masks.applied(checkpoint.model) if masks else checkpoint.model, plan).cut
    moved = masks.cut(cut.sources) if masks else None
    early_cut = cut_start_weights(cut, early) if early and not last else {}
    method = state_after_pruning(masks=moved, early=early_cut, rounds=rounds + 1, epoch=epoch, sizes={} if last else sizes)
    state = cut_start_weights(cut, early or None)
    state = moved.applied(state) if moved else state
    return PruningResult(cut.graph, replace(fresh, model=state, method=method), moved, cut)


def _decide(
    graph: LayerGraph, state: Mapping[str, Tensor], config: TrainConfig, rounds: int, options: Options
) -> Masks | tuple[Masks | None, KeepPlan]:
    """The masks to hold; or a plan of what to cut, with the masks to hold in what is left, if any."""
    name = "magnitude" if config.method == ADMM else config.method
    decision: Decision = decide(name, graph, state, next_amount(config, rounds), options)
    if isinstance(decision, Masks):
        return (decision, plan_of_masks(graph, decision, options.granularity)) if config.slice else decision
    return (None, decision) if _cuts(config) else filter_masks(graph, state, decision)


def _cuts(config: TrainConfig) -> bool:
    """Whether the method cuts the channels that it chooses: all that choose channels do, `unit` only if told to."""
    return config.method != ADMM and methods.entry(config.method).decides == "channels" and (config.slice or config.method != "unit")


def _layer_rates_of_round(graph: LayerGraph, config: TrainConfig, rounds: int, sizes: Mapping[str, int]) -> dict[str, float]:
    """For each layer, the share of its present channels to cut, so that floor(rate * n) of its first n are gone after this round.

    The share is half a channel larger than that, so that floating-point rounding cannot lose a channel.
    """
    shares = {}
    for name, now in channels_of(graph).items():
        was, rate = sizes.get(name, now), rates_of_rounds(config.rates.get(name, config.rate), config.rounds)[rounds]
        count = removed_count(was, rate) - (was - now)
        shares[name] = min(count + 0.5, now - 0.5) / now if count > 0 else 0.0
    return shares


def channels_of(graph: LayerGraph) -> dict[str, int]:
    """The number of output channels of each layer that can be masked or cut."""
    return {layer.name: layer["out_features" if layer.kind == "Linear" else "out_channels"] for layer in maskable_layers(graph)}


def starting_checkpoint(config: TrainConfig, graph: LayerGraph, checkpoint: Checkpoint, early: Mapping[str, Tensor]) -> PruningResult:
    """The checkpoint that a run with these settings begins with, already pruned if that is due at once.

    Args:
        config: the settings.
        graph: the network.
        checkpoint: the checkpoint to begin with; its lambda, its grown batch and its method's state are dropped.
        early: the weights that the run rewinds to, if it does.

    Raises:
        ConfigError: if the method does not work on this network, also if it prunes only later.
    """
    epoch = checkpoint.progress.epoch
    progress = replace(checkpoint.progress, lasso_strength=None, fading=[], batch_size=None)
    begun = replace(checkpoint, optimizer={}, parameters=[], method=empty_method_state(), progress=progress)
    if config.retrain in WEIGHT_REWINDING_MODES:
        begun = replace(begun, method={"tensors": {EARLY: dict(early)}, "numbers": {}})
    if not is_due(config, 0, epoch):
        if config.method != GROUP_LASSO:  # what the method refuses, it must not refuse after epochs of training
            _decide(graph, begun.model, config, 0, next_options(config, 0))
        return PruningResult(graph, begun, None, None)
    return prune_checkpoint(graph, begun, config)
