"""One pruning of a network by a method, at a point of its training: decide, mask or cut, take back, start the optimizer anew.

In: a checkpoint and the settings. Out: the checkpoint to go on from, of the same network with zeros or of a smaller one. `pruned_run.py`
does that to runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from prunetrain import methods
from prunetrain.channels.removal import remove_channels
from prunetrain.channels.selection import KeepPlan
from prunetrain.channels.slicing import Cut
from prunetrain.config import ADMM, GROUP_LASSO, TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.bridges import filter_masks, plan_of_masks
from prunetrain.methods.counting import rates_of_rounds
from prunetrain.methods.in_training import cut_state, nothing_kept
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Decision
from prunetrain.methods.registry import decide
from prunetrain.methods.rewinding import TAKES_WEIGHTS_BACK, cut_start, masked_start
from prunetrain.training.acting import early_weights, options_of, pruned_state, rounds_done
from prunetrain.training.checkpoints import Checkpoint


@dataclass(frozen=True)
class Pruned:
    """A network after a pruning, and its checkpoint; its masks, if weights stay zero; the cut, if channels went."""

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
    """Whether a run that has pruned so often is to prune now, after so many epochs."""
    return config.method != GROUP_LASSO and rounds < config.rounds and epoch >= config.prune_at + rounds * config.retrain_epochs


def prune_checkpoint(graph: LayerGraph, checkpoint: Checkpoint, config: TrainConfig) -> Pruned:
    """The next pruning of a run, on its checkpoint; what was given stays as it is.

    Args:
        graph: the network.
        checkpoint: at the end of an epoch, of a run that has pruned before or not.
        config: `method`, `rate`, `rounds`, `retrain`, `slice` and the method's own settings count.

    Raises:
        ConfigError: if the method does not work on this network.
    """
    rounds = rounds_done(checkpoint.method)
    kept = checkpoint.method["tensors"].get("keep")
    earlier = Masks(kept) if kept and rounds else None
    decision = _decide(graph, checkpoint.model, config, rounds, earlier)
    early = early_weights(checkpoint.method) if config.retrain in TAKES_WEIGHTS_BACK else {}
    last = rounds + 1 == config.rounds
    fresh = replace(checkpoint, optimizer={}, parameters=[], progress=replace(checkpoint.progress, lasso_strength=None))
    epoch = checkpoint.progress.epoch
    if isinstance(decision, Masks):
        state = masked_start(decision, checkpoint.model, early or None)
        method = pruned_state(masks=decision, early={} if last else early, rounds=rounds + 1, epoch=epoch)
        return Pruned(graph, replace(fresh, model=state, method=method), decision, None)
    masks, plan = decision
    cut = remove_channels(graph, masks.applied(checkpoint.model) if masks else checkpoint.model, plan).cut
    moved = Masks(_gathered(cut, masks.keep)) if masks else None
    method = pruned_state(masks=moved, early={} if last else _gathered(cut, early), rounds=rounds + 1, epoch=epoch)
    state = cut_start(cut, early or None)
    state = moved.applied(state) if moved else state
    return Pruned(cut.graph, replace(fresh, model=state, method=method), moved, cut)


def _decide(
    graph: LayerGraph, state: Mapping[str, Tensor], config: TrainConfig, rounds: int, earlier: Masks | None
) -> Masks | tuple[Masks | None, KeepPlan]:
    """Masks that are to hold; or a plan of what to cut, with masks that hold in what is left."""
    name = "magnitude" if config.method == ADMM else config.method
    decides_channels = methods.entry(name).decides == "channels"
    cuts = decides_channels and (config.slice or name != "unit")
    options = options_of(config, earlier)
    if cuts and rounds and config.rates:
        options = replace(options, layer_rates={layer: _share_of_round(rate, config, rounds) for layer, rate in config.rates.items()})
    amount = config.rate
    if methods.entry(name).amount == "rate" and name != "2:4":
        amount = _share_of_round(config.rate, config, rounds) if cuts else rates_of_rounds(config.rate, config.rounds)[rounds]
    decision: Decision = decide(name, graph, state, amount, options)
    if isinstance(decision, Masks):
        return (decision, plan_of_masks(graph, decision)) if config.slice else decision
    return (None, decision) if cuts else filter_masks(graph, state, decision)


def _share_of_round(rate: float, config: TrainConfig, rounds: int) -> float:
    """The share of what an earlier round left that this one removes."""
    if config.rounds == 1:
        return rate
    each = rates_of_rounds(rate, config.rounds)
    before = each[rounds - 1] if rounds else 0.0
    return (each[rounds] - before) / (1 - before)


def _gathered(cut: Cut, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not tensors:
        return {}
    return cut_state({"tensors": {"kept": dict(tensors)}, "numbers": {}}, cut.sources)["tensors"]["kept"]


def start_of(config: TrainConfig, graph: LayerGraph, checkpoint: Checkpoint, early: Mapping[str, Tensor]) -> Pruned:
    """A checkpoint as a run of these settings begins with it: pruned, if that is to be at once.

    Args:
        config: the settings.
        graph: the network.
        checkpoint: to begin with; what a method of an earlier run kept is forgotten.
        early: the weights that the run goes back to, if it does.
    """
    epoch = checkpoint.progress.epoch
    begun = replace(checkpoint, optimizer={}, parameters=[], method=nothing_kept())
    if config.retrain in TAKES_WEIGHTS_BACK:
        begun = replace(begun, method={"tensors": {"early": dict(early)}, "numbers": {}})
    if not is_due(config, 0, epoch):
        return Pruned(graph, begun, None, None)
    return prune_checkpoint(graph, begun, config)
