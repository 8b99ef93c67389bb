"""The baselines that group lasso is compared with, by name, and where each is. Importing this package does not import torch.

In: a graph, its weights, an amount. Out: a decision which weights or channels go. `decide` is in `registry.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prunetrain.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class MethodEntry:
    """Where a method is, what it decides ("masks" or "channels"), and what its amount is ("rate", "fixed" or "factor").

    A rate is the fraction removed, in [0, 1), of which the method may fix the only one that it takes; a factor is any number over 0.
    """

    module: str
    function: str
    decides: str
    amount: str = "rate"


METHODS: Final[Mapping[str, MethodEntry]] = {
    "2:4": MethodEntry("semi_structured", "two_of_four", "masks", "fixed"),
    "filter-l1": MethodEntry("filters", "filter_l1", "channels"),
    "filter-l2": MethodEntry("filters", "filter_l2", "channels"),
    "fpgm": MethodEntry("fpgm", "fpgm", "channels"),
    "magnitude": MethodEntry("magnitude", "magnitude", "masks"),
    "magnitude-std": MethodEntry("magnitude", "magnitude_std", "masks", "factor"),
    "random": MethodEntry("filters", "random_filters", "channels"),
    "random-weights": MethodEntry("random_weights", "random_weights", "masks"),
    "unit": MethodEntry("units", "unit", "channels"),
}


def names() -> tuple[str, ...]:
    """Return all names that `decide` accepts, sorted."""
    return tuple(sorted(METHODS))


def entry(name: str) -> MethodEntry:
    """Return the entry of a method.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in METHODS:
        raise ConfigError(unknown_name("method", name, METHODS))
    return METHODS[name]
