"""The course of a run's pruning: what lambda is in the next epoch, and how many MACs the next cut is to leave.

In: the settings, the epochs done, and what is left of the dense network's MACs. Out: plain numbers. They change between epochs only and
hang on nothing else, so that a resumed run takes the same course.

The penalty is there to bring channels to zero. Once the last one that is to go has been cut, it only holds back the weights that stay. So
it is released: lambda = 0 after `penalty_until`, or as soon as the network is as small as `target_macs` says.
"""

from prunetrain.config import TrainConfig


def next_strength(config: TrainConfig, epoch: int, strength: float, macs_left: float) -> float:
    """Lambda for the epoch that follows.

    Args:
        config: the settings.
        epoch: number of epochs done, from 1.
        strength: lambda in the epoch just done.
        macs_left: MACs of the network as it goes on, as a share of the dense network's.
    """
    if config.target_macs:
        return 0.0 if macs_left <= config.target_macs else strength
    if epoch >= penalised_epochs(config):
        return 0.0
    return strength * _ramp(config, epoch) / _ramp(config, epoch - 1)


def _ramp(config: TrainConfig, epoch: int) -> float:
    return min(1.0, (epoch + 1) / max(1.0, config.penalty_ramp * config.epochs))


def penalised_epochs(config: TrainConfig) -> int:
    """Number of epochs with the lasso."""
    return max(1, round(config.penalty_until * config.epochs))


def next_macs(config: TrainConfig, epoch: int) -> float:
    """The share of the dense network's MACs that the cut at the end of the interval is to leave.

    It falls in a straight line from 1, after the first interval, to `target_macs`, after the penalised epochs. The first interval is
    for the channels to become unequal.

    Args:
        config: the settings, with a target.
        epoch: number of epochs done when the interval begins.
    """
    done = epoch / max(1, penalised_epochs(config) - config.prune_interval)
    return 1 - (1 - config.target_macs) * min(1.0, done)
