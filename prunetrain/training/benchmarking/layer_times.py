"""Timing single layers, forward and backward, at given sizes; each layer and size is timed once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.graph.expressions import PLAIN_CALL
from prunetrain.graph.layergraph import Layer
from prunetrain.graph.windows import Shape
from prunetrain.training.benchmarking.conditions import Conditions, preserve_rng_state
from prunetrain.training.precision import compute_type

_TRIES = 3
_PASSES_PER_WAIT = 10  # passes per wait on a GPU
_MAX_ELEMENTS = 2**20  # of the activation that is timed for all others


class LayerTimer:
    """Times layers on this machine for a batch, by the fastest of some tries, since other load can only slow a try down."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._known: dict[tuple[object, Shape], float] = {}
        self._per_element: float | None = None

    def __call__(self, layer: Layer | None, shape: Shape) -> float:
        """Seconds of a layer on an input of a shape, given for one image with a batch dimension; None is an activation function."""
        shape = (shape[0] * self._conditions.batch_size, *shape[1:])
        if layer is None:
            return self._activation(shape)
        if layer.signature.call != PLAIN_CALL:
            return 0.0  # attention, which no cut changes
        key = ((layer.kind, layer.arguments), shape)
        if key not in self._known:
            with preserve_rng_state(self._conditions.device):
                module: nn.Module = getattr(nn, layer.kind)(**dict(layer.arguments)).to(self._conditions.device)
            self._known[key] = self._fastest(self._conditions.prepare_for_training(module), shape)
        return self._known[key]

    def _activation(self, shape: Shape) -> float:
        """Seconds of an activation function, addition or pooling, all estimated as proportional to their elements from one ReLU."""
        elements = torch.Size(shape).numel()
        if self._per_element is None:
            sample = min(elements, _MAX_ELEMENTS)
            self._per_element = self._fastest(F.relu, (sample,)) / sample
        return self._per_element * elements

    def _fastest(self, function: Callable[[Tensor], Tensor], shape: Shape) -> float:
        """Seconds of forward and backward on an input of this shape, in the fastest try after one for warm-up."""
        conditions = self._conditions
        images = torch.ones(shape, device=conditions.device, dtype=compute_type(conditions.amp))
        if conditions.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        images.requires_grad_()
        together = 1 if conditions.device.type == "cpu" else _PASSES_PER_WAIT
        seconds = []
        for _ in range(_TRIES + 1):
            conditions.wait()
            start = conditions.clock()
            for _ in range(together):
                with conditions.autocast():
                    output = function(images)
                torch.autograd.backward(output, torch.ones_like(output))
            conditions.wait()
            seconds.append((conditions.clock() - start) / together)
        return min(seconds[1:])
