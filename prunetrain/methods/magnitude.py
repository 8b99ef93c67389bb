"""Magnitude pruning: the weights with the smallest absolute values go.

Han, Pool, Tran and Dally, "Learning both weights and connections for efficient neural networks", 2015, arXiv 1506.02626. In: weights. Out:
`Masks`. There are three ways to set the threshold: the percentile of a layer (`scope="layer"`) or of the whole network (`"global"`) that
makes the rate exact, or quality * standard deviation of the layer, as published (`magnitude_std`).

`torch.nn.utils.prune` has the first two with other rounding (`counting.py`), and renames parameters, which network files do not allow.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.counting import removed_count, smallest_mask
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options
from prunetrain.methods.structured import structured_masks
from prunetrain.methods.weights import layer_of, maskable_weights

_REMOVED_SCORE = -1.0  # below every absolute value, so that weights removed in an earlier round go first


def magnitude(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> Masks:
    """Return masks that remove floor(rate * n) of the n weights of every layer, or of all layers together.

    Layers with a rate of their own are pruned separately. With `structure` "filters" or "channels", whole slices go (`structured.py`).
    """
    if options.structure != "weights":
        return structured_masks(graph, state, rate, options)
    scores = {name: _scores(weight, name, options.earlier) for name, weight in maskable_weights(graph, state).items()}
    return masks_by_score(scores, rate, options)


def masks_by_score(scores: Mapping[str, Tensor], rate: float, options: Options) -> Masks:
    """Return masks that remove the weights with the smallest scores, in each layer or in all without a rate of their own together.

    Args:
        scores: for each weight by name, with its shape.
        rate: share to remove, in [0, 1).
        options: only `scope` and `layer_rates` are read.
    """
    alone = {name: options.layer_rates.get(layer_of(name), rate) for name in scores}
    together = [name for name in scores if options.scope == "global" and layer_of(name) not in options.layer_rates]
    keep = {name: _keep_mask(scores[name], share) for name, share in alone.items() if name not in together}
    if together:
        joined = _keep_mask(torch.cat([scores[name].flatten() for name in together]), rate)
        parts = torch.split(joined, [scores[name].numel() for name in together])
        keep |= {name: part.view(scores[name].shape) for name, part in zip(together, parts, strict=True)}
    return Masks({name: keep[name] for name in scores})


def _scores(weight: Tensor, name: str, earlier: Masks | None) -> Tensor:
    scores = weight.abs()
    if earlier is None or name not in earlier.keep:
        return scores
    return scores.masked_fill(~earlier.keep[name].to(weight.device), _REMOVED_SCORE)


def _keep_mask(scores: Tensor, rate: float) -> Tensor:
    gone = smallest_mask(scores.flatten(), removed_count(scores.numel(), rate))
    return ~gone.view(scores.shape)


def magnitude_std(graph: LayerGraph, state: Mapping[str, Tensor], quality: float, options: Options) -> Masks:
    """Return masks that remove the weights of each layer under quality * standard deviation of its weights.

    After an earlier round, only the remaining weights enter the standard deviation (n in the denominator, about the mean). Layers with a
    rate of 0 stay as they are.

    Raises:
        ConfigError: for a layer rate other than 0, which a threshold cannot guarantee.
    """
    if any(options.layer_rates.values()):
        raise ConfigError("magnitude-std finds its own rates: the only layer rate that you can give is 0, which leaves the layer alone")
    keep = {}
    for name, weight in maskable_weights(graph, state).items():
        there = torch.ones_like(weight, dtype=torch.bool)
        if options.earlier is not None and name in options.earlier.keep:
            there = options.earlier.keep[name].to(weight.device)
        limit = quality * weight[there].std(correction=0) if bool(there.any()) else 0
        keep[name] = there if layer_of(name) in options.layer_rates else there & (weight.abs() >= limit)
    return Masks(keep)
