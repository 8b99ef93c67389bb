"""What a network returns: logits, or a tuple of logits and those of further heads, such as GoogLeNet's in train mode."""

from typing import TypeAlias

from torch import Tensor
from torch.nn import functional as F

Outputs: TypeAlias = Tensor | tuple[Tensor, ...]


def logits_of(outputs: Outputs) -> Tensor:
    """The logits of the main head, (N, classes)."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def loss_of(outputs: Outputs, labels: Tensor, *, aux_weight: float, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the main head, plus `aux_weight` times that of every other head (GoogLeNet, arXiv 1409.4842, section 5).

    Args:
        outputs: what the network returned; outputs of another shape than the first are no heads and do not count.
        labels: (N,) int64.
        aux_weight: weight of each further head.
        label_smoothing: in [0, 1).
    """
    logits = logits_of(outputs)
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    for head in outputs[1:] if isinstance(outputs, tuple) else ():
        if head.shape == logits.shape:
            loss = loss + aux_weight * F.cross_entropy(head, labels, label_smoothing=label_smoothing)
    return loss
