"""The course of a run's pruning: what lambda is in the next epoch, and how many MACs the next cut is to leave.

In: a run between two epochs. Out: its progress with the next lambda and the channels to fade. They hang on the settings, the epochs done
and the weights alone and are part of every checkpoint, so that a resumed run takes the same course.

Intervals are of `prune_interval` epochs and begin after epoch `prune_at`, before which nothing acts. Without a target, lambda stays what it
was at the first batch. With one, the weakest channels are faded out interval by interval (`regularizers/fading.py`), and the lasso is
released when that is done: then it would only hold back the weights that stay.
"""

from dataclasses import replace
from math import ceil, inf

from prunetrain.channels.coverage import least_macs
from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.regularizers.fading import Ranking
from prunetrain.training.events import Uncut
from prunetrain.training.state import TrainState

_OVERSHOOT = 0.05
"""Of the dense network's MACs, how many less than the target blocks may leave."""


def interval_start(config: TrainConfig, epoch: int) -> int:
    """The last epoch, `epoch` at the latest, after which an interval begins."""
    return epoch - (epoch - config.prune_at) % config.prune_interval


def next_strength(config: TrainConfig, epoch: int, strength: float, macs_left: float) -> float:
    """Lambda for the epoch that follows.

    Args:
        config: the settings.
        epoch: number of epochs done, from 1.
        strength: lambda in the epoch just done.
        macs_left: MACs of the network as it goes on, as a share of the dense network's.
    """
    if config.target_macs and (macs_left <= config.target_macs or epoch >= config.prune_at + course_epochs(config)):
        return 0.0
    return strength


def next_macs(config: TrainConfig, epoch: int) -> float:
    """The share of the dense network's MACs that the cut at the end of the interval is to leave.

    It falls in a straight line from 1, after the first interval, to `target_macs`, at the end of the course. The first interval is for
    the channels to become unequal.

    Args:
        config: the settings, with a target.
        epoch: number of epochs done when the interval begins.
    """
    done = (epoch - config.prune_at) / (course_epochs(config) - config.prune_interval)
    return 1 - (1 - config.target_macs) * min(1.0, done)


def most_macs(state: TrainState) -> float:
    """The most MACs, for one image, that the cut after the last epoch may leave; infinite where nothing led to a target before it."""
    config, progress = state.config, state.progress
    if not config.target_macs or not progress.lasso_strength:
        return inf
    return next_macs(config, interval_start(config, progress.epoch - 1)) * costs(state.dense).macs


def course_epochs(config: TrainConfig) -> int:
    """Epochs from `prune_at` until the target is reached: `target_by` of those left, in whole intervals, two at least."""
    return config.prune_interval * max(2, ceil(round(config.target_by * (config.epochs - config.prune_at), 6) / config.prune_interval))


def too_short(config: TrainConfig) -> str | None:
    """Why a run cannot reach its target, in a sentence; None if nothing keeps it from it."""
    if not (config.penalised and config.target_macs) or config.epochs == config.prune_at:
        return None
    if next_macs(config, interval_start(config, config.epochs - 1)) <= config.target_macs + 1e-9:
        return None
    epochs = config.epochs - config.prune_at
    return (
        f"{epochs} {'epoch is' if epochs == 1 else 'epochs are'} too few for --target-macs {config.target_macs:g}: "
        f"the first interval of {config.prune_interval} cuts nothing, and none is left that would reach it"
    )


def out_of_reach(state: TrainState) -> str | None:
    """Why not even the removal of all that can go would reach the target, in a sentence; None if it would.

    For a network of the size of ResNet-50 the answer takes most of a second.
    """
    config, dense = state.config, costs(state.dense).macs
    if not (config.penalised and config.target_macs):
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


def missed(state: TrainState) -> str | None:
    """Why a run that is over has more MACs than its target, in a sentence; None if it has not."""
    config, left = state.config, state.costs.macs / costs(state.dense).macs
    if not (config.penalised and config.target_macs) or left <= config.target_macs:
        return None
    return too_short(config) or out_of_reach(state) or f"{left:.1%} of the MACs are left, and --target-macs is {config.target_macs:g}"


def uncut(state: TrainState) -> Uncut:
    """What it means that the reconfiguration after the epoch just done cut nothing."""
    config, macs = state.config, state.costs.macs
    if config.target_macs and macs <= config.target_macs * costs(state.dense).macs:
        return Uncut.TARGET
    over = state.progress.epoch >= config.epochs or macs == least_macs(state.graph, find_spaces(state.graph))
    return Uncut.FINAL if over else Uncut.YET


def follow_course(state: TrainState) -> None:
    """For an epoch that begins, set lambda, and at the start of an interval the channels to fade.

    The first batch sets the first lambda; but of a network that is as small as its target, there is none.
    """
    config, progress = state.config, state.progress
    dense = costs(state.dense).macs
    if progress.lasso_strength is None and config.penalised and state.costs.macs <= config.target_macs * dense:
        state.progress = replace(progress, lasso_strength=0.0)
    if not progress.lasso_strength:
        return
    strength = next_strength(config, progress.epoch, progress.lasso_strength, state.costs.macs / dense)
    fading = progress.fading if strength else []
    if strength and config.target_macs and interval_start(config, progress.epoch) == progress.epoch:
        fading = state.environment.ranks.on_first(lambda: _choose(state, dense))
    state.progress = replace(progress, lasso_strength=strength, fading=fading)


def _choose(state: TrainState, dense_macs: int) -> list[int]:
    """The channels that fade in the interval; with `--round-to auto` in the coarsest blocks that leave a choice and meet the target."""
    config = state.config
    ranking = Ranking(state.graph, state.model.state_dict(), criterion=config.criterion)
    macs = next_macs(config, state.progress.epoch) * dense_macs
    if config.granularity is not None:
        return ranking.weakest(macs, config.granularity)
    blocks = ranking.coarsest_blocks(config.target_macs * dense_macs, state.dense)
    channels = ranking.weakest(macs, blocks)
    while max(blocks.values()) > 1 and ranking.macs_without(channels) < (config.target_macs - _OVERSHOOT) * dense_macs:
        blocks = {name: max(1, size // 2) for name, size in blocks.items()}
        channels = ranking.weakest(macs, blocks)
    return channels
