"""Cutting: make a smaller graph, its weights, and its optimizer's state.

In: a network (graph and state dict), a threshold, a criterion. Out: a `Cut`. It takes three steps, so that the caller can choose the
granularity in between:

    proposal = propose_cut(graph, state, threshold=1e-4, criterion="either")
    cut = proposal.apply(proposal.plan(granularity=8))
    optimizer_state = slice_optimizer_state(optimizer.state_dict(), old_names, new_names, cut.sources)

Nothing is changed in place, and no loop runs over channels.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunetrain.channels.branches import remove_branches
from prunetrain.channels.constants import Constants, Receiver, find_constants
from prunetrain.channels.gating import gate_streams
from prunetrain.channels.rewriting import rewrite
from prunetrain.channels.selection import Candidates, Granularity, KeepPlan, find_candidates, make_plan
from prunetrain.channels.slices import measure_slices
from prunetrain.channels.sources import Source, chain
from prunetrain.channels.spaces import Axis, Ids, find_spaces
from prunetrain.graph.layergraph import LayerGraph


@dataclass(frozen=True)
class Cut:
    """A smaller network: its graph, its state dict, and where each tensor comes from.

    `removed_layers` were removed entirely; `rescued_spaces` kept a dead channel so as not to be empty.
    """

    graph: LayerGraph
    state: dict[str, Tensor]
    sources: dict[str, Source]
    removed_layers: tuple[str, ...]
    rescued_spaces: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """A network without its dead branches, and which of its channels can go."""

    graph: LayerGraph
    state: Mapping[str, Tensor]
    sources: Mapping[str, Source]
    removed_layers: tuple[str, ...]
    constants: Constants
    candidates: Candidates

    def plan(self, granularity: Granularity = 1) -> KeepPlan:
        """Return the plan in which every space keeps a multiple of `granularity` channels, or of its own number in it."""
        return make_plan(self.candidates, granularity)

    def graph_for(self, plan: KeepPlan) -> LayerGraph:
        """The smaller graph that results from a plan."""
        return rewrite(self.graph, plan).graph

    def apply(self, plan: KeepPlan) -> Cut:
        """Cut the channels that a plan does not keep; biases and running means absorb their constants."""
        absorbed = dict(self.state) | _absorb(self.state, self.constants, plan)
        smaller = rewrite(self.graph, plan)
        sources = _slice_sources(self.graph, self.state, plan, smaller.rows)
        state = {name: source.gather(absorbed[name].detach()) for name, source in sources.items()}
        return Cut(smaller.graph, state, chain(sources, self.sources), self.removed_layers, plan.rescued)


def gate(cut: Cut, *, threshold: float, granularity: int) -> Cut:
    """Return a cut with gated residual streams (`gating.py`).

    Args:
        cut: the network after a cut.
        threshold: slices with every absolute weight under this are dead.
        granularity: the number of channels that a layer reads or writes stays a multiple of this.
    """
    gated = gate_streams(cut.graph, cut.state, threshold=threshold, granularity=granularity)
    return replace(cut, graph=gated.graph, state=gated.state, sources=chain(gated.sources, cut.sources))


def propose_cut(
    graph: LayerGraph, state: Mapping[str, Tensor], *, threshold: float, criterion: str, always_eval: Collection[str] = ()
) -> Proposal:
    """Remove dead residual branches and find the channels that can go.

    Args:
        graph: the network.
        state: its state dict, on any device.
        threshold: slices with every absolute weight under this are dead.
        criterion: "union" or "either" (see `selection.py`).
        always_eval: names of the layers that are in eval mode while the network is in train mode.
    """
    sources: dict[str, Source] = {name: Source(name) for name in state}
    removed: tuple[str, ...] = ()
    state = {name: tensor.detach() for name, tensor in state.items()}
    slices = measure_slices(graph, state, threshold)
    while True:
        spaces = find_spaces(graph)
        constants = find_constants(graph, spaces, state, slices, threshold, always_eval=always_eval)
        branches = remove_branches(graph, state, constants, threshold)
        if branches is None:
            break
        graph, state, removed = branches.graph, branches.state, removed + branches.removed
        sources = chain(branches.sources, sources)
    candidates = find_candidates(spaces, slices, constants, criterion)
    return Proposal(graph, state, sources, removed, constants, candidates)


def _slice_sources(graph: LayerGraph, state: Mapping[str, Tensor], plan: KeepPlan, rows_of: Mapping[Axis, Ids]) -> dict[str, Source]:
    rows = {axis: torch.from_numpy(found) for axis, found in rows_of.items()}
    sources = {}
    for layer in graph.layers:
        for tensor, axes in layer.signature.axes.items():
            name = f"{layer.name}.{tensor}"
            if name in state:
                sources[name] = Source(name, {dim: rows[layer.name, axis] for dim, axis in enumerate(axes) if (layer.name, axis) in rows})
    for name, dim in plan.spaces.dims.items():
        sources[name] = Source(name, {dim: rows[name, "features"]})
    return {name: sources.get(name, Source(name)) for name in state}


def _absorb(state: Mapping[str, Tensor], constants: Constants, plan: KeepPlan) -> dict[str, Tensor]:
    """Return the running means and biases that change because they absorb the constants of removed channels."""
    changed: dict[str, Tensor] = {}
    for consumer in constants.consumers.values():
        ids = plan.spaces.ids[consumer.layer, "in"]
        if consumer.receiver is Receiver.NONE or not len(consumer.columns):
            continue
        shift = consumer.shift(state[f"{consumer.layer}.weight"].detach(), torch.from_numpy(~plan.keep[ids]))
        if not bool(shift.any()):
            continue
        tensor = changed.get(consumer.receives, state[consumer.receives])
        sign = -1.0 if consumer.receiver is Receiver.RUNNING_MEAN else 1.0
        changed[consumer.receives] = (tensor.double() + sign * shift.to(tensor.device)).to(tensor.dtype)
    return changed


def slice_optimizer_state(
    state_dict: Mapping[str, Any],
    old_names: Sequence[str],
    new_names: Sequence[str],
    sources: Mapping[str, Source],
    shapes: Mapping[str, torch.Size],
) -> dict[str, Any]:
    """Return an optimizer's state dict for the parameters of the smaller network.

    This works for every torch.optim optimizer whose per-parameter state has the parameter's shape; anything else (step counts) is carried
    over. A parameter stays in its group; groups keep their settings.

    Args:
        state_dict: `optimizer.state_dict()` over the larger network.
        old_names: names of the larger network's parameters, in the order of the optimizer's groups.
        new_names: names of the smaller network's parameters in the order of its own optimizer: group by group, like `old_names`.
        sources: `Cut.sources`.
        shapes: shapes of the larger network's parameters.
    """
    old_index = dict(zip(old_names, (i for group in state_dict["param_groups"] for i in group["params"]), strict=True))
    group_of = {i: number for number, group in enumerate(state_dict["param_groups"]) for i in group["params"]}
    emptied = {"params", "param_names"}  # there are names if the optimizer was given named parameters
    groups: list[dict[str, Any]] = [{k: [] if k in emptied else v for k, v in group.items()} for group in state_dict["param_groups"]]
    state: dict[int, dict[str, Any]] = {}
    for new_index, name in enumerate(new_names):
        source = sources[name]
        index = old_index[source.name]
        group = groups[group_of[index]]
        group["params"].append(new_index)
        if "param_names" in group:
            group["param_names"].append(name)
        if index in state_dict["state"]:
            shape = shapes[source.name]
            state[new_index] = {key: _sliced(entry, source, shape) for key, entry in state_dict["state"][index].items()}
    return {"state": state, "param_groups": groups}


def _sliced(entry: Any, source: Source, shape: torch.Size) -> Any:
    """Slice an entry that has its parameter's shape; copy others, since two tensors may come from one and each counts its own steps."""
    if not isinstance(entry, Tensor):
        return entry
    return source.gather(entry) if entry.shape == shape and entry.dim() else entry.clone()
