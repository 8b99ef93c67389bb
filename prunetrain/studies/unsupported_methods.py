"""Finding methods that cannot prune a study's network, before it is trained.

In: the settings of the network and of the prunings. Out: the methods that would fail in every cell, and why.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunetrain.config import TrainConfig, parse_arguments
from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.method_settings import ADMM, GROUP_LASSO
from prunetrain.methods.options import Options
from prunetrain.methods.registry import decide
from prunetrain.models import build
from prunetrain.models.checked_tracing import trace_and_check, with_own_storage
from prunetrain.paths import RunPaths
from prunetrain.training.data import load_data
from prunetrain.training.trained_network import read_trained_network

_OPTIONS = ("scope", "structure", "streams", "norm_share")


def find_unsupported_methods(
    run: RunPaths, config: TrainConfig, methods: Sequence[str], rate: float, pruning: Mapping[str, Any]
) -> dict[str, str]:
    """Find the methods that cannot prune a network; returns the reason for each, in one line.

    Args:
        run: the run that trains the network; it need not exist yet.
        config: the settings of that run.
        methods: names.
        rate: to prune at.
        pruning: settings for `prune`.

    Raises:
        PruneTrainError: if the network cannot be made.
    """
    found: dict[str, str] = {}
    asked = [method for method in methods if method != GROUP_LASSO]
    if not asked:
        return found
    graph, state = _network(run, config)
    rates = parse_arguments(pruning.get("layer_rates", ()), "layer-rate")
    options = Options(layer_rates=rates, **{name: pruning[name] for name in _OPTIONS if name in pruning})
    for method in asked:
        try:
            decide("magnitude" if method == ADMM else method, graph, state, rate, options)
        except ConfigError as error:
            found[method] = str(error)
    return found


def _network(run: RunPaths, config: TrainConfig) -> tuple[LayerGraph, Mapping[str, Tensor]]:
    """The network with its trained weights, or with random ones if the run does not exist yet."""
    if run.last.exists():
        trained = read_trained_network(run.last)
        return trained.graph, trained.state
    data = load_data(config, torch.device("cpu"))
    arguments = parse_arguments(config.model_args)
    model = build(config.model, input_shape=data.input_shape, num_classes=data.num_classes, model_args=arguments)
    traced = with_own_storage(trace_and_check(model, torch.zeros(2, *data.input_shape)))
    return traced.graph, traced.state
