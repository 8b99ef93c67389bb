"""Cut channels with live weights, for the pruning methods in `methods/`.

In: a network, and a plan of what stays. Out: the smaller network. It computes what the larger one does with everything of the other
channels set to zero: their filters and biases, BatchNorm's scale and bias for them, and the slices that read them (`masking.py`). These
channels are then cut like dead ones, with the same guarantees.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from prunetrain.channels.constants import Constants, find_constants
from prunetrain.channels.masking import mask_channels
from prunetrain.channels.selection import Candidates, KeepPlan, find_candidates
from prunetrain.channels.slices import measure_slices, threshold_of_zeros
from prunetrain.channels.slicing import Cut, Proposal
from prunetrain.channels.sources import Source
from prunetrain.graph.layergraph import LayerGraph


@dataclass(frozen=True)
class Removal:
    """A smaller network, and the plan that it follows, which may keep more than was asked for."""

    cut: Cut
    plan: KeepPlan


def remove_channels(graph: LayerGraph, state: Mapping[str, Tensor], plan: KeepPlan) -> Removal:
    """Cut the channels that a plan does not keep, whatever they compute.

    A masked channel that could not be cut without changing the function stays unmasked: one that a LayerNorm or another reduction over
    the channels reads after a function that maps zero to something else.

    Args:
        graph: the network.
        state: its state dict, on any device; unchanged.
        plan: the channels that stay, in the network's own spaces.
    """
    state = {name: tensor.detach() for name, tensor in state.items()}
    while True:
        masked = mask_channels(graph, state, plan.spaces, ~plan.keep)
        constants, candidates = _constants_and_candidates(graph, masked, plan)
        stuck = ~plan.keep & ~candidates.removable
        if not stuck.any():
            break
        plan = replace(plan, keep=plan.keep | stuck)
    sources = {name: Source(name) for name in state}
    return Removal(Proposal(graph, masked, sources, (), constants, candidates).apply(plan), plan)


def _constants_and_candidates(graph: LayerGraph, masked: Mapping[str, Tensor], plan: KeepPlan) -> tuple[Constants, Candidates]:
    """What is constant and what can be cut once the channels are zero; only exact zeros count as dead."""
    threshold = threshold_of_zeros(masked)
    slices = measure_slices(graph, masked, threshold)
    constants = find_constants(graph, plan.spaces, masked, slices, threshold)
    return constants, find_candidates(plan.spaces, slices, constants, "either")
