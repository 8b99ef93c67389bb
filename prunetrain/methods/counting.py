"""Two rules that all methods share: how many weights or channels go at a rate, and which of several with equal scores.

`torch.nn.utils.prune` rounds a share to the nearest count and leaves ties to `topk`, whose order torch does not guarantee. Here counts are
rounded down, so that never more is removed than asked for, and the first of equal scores go, so that every machine decides the same.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from prunetrain.errors import ConfigError
from prunetrain.method_settings import check_share


def removed_count(total: int, rate: float) -> int:
    """Return floor(rate * total) for the rate in decimal: 0.29 of 100 is 29, although 0.29 * 100 is less in binary.

    Raises:
        ConfigError: for a rate outside [0, 1).
    """
    check_share("rate", rate)
    return int(Fraction(str(float(rate))) * total)


def smallest_mask(scores: Tensor, count: int) -> Tensor:
    """Return which `count` of the scores (n,) are smallest, as bool (n,); of equal scores the first, and NaN last."""
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if count == 0:
        return chosen
    limit = scores.kthvalue(count).values
    below = scores < limit
    equal = (scores == limit).nonzero().flatten()
    chosen[below] = True
    chosen[equal[: count - int(below.sum())]] = True
    return chosen


def rates_of_rounds(rate: float, rounds: int) -> Sequence[float]:
    """Return the rate after each round of iterative pruning: every round removes the same share of what remains (Frankle and Carbin, 2019).

    The share is 1 - (1 - rate)^(1 / rounds); the last rate is `rate` itself. The others are rounded to 12 decimals, so that the first of
    two rounds to 0.36 is at 0.2, for which `removed_count` takes 200 of 1,000, and not at a binary fraction just below.

    Raises:
        ConfigError: for a rate outside [0, 1), or fewer than one round.
    """
    check_share("rate", rate)
    if rounds < 1:
        raise ConfigError(f"rounds must be 1 or more, not {rounds}")
    return [round(1 - (1 - rate) ** (number / rounds), 12) for number in range(1, rounds)] + [rate]
