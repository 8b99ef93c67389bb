"""The group lasso on the weights that an optimizer trains, each at its own learning rate."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunetrain.channels.slices import sliced_layers
from prunetrain.channels.spaces import find_spaces
from prunetrain.errors import ConfigError
from prunetrain.library.network import Network
from prunetrain.library.undisturbed import undisturbed
from prunetrain.regularizers.group_lasso import GroupLasso, proximal_step_size


class Penalty:
    """A `GroupLasso` that follows the optimizer: weights that are frozen or in none of its groups are not penalised until they are trained.

    Args:
        network: the network whose weights are penalised.
        optimizer: over some or all of them.
        groups: "slices" or "coupled".
        kernels: whether the lasso may use kernels (`GroupLasso.use_kernels`).
    """

    def __init__(self, network: Network, optimizer: Optimizer, groups: str, *, kernels: bool) -> None:
        self._graph = network.graph
        self._spaces = find_spaces(network.graph)
        self._optimizer = optimizer
        self._groups = groups
        self._kernels = kernels
        self._parameters = network.parameters()
        weights = {layer.name: self._parameters.get(f"{layer.name}.weight") for layer in sliced_layers(network.graph)}
        self._layer_of = {weight: name for name, weight in weights.items() if weight is not None}
        self._lasso: GroupLasso | None = None
        self._key: tuple[tuple[str, ...], set[torch.device]] = ((), set())

    def value(self) -> float:
        """R, the penalty without lambda."""
        return float(self._current_lasso().penalty())

    def strength_for(self, ratio: float, loss: float) -> float:
        """The lambda at which the penalty is this share of the total loss; 0 if there is nothing to penalise."""
        return self._current_lasso().strength_for(ratio, loss)

    def add_gradient_(self, strength: float, *, scale: Tensor | None = None) -> None:
        """Add the gradient of strength * R to every trained weight's `.grad`; `scale` as in `GroupLasso.add_gradient_`."""
        self._current_lasso().add_gradient_(strength, scale=scale)

    def shrink_(self, strength: float, *, unless: Tensor | None = None) -> None:
        """Make the proximal step of the optimizer step just made; `unless` as in `GroupLasso.shrink_`."""
        sizes = {self._layer_of[weight]: size for weight, size in self._proximal_step_sizes().items()}
        self._current_lasso().shrink_({layer: strength * size for layer, size in sizes.items()}, unless=unless)

    def _trained_weights(self) -> dict[str, nn.Parameter]:
        """The weights with channels that the optimizer trains now, under the graph's names."""
        return {f"{self._layer_of[weight]}.weight": weight for weight in self._proximal_step_sizes()}

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that the optimizer trains now, under the graph's names."""
        trained = {parameter for group in self._optimizer.param_groups for parameter in group["params"] if parameter.requires_grad}
        return {name: parameter for name, parameter in self._parameters.items() if parameter in trained}

    def _proximal_step_sizes(self) -> dict[nn.Parameter, float]:
        """The weights that the optimizer trains, and how far the proximal step moves each norm at a lambda of 1."""
        sizes: dict[nn.Parameter, float] = {}
        for group in self._optimizer.param_groups:
            size = proximal_step_size(self._optimizer, group)
            sizes.update({weight: size for weight in group["params"] if weight in self._layer_of and weight.requires_grad})
        return sizes

    def _current_lasso(self) -> GroupLasso:
        """The lasso over the weights that are trained now, on the device that they are on now.

        Raises:
            ConfigError: if they are on several devices.
        """
        weights = self._trained_weights()
        key = (tuple(weights), {weight.device for weight in weights.values()})
        if self._lasso is None or key != self._key:
            if len(key[1]) > 1:
                raise ConfigError("the model's weights are on several devices: put them on one")
            with undisturbed():
                self._lasso = GroupLasso(self._graph, self._spaces, weights, groups=self._groups)
                if self._kernels:
                    self._lasso.use_kernels()
                self._key = key
        return self._lasso
