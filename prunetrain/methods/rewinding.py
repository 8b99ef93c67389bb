"""Where retraining starts after pruning: which weights, and which part of the learning-rate schedule.

    finetune        weights as pruned, at a low learning rate                           Han et al., 2015, arXiv 1506.02626
    lr-rewind       weights as pruned, the schedule again from epoch k                  Renda et al., 2020, arXiv 2003.02389
    weight-rewind   weights of epoch k, the schedule again from there                   Frankle et al., 2019, arXiv 1903.01611
    init-rewind     weights of epoch 0, all of the schedule (the lottery ticket)        Frankle and Carbin, 2019, arXiv 1803.03635

In: the state dicts of the pruned network and of epoch k. Out: that to go on from. The optimizer starts anew in all of them, as in the
papers' code: its momentum is that of weights that are gone.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from prunetrain.channels.slicing import Cut
from prunetrain.methods.masks import Masks

TAKES_WEIGHTS_BACK: Final = ("weight-rewind", "init-rewind")


def masked_start(masks: Masks, last: Mapping[str, Tensor], early: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights that retraining with masks starts from.

    Args:
        masks: what stays.
        last: the trained network's.
        early: those of epoch k, if weights are taken back.
    """
    return masks.applied(last if early is None else early)


def cut_start(cut: Cut, early: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights that retraining of a smaller network starts from.

    Args:
        cut: made of the trained network.
        early: the larger network's weights of epoch k, if weights are taken back.
    """
    if early is None:
        return dict(cut.state)
    return {name: source.gather(early[source.name]) for name, source in cut.sources.items()}
