"""Random weight pruning: a baseline, and the fixed masks of sparse training from scratch.

In: the shapes of weights, a seed. Out: `Masks`. Every layer draws from its own generator, so that its mask does not depend on the others.
"""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.magnitude import masks_by_score
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options
from prunetrain.methods.weights import maskable_weights


def random_weights(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> Masks:
    """Return masks that remove floor(rate * n) weights at random, in every layer or over all layers together."""
    scores = {name: draw(weight.numel(), options.seed, name).view(weight.shape) for name, weight in maskable_weights(graph, state).items()}
    return masks_by_score(scores, rate, options)


def draw(count: int, seed: int, name: str) -> Tensor:
    """Draw numbers in [0, 1) from a seed and a name, (count,) float64 on the CPU."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))  # torch's CPU generator uses 32 bits of a seed
    return torch.rand(count, generator=generator, dtype=torch.float64)
