"""What share of the MACs saved by a cut is also saved in time: training steps of dense networks and actually pruned ones, in turn.

    prunetrain train --model resnet18-cifar ... --threshold 0 --penalty-ratio 0.97 --prune-interval 1   # zeros are made and stay
    python benchmarks/time_follows_macs.py checkpoints/resnet18-cifar-npz/epoch_003.pt --batch-size 32 --round-to 1,8,16,auto
    python benchmarks/time_follows_macs.py checkpoints/vgg16/last.pt --fade-to 0.5 --batch-size 64 --round-to 8,16,32,auto
    python benchmarks/time_follows_macs.py vgg8 torchvision:mobilenet_v2 --fade-to 0.5 --batch-size 64 --image-size 32 --round-to auto

In: checkpoints of runs that have dead channels and did not cut them. With `--fade-to`: checkpoints of dense runs, or untrained networks as
`--model` names them, whose weakest channels are removed in blocks of `--round-to`, like those that a run fades. Out: a Markdown table.
Each network is cut with every `--round-to`; dense and cut networks take turns, round after round, and each figure is a median over rounds,
with quartiles.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from runs import machine
from torch import Tensor

from prunetrain.channels.slicing import Proposal, propose_cut
from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.trace import trace_with_state
from prunetrain.models import build
from prunetrain.regularizers.fading import Fading, Ranking
from prunetrain.training.benchmarking.allocator import keep_freed_memory
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.rounds import Spread, ratios, time_in_turn
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.training.granularity import Effort, measured_choice
from prunetrain.training.pairs import read_pair

_NETWORKS = 6  # that `auto` times whole
_SIDE, _CLASSES = 32, 10  # of a network that is named
CRITERION = TrainConfig.criterion


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="checkpoints, or networks as in `--model`")
    parser.add_argument("--round-to", default="1,8,16,auto")
    parser.add_argument("--fade-to", type=float, help="share of the MACs to leave when removing the weakest channels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, help="side of the images, if different from training")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 autocast instead of float32")
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    amp = "bfloat16" if arguments.bfloat16 else "off"
    conditions = Conditions(torch.device("cpu"), arguments.batch_size, amp, arguments.channels_last)
    precision = f"{'bfloat16' if arguments.bfloat16 else 'float32'}{', channels-last' if arguments.channels_last else ''}"
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    print(f"{machine()}, {threads}, {precision}, batch {arguments.batch_size}; {arguments.rounds} rounds\n")
    print("| network | round-to | MACs | step time, median (quartiles) | time saved / MACs saved |\n| --- | --- | --- | --- | --- |")
    for network in arguments.networks:
        dense, weights = _stored(Path(network), arguments.image_size) if network.endswith(".pt") else _new(network, arguments.image_size)
        graphs = {"dense": dense}
        for word in arguments.round_to.split(","):
            if arguments.fade_to:
                graphs[word] = _faded(dense, weights, word, arguments.fade_to * costs(dense).macs)
            else:
                graphs[word] = _cut(propose_cut(dense, weights, threshold=1e-4, criterion=CRITERION), word, conditions)
        _compare(network, graphs, conditions, arguments.rounds)


def _new(spec: str, image_size: int | None) -> tuple[LayerGraph, dict[str, Tensor]]:
    """A network before training, for ten classes."""
    torch.manual_seed(0)
    side = image_size or _SIDE
    traced = trace_with_state(build(spec, input_shape=(3, side, side), num_classes=_CLASSES), torch.zeros(2, 3, side, side))
    return traced.graph, traced.state


def _stored(path: Path, image_size: int | None) -> tuple[LayerGraph, dict[str, Tensor]]:
    """The network of a checkpoint and its weights."""
    pair = read_pair(path)
    graph = pair.graph
    if image_size:
        graph = replace(graph, input_shape=(graph.input_shape[0], image_size, image_size))
    return graph, pair.checkpoint.model


def _faded(graph: LayerGraph, weights: dict[str, Tensor], word: str, macs: float) -> LayerGraph:
    """The network after removing the weakest channels, as few as needed to reach a share of the MACs."""
    ranking = Ranking(graph, weights, criterion=CRITERION)
    going = ranking.weakest(macs, ranking.coarsest_blocks(macs, graph) if word == "auto" else int(word))
    faded = {name: tensor.clone() for name, tensor in weights.items()}
    Fading(graph, find_spaces(graph), faded, going).scale_(0.0)
    proposal = propose_cut(graph, faded, threshold=float(torch.finfo().tiny), criterion=CRITERION)
    return proposal.graph_for(proposal.plan())


def _cut(proposal: Proposal, word: str, conditions: Conditions) -> LayerGraph:
    if word != "auto":
        return proposal.graph_for(proposal.plan(int(word)))
    start = time.perf_counter()
    choice = measured_choice(proposal, conditions, Effort(True, _NETWORKS, conditions.batch_size))
    print(f"<!-- auto took {time.perf_counter() - start:.1f} s and chose {choice} -->")
    return proposal.graph_for(proposal.plan(choice))


def _compare(name: str, graphs: dict[str, LayerGraph], conditions: Conditions, rounds: int) -> None:
    steps = [TrainingStep(graph, conditions) for graph in graphs.values()]
    seconds = time_in_turn(steps, rounds=rounds, wait=conditions.wait, clock=conditions.clock)
    whole = costs(graphs["dense"]).macs
    for (word, graph), times in zip(graphs.items(), seconds, strict=True):
        macs, ratio = costs(graph).macs / whole, ratios(times, seconds[0])
        if word == "dense":
            print(f"| {name} | dense | 100.0% | 1 ({Spread.of(times).median:.2f} s) | |", flush=True)
            continue
        step, gain = Spread.of(ratio), Spread.of([(1 - r) / (1 - macs) for r in ratio] if macs < 1 else [0.0])
        shown = f"{gain.median:.2f} ({gain.low:.2f} to {gain.high:.2f})" if macs < 1 else ""
        print(f"| {name} | {word} | {macs:.1%} | {step.median:.2f} ({step.low:.2f} to {step.high:.2f}) | {shown} |", flush=True)


if __name__ == "__main__":
    main()
