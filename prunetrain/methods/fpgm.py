"""FPGM: the filters nearest to the geometric median of their layer go, since others can represent them.

He, Liu, Wang, Hu and Yang, "Filter pruning via geometric median", 2019, arXiv 1811.00250. The filters of a layer with the smallest sum of
distances to all others are nearest to the median:

    score(c) = sum over j of ||W[c] - W[j]||_2

"FPGM-mix" removes a share of them by norm (published: a quarter), and the others by distance among the filters then left.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetrain.channels.selection import KeepPlan
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.counting import removed_count, smallest_mask
from prunetrain.methods.options import Options
from prunetrain.methods.ranking import FILTERS, plan_by_rank


def fpgm(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> KeepPlan:
    """Return a plan without the filters nearest to the median; the share `options.norm_share`, rounded down, goes by norm."""

    def criterion(filters: Tensor, count: int, space: str) -> Tensor:
        by_norm = count if options.norm_share == 1 else removed_count(count, options.norm_share)
        return mixed_scores(filters, by_norm)

    return plan_by_rank(graph, state, rate, options, kinds=FILTERS, criterion=criterion)


def distance_sums(filters: Tensor) -> Tensor:
    """Return the sum of each filter's distances to all others, (n,), for filters (n, numbers)."""
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def mixed_scores(filters: Tensor, by_norm: int) -> Tensor:
    """Return scores by which the `by_norm` filters of smallest L2 norm go first, then the others by distance among themselves.

    Filters that go by norm have negative scores, the smallest norm the lowest.
    """
    norms = torch.linalg.vector_norm(filters, dim=1)
    first = smallest_mask(norms, by_norm)
    scores = torch.empty_like(norms)
    scores[first] = norms[first] - norms.max() - 1
    scores[~first] = distance_sums(filters[~first])
    return scores
