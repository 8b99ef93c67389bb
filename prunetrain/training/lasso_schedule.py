"""The schedule of a run's group lasso: lambda in the next epoch, and how many MACs the next cut should leave.

In: a run between two epochs. Out: its progress with the next lambda and the channels to fade. Both depend only on the settings, the epochs
done, the weights and the importance that was gathered, and are part of every checkpoint, so a resumed run has the same schedule.

Intervals last `prune_interval` epochs and begin after epoch `prune_at`; before that, nothing acts. Without a target, lambda keeps its value
from the first batch. With one, the weakest channels are faded out interval by interval (`regularizers/fading.py`). Then lambda drops to
zero, since the lasso would only hold back the weights that stay.
"""

from dataclasses import replace
from math import ceil, inf

from prunetrain.channels.coverage import least_macs
from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.methods.taylor import TaylorImportance
from prunetrain.regularizers.fading import Ranking
from prunetrain.training.events import Uncut
from prunetrain.training.state import TrainState

_OVERSHOOT = 0.05
"""How far below the target the removal of whole blocks may take the MACs, as a share of the dense network's."""


def interval_start(config: TrainConfig, epoch: int) -> int:
    """The last epoch up to `epoch` after which an interval begins."""
    return epoch - (epoch - config.prune_at) % config.prune_interval


def next_strength(config: TrainConfig, epoch: int, strength: float, macs_left: float) -> float:
    """Lambda for the next epoch.

    Args:
        config: the settings.
        epoch: number of epochs done, from 1.
        strength: lambda in the epoch just done.
        macs_left: MACs of the present network, as a share of the dense network's.
    """
    if config.target_macs and (macs_left <= config.target_macs or epoch >= config.prune_at + epochs_to_target(config)):
        return 0.0
    return strength


def next_macs(config: TrainConfig, epoch: int) -> float:
    """The share of the dense network's MACs that the cut at the end of the interval should leave.

    It falls linearly from 1, after the first interval, to `target_macs`, at the end of the schedule. The first interval gives the channels
    time to become unequal.

    Args:
        config: the settings, with a target.
        epoch: number of epochs done when the interval begins.
    """
    done = (epoch - config.prune_at) / (epochs_to_target(config) - config.prune_interval)
    return 1 - (1 - config.target_macs) * min(1.0, done)


def most_macs(state: TrainState) -> float:
    """The most MACs per image that the cut after the epoch just done may leave; infinite if no target was being approached."""
    config, progress = state.config, state.progress
    if not config.target_macs or not progress.lasso_strength:
        return inf
    return next_macs(config, interval_start(config, progress.epoch - 1)) * costs(state.dense).macs


def epochs_to_target(config: TrainConfig) -> int:
    """Epochs from `prune_at` until the target is reached: the share `target_by` of the rest, in whole intervals, at least two."""
    return config.prune_interval * max(2, ceil(round(config.target_by * (config.epochs - config.prune_at), 6) / config.prune_interval))


def warning_too_few_epochs(config: TrainConfig) -> str | None:
    """A sentence on why the run has too few epochs to reach its target; None if it has enough."""
    if not (config.uses_group_lasso and config.target_macs):
        return None
    if next_macs(config, interval_start(config, config.epochs - 1)) <= config.target_macs + 1e-9:
        return None
    epochs, before = config.epochs - config.prune_at, config.prune_at
    return (
        f"{epochs} {'epoch' if epochs == 1 else 'epochs'}{f' after epoch {before}' if before else ''} {'is' if epochs == 1 else 'are'} "
        f"too few for --target-macs {config.target_macs:g}: nothing is cut in the first --prune-interval ({config.prune_interval}), "
        f"so train for at least {config.prune_interval + 1} epochs{' from there' if before else ''}"
    )


def warning_nothing_penalised(state: TrainState) -> str | None:
    """A sentence on why a run without a target will cut nothing; None if the lasso acts on something."""
    if state.config.target_macs or state.lasso is None or state.lasso.has_groups:
        return None
    return (
        "--target-macs 0 leaves the choice of channels to the group lasso, which acts on none of this network's: "
        f"prunetrain inspect {state.network} shows which can be cut to a target"
    )


def warning_target_unreachable(state: TrainState) -> str | None:
    """A sentence on why removing everything that can go would still miss the target; None if it would not.

    For a network the size of ResNet-50 this takes most of a second.
    """
    config, dense = state.config, costs(state.dense).macs
    if not (config.uses_group_lasso and config.target_macs):
        return None
    ranking = Ranking(state.graph, state.model.state_dict(), criterion=config.criterion)
    least, rounded = ranking.least_macs() / dense, ranking.least_macs(config.granularity or 1) / dense
    if rounded <= config.target_macs:
        return None
    goes, advice = 1 - least, f"prunetrain inspect {state.network} shows what cannot, and why"
    if least <= config.target_macs:
        goes, advice = 1 - rounded, f"--round-to {config.round_to} keeps the rest, so give a smaller number"
    share = f"at most {goes:.1%}" if goes >= 0.0005 else "next to none"
    return f"--target-macs {config.target_macs:g} is out of reach, since {share} of the MACs can go: {advice}"


def why_target_missed(state: TrainState) -> str | None:
    """A sentence on why a finished run has more MACs than its target; None if it has not."""
    config, left = state.config, state.costs.macs / costs(state.dense).macs
    if not (config.uses_group_lasso and config.target_macs) or left <= config.target_macs:
        return None
    return (
        warning_too_few_epochs(config)
        or warning_target_unreachable(state)
        or f"{left:.1%} of the MACs are left, but --target-macs is {config.target_macs:g}"
    )


def uncut_meaning(state: TrainState) -> Uncut:
    """What it means that the reconfiguration after the epoch just done cut nothing."""
    config, macs = state.config, state.costs.macs
    if config.target_macs and macs <= config.target_macs * costs(state.dense).macs:
        return Uncut.TARGET
    over = state.progress.epoch >= config.epochs or macs == least_macs(state.graph, find_spaces(state.graph))
    return Uncut.FINAL if over else Uncut.YET


def set_lasso_for_epoch(state: TrainState) -> None:
    """Set lambda for an epoch that begins, and at the start of an interval the channels to fade; importance is then gathered anew.

    The first batch sets the first lambda, except for a network that is already as small as its target: there it is zero.
    """
    begins = interval_start(state.config, state.progress.epoch) == state.progress.epoch
    _set_lasso(state, begins)
    if begins and isinstance(gathered := state.run_method.method, TaylorImportance):
        gathered.reset_()


def _set_lasso(state: TrainState, interval_begins: bool) -> None:
    config, progress = state.config, state.progress
    dense = costs(state.dense).macs
    if progress.lasso_strength is None and config.uses_group_lasso and state.costs.macs <= config.target_macs * dense:
        state.progress = replace(progress, lasso_strength=0.0)
    if not progress.lasso_strength:
        return
    strength = next_strength(config, progress.epoch, progress.lasso_strength, state.costs.macs / dense)
    fading = progress.fading if strength else []
    if strength and config.target_macs and interval_begins:
        fading = state.environment.ranks.on_rank_zero(lambda: _choose_fading_channels(state, dense))
    state.progress = replace(progress, lasso_strength=strength, fading=fading)


def _choose_fading_channels(state: TrainState, dense_macs: int) -> list[int]:
    """Choose the channels to fade; with `--round-to auto`, in the coarsest blocks that leave a choice and meet the target."""
    config = state.config
    gathered = state.run_method.method
    importance = gathered.of_channels() if isinstance(gathered, TaylorImportance) else None
    ranking = Ranking(state.graph, state.model.state_dict(), criterion=config.criterion, importance=importance)
    macs = next_macs(config, state.progress.epoch) * dense_macs
    if config.granularity is not None:
        return ranking.weakest(macs, config.granularity)
    blocks = ranking.coarsest_blocks(config.target_macs * dense_macs, state.dense)
    channels = ranking.weakest(macs, blocks)
    while max(blocks.values()) > 1 and ranking.macs_without(channels) < (config.target_macs - _OVERSHOOT) * dense_macs:
        blocks = {name: max(1, size // 2) for name, size in blocks.items()}
        channels = ranking.weakest(macs, blocks)
    return channels
