"""Unit pruning: the outputs of linear layers with the smallest L2 norm of incoming weights go.

A unit is a row W[o] of torch's weight (a column in the notation x W). In: a network. Out: a `KeepPlan` over hidden layers; the classifier's
outputs always stay.
"""

from collections.abc import Mapping

from torch import Tensor

from prunetrain.channels.selection import KeepPlan
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.filters import l2_norms
from prunetrain.methods.options import Options
from prunetrain.methods.ranking import UNITS, plan_by_rank


def unit(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> KeepPlan:
    """Return a plan without the units of smallest norm."""
    return plan_by_rank(graph, state, rate, options, kinds=UNITS, criterion=l2_norms)
