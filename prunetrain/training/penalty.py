"""The course of a run's pruning: what lambda is in the next epoch, and how many MACs the next cut is to leave.

In: the settings, the epochs done, and what is left of the dense network's MACs. Out: plain numbers. They change between epochs only and
hang on nothing else, so that a resumed run takes the same course.

Without a target, lambda stays what it was at the first batch. With one, the weakest channels are faded out interval by interval
(`regularizers/fading.py`), and the lasso is released when that is done: then it would only hold back the weights that stay.
"""

from math import ceil

from prunetrain.config import TrainConfig


def next_strength(config: TrainConfig, epoch: int, strength: float, macs_left: float) -> float:
    """Lambda for the epoch that follows.

    Args:
        config: the settings.
        epoch: number of epochs done, from 1.
        strength: lambda in the epoch just done.
        macs_left: MACs of the network as it goes on, as a share of the dense network's.
    """
    if config.target_macs and (macs_left <= config.target_macs or epoch >= course_epochs(config)):
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
    done = epoch / (course_epochs(config) - config.prune_interval)
    return 1 - (1 - config.target_macs) * min(1.0, done)


def course_epochs(config: TrainConfig) -> int:
    """Epochs until the target is reached: `target_by` of them all, in whole intervals, of which there are at least two."""
    return config.prune_interval * max(2, ceil(round(config.target_by * config.epochs, 6) / config.prune_interval))
