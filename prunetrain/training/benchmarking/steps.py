"""The actions that are timed: a training step, inference, and the group lasso's step, of a network with random weights on random images.

Times do not depend on the numbers, so neither trained weights nor data are needed. The learning rate is small enough that nothing diverges.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.shapes import infer_shapes
from prunetrain.regularizers.group_lasso import GroupLasso
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.compilation import compiled
from prunetrain.training.optimizers import build_optimizer
from prunetrain.training.outputs import Outputs, loss_of

_LR = 1e-6


def check_logits(graph: LayerGraph, name: str) -> None:
    """Refuse a network whose first output is not one row of logits per image, for which there is no loss to train with.

    Args:
        graph: the network.
        name: its name in the message.

    Raises:
        ConfigError: for such a network.
    """
    shape = infer_shapes(graph)[graph.output.index][1:]
    if len(shape) != 1:
        raise ConfigError(f"{name} returns {'x'.join(('N', *map(str, shape)))}: a training step needs logits of shape N x classes")


class TrainingStep:
    """Forward, backward and the fused optimizer's step, as in the training loop, without the lasso."""

    def __init__(self, graph: LayerGraph, conditions: Conditions) -> None:
        config = TrainConfig(optimizer=conditions.optimizer, lr=_LR)
        self._conditions = conditions
        self.model: nn.Module = conditions.build(graph).train()
        self._forward: Callable[[Tensor], Outputs] = compiled(self.model, conditions.compile)
        self._optimizer = build_optimizer(self.model.parameters(), config)
        self._scaler = GradScaler(conditions.device.type, enabled=conditions.amp == "float16")
        self._aux_weight = config.aux_weight
        self._images = conditions.images(graph.input_shape)
        self._labels = torch.zeros(conditions.batch_size, dtype=torch.int64, device=conditions.device)

    def __call__(self) -> None:
        """One step."""
        with self._conditions.autocast():
            loss = loss_of(self._forward(self._images), self._labels, aux_weight=self._aux_weight)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)


class Inference:
    """A forward pass in eval mode."""

    def __init__(self, graph: LayerGraph, conditions: Conditions) -> None:
        self._conditions = conditions
        model = conditions.build(graph).eval()
        self._forward: Callable[[Tensor], Outputs] = compiled(model, conditions.compile)
        self._images = conditions.images(graph.input_shape)

    @torch.inference_mode()
    def __call__(self) -> None:
        """One batch."""
        with self._conditions.autocast():
            self._forward(self._images)


class LassoStep:
    """A proximal step of the (coupled) group lasso, with almost no shrinkage; training takes one every few steps."""

    def __init__(self, graph: LayerGraph, model: nn.Module) -> None:
        self._lasso = GroupLasso(graph, find_spaces(graph), dict(model.named_parameters()), groups=TrainConfig.lasso_groups)
        self._lasso.use_kernels()

    def __call__(self) -> None:
        """One proximal step."""
        self._lasso.shrink_(1e-12)
