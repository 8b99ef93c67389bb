"""A network's outputs, and their loss.

In: logits, or a tuple of logits and those of further heads, such as GoogLeNet's in train mode; labels. Out: cross-entropy.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Outputs: TypeAlias = Tensor | tuple[Tensor, ...]


def logits_of(outputs: Outputs) -> Tensor:
    """The logits of the main head, (N, classes)."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Class weights, (K,) float32, in inverse proportion to a class's images, so that all classes contribute equally to the loss.

    Over all images their mean is 1, as with scikit-learn's `balanced`.

    Args:
        counts: number of images of each class; a class without images has a weight of 0.
    """
    images = torch.tensor(counts, dtype=torch.float64)
    return torch.where(images > 0, images.sum() / (images.count_nonzero() * images), 0.0).float()


def loss_of(
    outputs: Outputs, labels: Tensor, *, aux_weight: float, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the main head, plus `aux_weight` times that of every other head (GoogLeNet, arXiv 1409.4842, section 5).

    Args:
        outputs: what the network returned; outputs whose shape differs from the first one's are not heads and do not count.
        labels: (N,) int64.
        aux_weight: weight of each further head.
        label_smoothing: in [0, 1).
        class_weights: weight of an image of each class, (K,); with None all count alike. The mean is over images, not over weights, so
            that averaging over several processes' parts of a batch gives the loss of the whole batch.
    """
    logits = logits_of(outputs)
    weights = None if class_weights is None else class_weights.index_select(0, labels)
    loss = _cross_entropy(logits, labels, label_smoothing, weights)
    for head in outputs[1:] if isinstance(outputs, tuple) else ():
        if head.shape == logits.shape:
            loss = loss + aux_weight * _cross_entropy(head, labels, label_smoothing, weights)
    return loss


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")).mean()
