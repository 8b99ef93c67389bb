"""Measuring one network: it is flattened, compared with the original, cut, compared again, and timed.

In: a `Case`. Out: plain values, ready for JSON. Failures are part of the result: `failed` names the stage, `why` the reason.
"""

import ast
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from coverage_checks import batch_of, identical_in_eval, identical_in_training, randomise, share_weights
from coverage_models import Case
from torch import Tensor, nn

from prunetrain import models
from prunetrain.channels.coverage import measure_coverage
from prunetrain.channels.masking import mask_channels
from prunetrain.channels.selection import Bools
from prunetrain.channels.slicing import Cut, propose_cut
from prunetrain.channels.spaces import ChannelSpaces, find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.graph.trace import Traced, trace_with_state

T = TypeVar("T")
REPEATS = 3
CLASSES = 1000
_THRESHOLD = 1e-12  # masked weights are zeros


def measure(case: Case) -> dict[str, Any]:
    """Measure a network as far as it gets."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"spec": case.spec, "side": case.side, "timed_side": case.timed_side, "second_side": case.second_side}
    stage = "build"
    try:
        model = built(case)
        randomise(model)
        stage = "trace"
        traced = trace_with_state(model, torch.zeros(2, 3, case.side, case.side))
        stage = "file"
        source = render(traced.graph)
        network = instantiate(source, "network.py")
        share_weights(network, traced.state)
        found |= {"steps": len(traced.graph.steps), "parses_back": parse(source) == traced.graph, "imports": imports(source)}
        stage = "identity"
        found |= _identity(case, model, network, traced)
        del network
        model.zero_grad(set_to_none=True)
        stage = "times"
        found |= _times_and_macs(case, model)
        stage = "cut"
        graph, spaces = traced.graph, find_spaces(traced.graph)
        gone = a_third(spaces)
        masked = mask_channels(graph, _exact(traced.state), spaces, gone)
        del model, traced  # two copies of a large network are enough
        found |= {"asked": int(gone.sum())} | _cut_and_compared(graph, masked, batch_of((2, 3, case.side, case.side)).double())
    except Exception as error:  # any failure is a result
        lines = str(error).strip().splitlines() or [""]
        found |= {"failed": stage, "why": f"{type(error).__name__}: {lines[0]}", "refused": type(error).__name__ == "TraceError"}
    return found


def built(case: Case) -> nn.Module:
    """The network with fresh weights, 1000 classes."""
    torch.manual_seed(0)
    return models.build(case.spec, input_shape=(3, case.side, case.side), num_classes=CLASSES, model_args=case.model_args)


def imports(source: str) -> list[str]:
    """The packages that a network file imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or ".").partition(".")[0])
    return sorted(found)


def a_third(spaces: ChannelSpaces) -> Bools:
    """Choose a random third of the channels that are not frozen; at least one stays in every space and in every result."""
    gone: Bools = (np.random.default_rng(0).random(spaces.num_channels) < 1 / 3) & ~spaces.frozen_channels()
    for channels in (*(space.channels for space in spaces.spaces), *map(np.unique, {id(grid): grid for grid in spaces.values}.values())):
        if gone[channels].all():
            gone[channels[0]] = False
    return gone


def seconds(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of some work, and its seconds: the median of `REPEATS` times."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


def select_and_slice(graph: LayerGraph, state: Mapping[str, Tensor]) -> Cut:
    """Cut everything that is dead."""
    proposal = propose_cut(graph, state, threshold=_THRESHOLD, criterion="either")
    return proposal.apply(proposal.plan())


def _identity(case: Case, model: nn.Module, network: nn.Module, traced: Traced) -> dict[str, Any]:
    shapes = [(batch, 3, case.side, case.side) for batch in (1, 2)]
    found: dict[str, Any] = {"identical_in_eval": identical_in_eval(model, network, shapes)}
    found["other_size"] = _at_another_size(model, network, case.second_side)
    found["different_in_training"] = identical_in_training(model, network, traced.names, shapes[-1])[:5]
    return found


def _at_another_size(model: nn.Module, network: nn.Module, side: int) -> str:
    images = batch_of((1, 3, side, side))
    for name, module in (("model", model), ("file", network)):
        try:
            with torch.inference_mode():
                module.eval()(images)
        except Exception:  # each network has its own error for a wrong size
            return f"refused by the {name}"
    return "identical" if identical_in_eval(model, network, [tuple(images.shape)]) else "different"


def _times_and_macs(case: Case, model: nn.Module) -> dict[str, Any]:
    example = torch.empty(2, 3, case.timed_side, case.timed_side, device="meta")
    traced, tracing = seconds(lambda: trace_with_state(model, example))
    graph = traced.graph
    spaces, finding = seconds(lambda: find_spaces(graph))
    coverage = measure_coverage(graph, spaces)
    state = {name: tensor.detach() for name, tensor in traced.state.items()}
    masked = mask_channels(graph, state, spaces, a_third(spaces))
    cut, cutting = seconds(lambda: select_and_slice(graph, masked))
    return {
        "macs": coverage.macs,
        "cuttable_share": coverage.share,
        "convs": sum(layer.is_convolution for layer in graph.layers),
        "stuck": [[stuck.layer, stuck.frozen, stuck.channels, stuck.why] for stuck in coverage.stuck],
        "macs_left": costs(cut.graph).macs / coverage.macs,
        "seconds": {"trace": tracing, "spaces": finding, "cut": cutting},
    }


def _exact(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _cut_and_compared(graph: LayerGraph, masked: Mapping[str, Tensor], images: Tensor) -> dict[str, Any]:
    """The largest difference between the cut network and the one with zeroed channels, in float64, relative to the largest output."""
    expected = _outputs(graph, None, masked, images)
    cut = select_and_slice(graph, masked)
    found = _outputs(cut.graph, graph, cut.state, images)
    return {
        "channels": [costs(graph).channels, costs(cut.graph).channels],
        "error": ((expected - found).abs().max() / expected.abs().max()).item(),
    }


def _outputs(graph: LayerGraph, dense: LayerGraph | None, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    network = instantiate(render(graph, dense=dense), "network.py")
    network.load_state_dict(state, assign=True)  # float64, and no copy
    with torch.inference_mode():
        outputs: Tensor = network.eval()(images)
    return outputs
