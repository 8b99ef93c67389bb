"""Models for the tests of `trace`, and their generated networks."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.graph.trace import Traced, trace_with_state

IMAGES = torch.zeros(2, 3, 8, 8)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = _load("coverage_checks")


def network(forward: Callable[..., Any], **modules: nn.Module | Tensor) -> nn.Module:
    """A module `Net` with these submodules, parameters and buffers; `forward` takes it and the images."""
    return type("Net", (nn.Module,), {"__init__": lambda self: _fill(self, modules), "forward": forward})()


def _fill(module: nn.Module, parts: dict[str, nn.Module | Tensor]) -> None:
    nn.Module.__init__(module)
    for name, part in parts.items():
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            module.register_buffer(name, part)
        else:
            setattr(module, name, part)


def targets(graph: LayerGraph) -> list[str]:
    return [step.target for step in graph.steps]


def generated(traced: Traced) -> nn.Module:
    """The network of the file that is written of a traced model, with the model's weights."""
    source = render(traced.graph)
    assert parse(source) == traced.graph
    network = instantiate(source, "net.py")
    checks.share_weights(network, traced.state)
    return network


def check_same(model: nn.Module, *shapes: tuple[int, ...], same_in_training: bool = True) -> LayerGraph:
    """Trace a model at the first shape (N, C, H, W); its file computes the same bits at all, and in a training step at the first."""
    checks.randomise(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = trace_with_state(model, torch.empty(shapes[0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    network = generated(traced)
    first, *others = shapes
    assert checks.identical_in_eval(model, network, [first, (first[0] + 1, *first[1:]), *others])
    if same_in_training:
        assert checks.identical_in_training(model, network, traced.names, first) == []
    return traced.graph
