"""Pruning weights against pruning units, in one shot without retraining: how far accuracy holds. A check that methods choose well.

    python benchmarks/one_shot.py runs/one-shot --seeds 0,1,2 -- --recipe mnist --model mlp --epochs 5 --penalty-ratio 0 --data-dir data

Out: a Markdown table of top-1 by method and rate. Every seed is one run of `prunetrain train`; runs are kept in the folder, so that an
interrupted study resumes where it was. The classifier keeps all its weights. Removed channels are cut out, and the smaller network is
measured.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from runs import machine, train
from torch import Tensor, nn

from prunetrain.channels.removal import remove_channels
from prunetrain.config import build_config
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options
from prunetrain.methods.registry import decide
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.data import DataSource, load_data
from prunetrain.training.trained_network import read_trained_network

RATES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)


def main() -> None:
    """Train, prune, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="magnitude,unit")
    parser.add_argument("--spare", default="fc5", help="layers that keep all their weights")
    parser.add_argument("--threads", type=int, default=1)
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    arguments = parser.parse_args(own.split())
    torch.set_num_threads(arguments.threads)
    methods, seeds = arguments.methods.split(","), arguments.seeds.split(",")
    found: dict[tuple[str, float], list[float]] = {(method, rate): [] for method in methods for rate in RATES}
    for seed in seeds:
        train(arguments.folder, f"seed-{seed}", [*flags.split(), "--seed", seed], arguments.threads)
        checkpoint = RunPaths(arguments.folder, f"seed-{seed}").last
        trained = read_trained_network(checkpoint)
        data = load_data(build_config(load_checkpoint(checkpoint).config), torch.device("cpu"))
        options = Options(layer_rates=dict.fromkeys(arguments.spare.split(","), 0.0))
        for (method, rate), values in found.items():
            values.append(_top1(_pruned(trained.graph, trained.state, method, rate, options), data))
    print(f"{machine()}; seeds {arguments.seeds}; flags {flags}\n")
    print(f"| removed | {' | '.join(methods)} |\n| --- |{' --- |' * len(methods)}")
    for rate in RATES:
        print(f"| {rate:.0%} | {' | '.join(_spread(found[method, rate]) for method in methods)} |")


def _pruned(graph: LayerGraph, state: dict[str, Tensor], method: str, rate: float, options: Options) -> nn.Module:
    """The network after pruning by a method: with zeros, or smaller."""
    decision = decide(method, graph, state, rate, options)
    if isinstance(decision, Masks):
        state = decision.applied(state)
    else:
        cut = remove_channels(graph, state, decision).cut
        graph, state = cut.graph, cut.state
    model = instantiate(render(graph), method).eval()
    model.load_state_dict(state)
    return model


@torch.inference_mode()
def _top1(model: nn.Module, data: DataSource) -> float:
    right = total = 0
    for images, labels in data.val_batches(1000):
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2%} ({min(values):.2%} to {max(values):.2%})"


if __name__ == "__main__":
    main()
