"""Trial steps: a network with random weights is trained as a run would train it, to see what a step takes. The run stays as it is."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.training.optimizers import build_optimizer
from prunetrain.training.outputs import loss_of
from prunetrain.training.state import TrainState

_LR = 1e-6  # keeps the random weights about where they are


class TrialStep:
    """Training steps of a network on blank images: the run's precision, memory format and kind of optimizer, without lasso and DDP.

    Args:
        state: the run, for its settings and device.
        graph: the network.
    """

    def __init__(self, state: TrainState, graph: LayerGraph) -> None:
        self._state = state
        self._shape = graph.input_shape
        with torch.device(state.device):
            self._model: nn.Module = instantiate(render(graph), "<candidate>").train()
        if state.config.channels_last:
            _to_channels_last_(self._model)
        self._optimizer = build_optimizer(self._model.parameters(), replace(state.config, lr=_LR))

    def run(self, batch_size: int) -> None:
        """One step on so many images."""
        images = self._state.to_memory_format(torch.zeros(batch_size, *self._shape, device=self._state.device))
        labels = torch.zeros(batch_size, dtype=torch.int64, device=self._state.device)
        with self._state.autocast():
            loss = loss_of(self._model(images), labels, aux_weight=self._state.config.aux_weight)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _to_channels_last_(model: nn.Module) -> None:
    """What `Module.to` does, which refuses tensors without memory that were initialised in place."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
