"""The entry point to all methods. In: a name, a network, an amount. Out: a decision."""

import math
from collections.abc import Mapping
from importlib import import_module
from typing import cast

from torch import Tensor

from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.method_settings import check_share
from prunetrain.methods import entry
from prunetrain.methods.options import Decision, Method, Options

_DEFAULTS = Options()


def decide(name: str, graph: LayerGraph, state: Mapping[str, Tensor], amount: float, options: Options = _DEFAULTS) -> Decision:
    """Decide what a method removes from a network, which stays unchanged.

    Args:
        name: one of `prunetrain.methods.names()`.
        graph: the network.
        state: its state dict, on any device.
        amount: the rate, in [0, 1), or for magnitude-std the factor of the standard deviation.
        options: further options of the method.

    Raises:
        ConfigError: for an unknown method, an amount out of range, or a network or options that the method cannot work with.
    """
    found = entry(name)
    if found.amount != "factor":
        check_share("rate", amount)
    elif not (amount > 0 and math.isfinite(amount)):
        raise ConfigError(f"{name} takes a factor over 0, not {amount}")
    options.check_fits(graph)
    method = cast(Method, getattr(import_module(f"prunetrain.methods.{found.module}"), found.function))
    decision: Decision = method(graph, state, amount, options)
    return decision
