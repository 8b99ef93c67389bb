"""Channels chosen to go and faded to zero: by hand on a small chain, and on residual networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunetrain import zoo
from prunetrain.channels.slicing import propose_cut
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.trace import trace_with_state
from prunetrain.regularizers.fading import Fading, Ranking


def chain() -> tuple[LayerGraph, dict[str, Tensor]]:
    """Linear 2 -> 4 -> 3 -> 2 on 1x1x2 images; every unit is a channel."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    traced = trace_with_state(model, torch.zeros(2, 1, 1, 2))
    state = {name: torch.ones_like(tensor) for name, tensor in traced.state.items()}
    return traced.graph, state


def traced_zoo(model: str) -> tuple[LayerGraph, dict[str, Tensor]]:
    torch.manual_seed(0)
    traced = trace_with_state(zoo.build(model, input_shape=(3, 32, 32), num_classes=10), torch.zeros(2, 3, 32, 32))
    return traced.graph, traced.state


def test_weakest_go_first_relative_to_their_space() -> None:
    """Unit 2 of the first layer at a tenth, unit 0 of the second at a half though all of the second is a thousandth."""
    graph, state = chain()
    first, second, third = (layer.name for layer in graph.layers)
    state[f"{first}.weight"][2] *= 0.1
    state[f"{second}.weight"][:, 2] *= 0.1
    state[f"{second}.weight"][0] *= 0.5
    state[f"{third}.weight"][:, 0] *= 0.5
    state[f"{third}.weight"] *= 1e-3
    ids = find_spaces(graph).ids
    chosen = Ranking(graph, state, criterion="either").weakest(19)  # 8 + 12 + 6 MACs; 6 + 9 + 6 without the first, 6 + 6 + 4 without both
    assert chosen == [ids[first, "out"][2], ids[second, "out"][0]]
    assert Ranking(graph, state, criterion="either").weakest(21) == chosen[:1]
    assert Ranking(graph, state, criterion="either").weakest(26) == []


def test_dead_channels_go_first_but_not_by_themselves() -> None:
    """Training may bring them back: 8 + 12 + 6 MACs are 6 + 9 + 6 without unit 1 of the first layer, whose weights are zero."""
    graph, state = chain()
    first, second, _ = (layer.name for layer in graph.layers)
    state[f"{first}.weight"][1] = 0
    state[f"{second}.weight"][:, 1] = 0
    ranking = Ranking(graph, state, criterion="either")
    assert ranking.macs_without([]) == 26
    assert ranking.weakest(21) == [find_spaces(graph).ids[first, "out"][1]]


def test_what_rounding_keeps_does_not_fade() -> None:
    """Counts stay even, so of the second layer's three units only one can go, and of the first's four two: its weakest."""
    graph, state = chain()
    first, second, _ = (layer.name for layer in graph.layers)
    for unit, size in ((3, 0.1), (1, 0.2), (0, 0.3)):
        state[f"{first}.weight"][unit] *= size
        state[f"{second}.weight"][:, unit] *= size
    ids = find_spaces(graph).ids
    chosen = Ranking(graph, state, criterion="either").weakest(16, 2)  # 8 + 12 + 6 MACs; 4 + 6 + 6 without two of the first
    assert chosen == [ids[first, "out"][3], ids[first, "out"][1]]


def test_a_channel_of_each_space_stays() -> None:
    graph, state = chain()
    chosen = Ranking(graph, state, criterion="either").weakest(0)
    assert len(chosen) == (4 - 1) + (3 - 1)


def test_macs_without_all_that_can_go_by_hand() -> None:
    """One unit of each layer stays, 2 + 1 + 2 MACs; in twos, two of both: 4 + 4 + 4. A fixed layer keeps its units and those it reads."""
    graph, state = chain()
    assert Ranking(graph, state, criterion="either").least_macs() == 5
    assert Ranking(graph, state, criterion="either").least_macs(2) == 12
    fixed = replace(graph, layers=(graph.layers[0], replace(graph.layers[1], trainable=False), graph.layers[2]))
    assert Ranking(fixed, state, criterion="union").least_macs() == costs(graph).macs


@pytest.mark.parametrize("filters", [slice(None), 3], ids=["all", "the one that would stay"])
def test_channels_fade_although_a_branch_could_go(filters: slice | int) -> None:
    """Because its last conv is zero, or does not make the strongest channel of the stream, which would stay if all others faded."""
    graph, state = traced_zoo("resnet20")
    least = Ranking(graph, state, criterion="either").least_macs()
    state["layer1_1_conv2.weight"][3] *= 2
    state["layer1_0_conv2.weight"][filters] = 0
    ranking = Ranking(graph, state, criterion="either")
    assert ranking.least_macs() == least
    half = 0.5 * costs(graph).macs
    assert ranking.macs_without(ranking.weakest(half)) <= half


def test_fading_by_hand() -> None:
    """A weight that both of its channels take along fades once."""
    graph, state = chain()
    first, second, _ = (layer.name for layer in graph.layers)
    ids = find_spaces(graph).ids
    Fading(graph, find_spaces(graph), state, [int(ids[first, "out"][1]), int(ids[second, "out"][0])]).scale_(0.5)
    assert state[f"{first}.weight"][:, 0].tolist() == [1, 0.5, 1, 1]
    assert state[f"{second}.weight"].tolist() == [[0.5, 0.5, 0.5, 0.5], [1, 0.5, 1, 1], [1, 0.5, 1, 1]]
    assert all(bool((state[f"{name}.bias"] == 1).all()) for name in (first, second)), "biases stay"


@pytest.mark.parametrize("model", ["resnet20", "vgg8", "mobilenet-v1-cifar"])
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_what_is_chosen_and_faded_can_be_cut_for_free(model: str, share: float) -> None:
    graph, state = traced_zoo(model)
    dense = costs(graph).macs
    spaces = find_spaces(graph)
    chosen = Ranking(graph, state, criterion="either").weakest(share * dense)
    assert not np.isin(chosen, np.flatnonzero(spaces.frozen_channels())).any()
    Fading(graph, spaces, state, chosen).scale_(0.0)
    proposal = propose_cut(graph, state, threshold=1e-4, criterion="either")
    left = costs(proposal.apply(proposal.plan()).graph).macs / dense
    assert share - 0.05 < left <= share


@pytest.mark.parametrize(("share", "of_16", "of_32", "of_64"), [(1.0, 4, 8, 16), (0.3, 4, 8, 16), (0.1, 2, 4, 8), (0.02, 1, 2, 4)])
def test_blocks_are_as_coarse_as_the_target_allows(share: float, of_16: int, of_32: int, of_64: int) -> None:
    """Quarters of each space, and in them a choice: if all goes that can, half of the target is reached."""
    graph, state = traced_zoo("resnet20")
    macs = share * costs(graph).macs
    blocks = Ranking(graph, state, criterion="either").coarsest_blocks(macs, graph)
    spaces = {space.name: len(space.channels) for space in find_spaces(graph).spaces if not space.frozen}
    assert {size: {blocks[name] for name in spaces if spaces[name] == size} for size in (16, 32, 64)} == {
        16: {of_16},
        32: {of_32},
        64: {of_64},
    }
    chosen = Ranking(graph, state, criterion="either").weakest(macs, blocks)
    Fading(graph, find_spaces(graph), state, chosen).scale_(0.0)
    proposal = propose_cut(graph, state, threshold=1e-4, criterion="either")
    assert costs(proposal.graph_for(proposal.plan())).macs <= macs
    assert all(kept % blocks[name] == 0 for name, (kept, _) in proposal.plan().counts().items() if name in spaces)


def test_blocks_of_wide_spaces_have_32_channels() -> None:
    graph, state = traced_zoo("vgg8")
    blocks = Ranking(graph, state, criterion="either").coarsest_blocks(0.5 * costs(graph).macs, graph)
    found = {(len(space.channels), blocks[space.name]) for space in find_spaces(graph).spaces if not space.frozen}
    assert found == {(64, 16), (128, 32), (256, 32), (512, 32)}


def test_blocks_stay_what_they_were_in_the_dense_network() -> None:
    """From cut to cut; a quarter of what is left would be ever fewer channels."""
    dense, state = traced_zoo("resnet20")
    macs = 0.5 * costs(dense).macs
    first = Ranking(dense, state, criterion="either").coarsest_blocks(macs, dense)
    graph = dense
    for share in (0.8, 0.6, 0.5):
        ranking = Ranking(graph, state, criterion="either")
        blocks = ranking.coarsest_blocks(macs, dense)
        assert blocks == {name: first[name] for name in blocks}
        Fading(graph, find_spaces(graph), state, ranking.weakest(share * costs(dense).macs, blocks)).scale_(0.0)
        proposal = propose_cut(graph, state, threshold=1e-4, criterion="either")
        cut = proposal.apply(proposal.plan())
        graph, state = cut.graph, dict(cut.state)
    counts = {space.name: len(space.channels) for space in find_spaces(graph).spaces if not space.frozen}
    assert any(count < 16 for count in counts.values())
    assert all(count % first[name] == 0 for name, count in counts.items())


@pytest.mark.parametrize("macs", [40, 5, 4, 0])
def test_blocks_where_nothing_leads_to_the_target(macs: int) -> None:
    """Spaces of 4 and 3 units have blocks of one, of which all but one may go: 5 MACs are left."""
    graph, state = chain()
    first, second, _ = (layer.name for layer in graph.layers)
    found = Ranking(graph, state, criterion="either").coarsest_blocks(macs, graph)
    assert (found[first], found[second]) == (1, 1)


@pytest.mark.parametrize("model", ["resnet20", "vgg8", "mobilenet-v1-cifar"])
def test_blocks_fade_and_go_together(model: str) -> None:
    graph, state = traced_zoo(model)
    dense = costs(graph).macs
    chosen = Ranking(graph, state, criterion="either").weakest(0.5 * dense, 8)
    Fading(graph, find_spaces(graph), state, chosen).scale_(0.0)
    proposal = propose_cut(graph, state, threshold=1e-4, criterion="either")
    ragged, rounded = proposal.plan(), proposal.plan(8)
    assert np.array_equal(ragged.keep, rounded.keep)  # nothing faded in vain
    assert (~ragged.keep).sum() == len(chosen)
    assert all(kept % 8 == 0 or kept == count for kept, count in ragged.counts().values())
    assert 0.3 < costs(proposal.graph_for(rounded)).macs / dense <= 0.5


def spatially_attended() -> tuple[LayerGraph, dict[str, Tensor]]:
    """Convs whose channels are averaged, by a GroupNorm of one group and for a spatial gate; both have biases in front."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(1, 8)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.scale = nn.Parameter(torch.ones(8, 1, 1))
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm1(self.conv1(x)))
            x = self.scale * self.bn2(self.conv2(x))
            return self.fc((x * torch.sigmoid(x.mean(1, keepdim=True))).mean((2, 3)))

    torch.manual_seed(0)
    traced = trace_with_state(Net(), torch.zeros(2, 3, 8, 8))
    return traced.graph, {
        name: torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor for name, tensor in traced.state.items()
    }


def test_biases_fade_where_channels_are_reduced_over() -> None:
    graph, state = spatially_attended()
    spaces, macs = find_spaces(graph), 0.4 * costs(graph).macs
    chosen = Ranking(graph, state, criterion="either").weakest(macs)
    Fading(graph, spaces, state, chosen).scale_(0.0)
    proposal = propose_cut(graph, state, threshold=1e-4, criterion="either")
    assert costs(proposal.apply(proposal.plan()).graph).macs <= macs
    for axis, tensors in {("conv1", "out"): ("conv1.bias", "norm1.bias"), ("conv2", "out"): ("conv2.bias", "bn2.weight", "scale")}.items():
        going = torch.from_numpy(np.isin(spaces.ids[axis], chosen))
        assert going.any()
        for name in tensors:
            assert torch.equal(state[name].flatten() == 0, going), name


def test_channels_stay_where_a_bias_in_front_of_a_reduction_is_not_trained() -> None:
    graph, state = spatially_attended()
    ids = find_spaces(graph).ids
    trained = [name for name in state if name != "conv1.bias"]
    chosen = Ranking(graph, state, criterion="either", trained=trained).weakest(0)
    assert not np.isin(ids["conv1", "out"], chosen).any()
    assert np.isin(ids["conv2", "out"], chosen).sum() == 7
