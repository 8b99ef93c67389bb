"""Filter pruning by norm, and at random: conv filters with the smallest norms go, with the channels that they make.

    L1: sum |W[c]|       Li et al., "Pruning filters for efficient ConvNets", 2017, arXiv 1608.08710
    L2: ||W[c]||_2       He et al., "Soft filter pruning", 2018, arXiv 1808.06866

In: a network. Out: a `KeepPlan`, which `channels/removal.py` turns into a cut and `conversions.py` into masks.
"""

from collections.abc import Mapping

from torch import Tensor

from prunetrain.channels.selection import KeepPlan
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.options import Options
from prunetrain.methods.random_weights import draw
from prunetrain.methods.ranking import FILTERS, plan_by_rank


def filter_l1(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> KeepPlan:
    """Return a plan without the filters of smallest L1 norm."""
    return plan_by_rank(graph, state, rate, options, kinds=FILTERS, criterion=l1_norms)


def filter_l2(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> KeepPlan:
    """Return a plan without the filters of smallest L2 norm."""
    return plan_by_rank(graph, state, rate, options, kinds=FILTERS, criterion=l2_norms)


def random_filters(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> KeepPlan:
    """Return a plan without filters drawn at random from `options.seed`, independently for every space."""

    def at_random(filters: Tensor, count: int, space: str) -> Tensor:
        return draw(len(filters), options.seed, space)

    return plan_by_rank(graph, state, rate, options, kinds=FILTERS, criterion=at_random)


def l1_norms(filters: Tensor, count: int, space: str) -> Tensor:
    """The L1 norm of each filter (n, numbers), (n,)."""
    return filters.abs().sum(1)


def l2_norms(filters: Tensor, count: int, space: str) -> Tensor:
    """The L2 norm of each filter (n, numbers), (n,)."""
    return filters.square().sum(1).sqrt()
