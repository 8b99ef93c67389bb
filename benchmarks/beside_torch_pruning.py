"""prunetrain against Torch-Pruning: seconds to analyse a network and to cut 30% of its channels, and networks that are hard to analyse.

    python benchmarks/beside_torch_pruning.py runs/coverage

Needs `pip install torch-pruning`. In: a folder for the results. Out: `torch_pruning.json` in it, which `coverage.py --table` reads; what it
holds already is not measured again. Both tools take turns on copies of the same network (1000 classes), with one 3x224x224 image, the class
scores left alone, and one thread.

* analyse: `DependencyGraph().build_dependency` | `trace_with_state` and `find_spaces`
* cut: `step` of a `BasePruner` with `MagnitudeImportance`, 30% of every group | `propose_cut`, `plan`, `apply` with zeros in the 30% of
  every space that are weakest by the norm of all their weights. The part of this called `slice`: the groups' `prune()` | `apply`

Torch-Pruning changes the network in place. prunetrain finds dead channels and propagates constants, and makes a new graph and new weights.
"""

import argparse
import copy
import gc
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from coverage_checks import outputs, randomise
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from prunetrain import models
from prunetrain.channels.masking import mask_channels
from prunetrain.channels.selection import Bools
from prunetrain.channels.slicing import propose_cut
from prunetrain.channels.spaces import ChannelSpaces, find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace, trace_with_state

TIMED = ("resnet50", "densenet201", "efficientnet_b0", "vgg16_bn")
HARD = (("shufflenet_v2_x1_0", False), ("googlenet", True), ("inception_v3", True), ("vit_b_16", False), ("swin_t", False))  # in train mode
RATIO = 0.3
REPEATS = 5
LIMIT = 60  # seconds for a hard network
_CLASSES = 1000
_THRESHOLD = 1e-12


@dataclass(frozen=True)
class Outcome:
    """Seconds of a tool, and the remaining MACs (counted by prunetrain for both) and parameters."""

    analyse: float
    cut: float
    slice: float
    macs: int
    params: int


def main() -> None:
    """Measure both tools on all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder for the results")
    folder: Path = parser.parse_args().results
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4))  # imports what the first trace imports
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "torch_pruning.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"timed": {}, "hard": {}}
    found["versions"] = {"torch-pruning": version("torch-pruning")}
    for name, training in HARD:
        if name not in found["hard"]:
            tools = (torch_pruning, *([torch_pruning_with_help] if name == "vit_b_16" else []), prunetrain)
            outcomes = {tool.__name__: _in_a_process(partial(on_a_hard_one, tool, name, training), LIMIT) for tool in tools}
            found["hard"][name] = {"training": training} | outcomes
            _write(path, found, found["hard"][name])
    for name in TIMED:
        if name not in found["timed"]:
            found["timed"][name] = _in_a_process(partial(compare, name), None)
            _write(path, found, found["timed"][name])


def _write(path: Path, found: dict[str, Any], newest: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(newest), flush=True)


def compare(name: str) -> dict[str, Any]:
    """Run both tools in turn, `REPEATS` times; return median, least and most seconds of each phase, and what is left of the network."""
    model = build(name)
    dense = costs(trace(model, _image(name)))
    runs: dict[str, list[Outcome]] = {"torch_pruning": [], "prunetrain": []}
    for _ in range(REPEATS):
        for tool in (torch_pruning, prunetrain):
            gc.collect()  # what the other one left
            runs[tool.__name__].append(tool(copy.deepcopy(model), _image(name)))
    return {"dense": {"macs": dense.macs, "params": dense.params}} | {tool: _summary(outcomes) for tool, outcomes in runs.items()}


def build(name: str) -> nn.Module:
    """A network of torchvision with random weights, in eval mode."""
    torch.manual_seed(0)
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = models.build(f"torchvision:{name}", input_shape=(3, *_image(name).shape[2:]), num_classes=_CLASSES, model_args=arguments)
    randomise(model)
    return model.eval()


def torch_pruning(model: nn.Module, image: Tensor) -> Outcome:
    """Run Torch-Pruning with its default settings on a network, which it changes; it analyses networks in eval mode."""
    return _torch_pruning(model, image, heads={})


def torch_pruning_with_help(model: nn.Module, image: Tensor) -> Outcome:
    """Do the same with the number of attention heads given, and correct by hand the width that torchvision's ViT stores."""
    heads: dict[nn.Module, int] = {module: module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    return _torch_pruning(model, image, heads)


def _torch_pruning(model: nn.Module, image: Tensor, heads: dict[nn.Module, int]) -> Outcome:
    training = model.training
    start = time.perf_counter()
    tp.DependencyGraph().build_dependency(model, image)
    analyse = time.perf_counter() - start
    pruner = tp.pruner.BasePruner(
        model,
        image,
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=RATIO,
        ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == _CLASSES],
        in_channel_groups={},  # their default is one dictionary for all pruners
        out_channel_groups={},
        num_heads=heads,
    )
    slicing = 0.0
    start = time.perf_counter()
    for group in pruner.step(interactive=True):
        before = time.perf_counter()
        group.prune()
        slicing += time.perf_counter() - before
    cut = time.perf_counter() - start
    if heads and isinstance(model, VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels
    outputs(model.train(training), torch.cat([image, image]))
    cost = costs(trace(model, image))
    return Outcome(analyse, cut, slicing, cost.macs, cost.params)


def prunetrain(model: nn.Module, image: Tensor) -> Outcome:
    """Run prunetrain on a network."""
    start = time.perf_counter()
    traced = trace_with_state(model, image)
    spaces = find_spaces(traced.graph)
    analyse = time.perf_counter() - start
    graph, state = traced.graph, {name: tensor.detach() for name, tensor in traced.state.items()}
    masked = mask_channels(graph, state, spaces, _weakest(graph, state, spaces))
    start = time.perf_counter()
    proposal = propose_cut(graph, masked, threshold=_THRESHOLD, criterion="either")
    plan = proposal.plan()
    before = time.perf_counter()
    smaller = proposal.apply(plan)
    end = time.perf_counter()
    network = instantiate(render(smaller.graph, dense=graph), "network.py")
    network.load_state_dict(smaller.state)
    network.train(model.training)
    outputs(network, torch.cat([image, image]))
    cost = costs(smaller.graph)
    return Outcome(analyse, end - start, end - before, cost.macs, cost.params)


def _weakest(graph: LayerGraph, state: Mapping[str, Tensor], spaces: ChannelSpaces) -> Bools:
    """Choose the weakest share `RATIO` of the channels of every space that may be cut."""
    strength = propose_cut(graph, state, threshold=_THRESHOLD, criterion="either").candidates.strength
    gone = np.zeros(spaces.num_channels, dtype=bool)
    for space in spaces.spaces:
        if not space.frozen:
            order = np.argsort(strength[space.channels], kind="stable")
            gone[space.channels[order[: int(RATIO * len(order))]]] = True
    return gone


def _image(name: str) -> Tensor:
    side = 299 if name == "inception_v3" else 224
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def _summary(outcomes: list[Outcome]) -> dict[str, Any]:
    phases = {phase: [asdict(outcome)[phase] for outcome in outcomes] for phase in ("analyse", "cut", "slice")}
    spread = {phase: [statistics.median(times), min(times), max(times)] for phase, times in phases.items()}
    return spread | {"macs": outcomes[-1].macs, "params": outcomes[-1].params}


def on_a_hard_one(tool: Callable[[nn.Module, Tensor], Outcome], name: str, training: bool) -> dict[str, Any]:
    """Run a tool on a hard network; return what is left of it, or what went wrong."""
    model, image = build(name), _image(name)
    dense = costs(trace(model, image))
    batch = torch.cat([image, image]) if training else image  # BatchNorm needs more than one value per channel
    try:
        outcome = tool(model.train(training), batch)
    except Exception as error:  # any failure is a result
        return {"why": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]}
    return asdict(outcome) | {"macs_left": outcome.macs / dense.macs, "params_left": outcome.params / dense.params}


def _in_a_process(work: Callable[[], dict[str, Any]], limit: float | None) -> dict[str, Any]:
    """Return the result of some work done in a fork of this process, so that it can be stopped and leaves nothing behind."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(work, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv() if receiver.poll(limit) else {"why": f"not done after {limit:.0f} s"}
        return found
    except EOFError:
        return {"why": "the process ended"}
    finally:
        process.kill()
        process.join()


def _send(work: Callable[[], dict[str, Any]], sender: Connection) -> None:
    sender.send(work())


if __name__ == "__main__":
    main()
