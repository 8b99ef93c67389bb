"""Where retraining starts after pruning: which weights, and which part of the learning-rate schedule.

    finetune        weights as pruned, at a low learning rate                           Han et al., 2015, arXiv 1506.02626
    lr-restart      weights as pruned, a warm-up and a cosine from the full rate        Le and Hua, 2021, arXiv 2105.03193
    lr-rewind       weights as pruned, the schedule again from epoch k                  Renda et al., 2020, arXiv 2003.02389
    weight-rewind   weights of epoch k, the schedule again from there                   Frankle et al., 2019, arXiv 1903.01611
    init-rewind     weights of epoch 0, the whole schedule (the lottery ticket)         Frankle and Carbin, 2019, arXiv 1803.03635

In: the state dicts of the pruned network and of epoch k. Out: the state dict to retrain from. The optimizer starts afresh in all cases, as
in the papers' code, since its momentum belongs to the weights before pruning.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from prunetrain.channels.slicing import Cut
from prunetrain.methods.masks import Masks

WEIGHT_REWINDING_MODES: Final = ("weight-rewind", "init-rewind")


def masked_start_weights(masks: Masks, last: Mapping[str, Tensor], early: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the weights that retraining with masks starts from.

    Args:
        masks: the weights that stay.
        last: the trained network's weights.
        early: the weights of epoch k, if weights are rewound.
    """
    return masks.applied(last if early is None else early)


def cut_start_weights(cut: Cut, early: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the weights that retraining of a smaller network starts from.

    Args:
        cut: the cut of the trained network.
        early: the larger network's weights of epoch k, if weights are rewound.
    """
    if early is None:
        return dict(cut.state)
    return {name: source.gather(early[source.name]) for name, source in cut.sources.items()}
