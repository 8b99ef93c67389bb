"""Soft filter pruning: after an epoch the weakest filters are set to zero but keep training; those that recover may stay.

He, Kang, Dong, Fu and Yang, "Soft filter pruning", 2018, arXiv 1808.06866; FPGM (arXiv 1811.00250) is published in the same way. In: a
network in training. Out: its weakest filters at zero after an epoch, and at the end the plan of a cut. BatchNorm is left alone: if its
scale or bias were zero too, no gradient would reach a filter in front of a ReLU again.
"""

from collections.abc import Mapping

from torch import Tensor

from prunetrain.channels.selection import KeepPlan
from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods import entry
from prunetrain.methods.conversions import filter_masks
from prunetrain.methods.options import Options
from prunetrain.methods.registry import decide
from prunetrain.methods.training_method import TrainingMethod


class SoftFilters(TrainingMethod):
    """A `TrainingMethod`; it keeps no state, since every decision is made afresh.

    Args:
        graph: the network.
        weights: its parameters by name; changed in place.
        method: a method that decides on channels.
        rate: share of each space's channels to remove, in [0, 1).
        options: the method's options.
        interval: epochs between two decisions, from 1, as `TrainConfig` checks.
        last: the epoch at whose end the channels are cut. Nothing is zeroed then: filters at zero may be far from the others' geometric
            median, and others would be cut in their place.

    Raises:
        ConfigError: for a method that decides on weights, and for whatever the method refuses.
    """

    def __init__(
        self, graph: LayerGraph, weights: Mapping[str, Tensor], *, method: str, rate: float, options: Options, interval: int, last: int
    ) -> None:
        if entry(method).decides != "channels":
            raise ConfigError(f"{method} prunes weights, but soft pruning needs a method for filters, such as fpgm or filter-l2")
        self._graph = graph
        self._weights = weights
        self._method = method
        self._rate = rate
        self._options = options
        self._interval = interval
        self._last = last
        self.plan()

    def plan(self) -> KeepPlan:
        """Return the plan of a cut made now."""
        plan = decide(self._method, self._graph, self._weights, self._rate, self._options)
        assert isinstance(plan, KeepPlan)
        return plan

    def after_epoch_(self, epoch: int) -> None:
        """At the end of an interval, zero the filters of the channels that a cut would remove now, unless it follows."""
        if epoch % self._interval == 0 and epoch != self._last:
            masks = filter_masks(self._graph, self._weights, self.plan())
            masks.apply_(self._weights)
