"""The two rules that all methods share: how many go at a rate, and which of equal ones.

`torch.nn.utils.prune` rounds a share to the nearest count and leaves ties to `topk`, whose order torch does not promise. Here counts are
rounded down, so that never more goes than was asked, and of equal scores the first go, so that every machine decides alike.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from prunetrain.errors import ConfigError
from prunetrain.method_settings import check_share


def removed_count(total: int, rate: float) -> int:
    """floor(rate * total), with the rate as it is written: 0.29 of 100 is 29, although 0.29 * 100 is less in binary.

    Raises:
        ConfigError: for a rate outside [0, 1).
    """
    check_share("rate", rate)
    return int(Fraction(str(float(rate))) * total)


def smallest(scores: Tensor, count: int) -> Tensor:
    """Which `count` of some scores (n,) are smallest, as bool (n,); of equal ones the first, and what is no number last."""
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
    """The rate after each round of iterative pruning: every round removes the same share of what remains (Frankle and Carbin, 2019).

    The share is 1 - (1 - rate)^(1 / rounds); the last rate is the one that is asked. The others are rounded to 12 decimals, so that the
    first of two rounds to 0.36 is at 0.2, of which `removed_count` takes 200 of 1,000, and not at a binary fraction under it.

    Raises:
        ConfigError: for a rate outside [0, 1), or fewer than one round.
    """
    check_share("rate", rate)
    if rounds < 1:
        raise ConfigError(f"rounds must be 1 or more, not {rounds}")
    return [round(1 - (1 - rate) ** (number / rounds), 12) for number in range(1, rounds)] + [rate]
