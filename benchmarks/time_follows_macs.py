"""How much of the MACs that a cut saves it saves in time: training steps of dense and really pruned networks, in turn.

    prunetrain train --model resnet18-cifar ... --threshold 0 --penalty-ratio 0.97 --prune-interval 1   # zeros are made and stay
    python benchmarks/time_follows_macs.py checkpoints/resnet18-cifar-npz/epoch_003.pt --batch-size 32 --round-to 1,8,16,auto

In: checkpoints of runs that made dead channels and did not cut them. Out: a Markdown table. Each is cut with every `--round-to`; dense and
cut networks take turns, round after round, and each figure is a median over rounds, with quartiles.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from runs import machine

from prunetrain.channels.slicing import Proposal, propose_cut
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.parse import parse
from prunetrain.training.benchmarking.allocator import keep_freed_memory
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.rounds import Spread, ratios, time_in_turn
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.training.checkpoints import load_checkpoint, read_network_of
from prunetrain.training.granularity import Effort, measured_choice

_NETWORKS = 6  # that `auto` times whole


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--round-to", default="1,8,16,auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, help="side of the images, where it is to be another than in training")
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
    for path in arguments.checkpoints:
        dense, proposal = _proposal(path, arguments.image_size)
        graphs = {"dense": dense}
        for word in arguments.round_to.split(","):
            graphs[word] = _cut(proposal, word, conditions)
        _compare(f"{path.parent.name}/{path.stem}", graphs, conditions, arguments.rounds)


def _proposal(path: Path, image_size: int | None) -> tuple[LayerGraph, Proposal]:
    """A checkpoint's network, and what of it can be cut."""
    checkpoint = load_checkpoint(path)
    network, source = read_network_of(path, checkpoint)
    graph = parse(source, str(network))
    if image_size:
        graph = replace(graph, input_shape=(graph.input_shape[0], image_size, image_size))
    return graph, propose_cut(graph, checkpoint.model, threshold=1e-4, criterion="either")


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
