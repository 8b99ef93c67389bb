"""Timing several actions in turn, round after round, so that other load on the machine slows all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SHORTEST = 0.02  # seconds; shorter actions are repeated within a round
_MAX_REPEATS = 50


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> "Spread":
        """The spread of at least one number."""
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        low, median, high = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(median, low, high)


def ratios(sample: Sequence[float], base: Sequence[float]) -> list[float]:
    """Ratios of one action's times to another's, round by round."""
    return [seconds / of for seconds, of in zip(sample, base, strict=True)]


def time_in_turn(
    actions: Sequence[Callable[[], object]],
    *,
    rounds: int,
    wait: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
    warmup: int = 2,
) -> list[list[float]]:
    """Measure the seconds of every action in every round.

    Args:
        actions: what to time; short ones are repeated within a round, and the mean of the repetitions counts.
        rounds: how many times each action has its turn.
        wait: returns when the device has finished its work.
        clock: seconds, for differences.
        warmup: rounds before these that are not counted.

    Returns:
        For every action a list of `rounds` numbers.
    """
    repeats = [1] * len(actions)
    for _ in range(warmup):
        repeats = [_repeats(_time(action, 1, wait, clock)) for action in actions]
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, number, times in zip(actions, repeats, seconds, strict=True):
            times.append(_time(action, number, wait, clock))
    return seconds


def _repeats(seconds: float) -> int:
    return max(1, min(_MAX_REPEATS, math.ceil(_SHORTEST / max(seconds, 1e-9))))


def _time(action: Callable[[], object], number: int, wait: Callable[[], None], clock: Callable[[], float]) -> float:
    wait()
    start = clock()
    for _ in range(number):
        action()
    wait()
    return (clock() - start) / number
