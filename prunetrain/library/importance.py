"""The importance of channels, gathered at the optimizer steps of your own training loop.

In: a network, and the calls of `optimizer.step()`. Out: the Taylor importance of its channels (`methods.taylor`), from the gradients that
each step trains with.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.optim import Optimizer

from prunetrain.channels.sources import Source
from prunetrain.config import TAYLOR
from prunetrain.library.network import Network
from prunetrain.library.settings import Settings
from prunetrain.methods.taylor import TaylorImportance
from prunetrain.methods.training_method import MethodState, cut_state

Args: TypeAlias = tuple[Any, ...]  # of optimizer.step(), the optimizer first
Kwargs: TypeAlias = dict[str, Any]


class StepImportance:
    """Taylor importance, gathered once at each optimizer step.

    Args:
        network: the network in training.
        state: what `state_dict` returned, to continue from; None begins at zero.

    Raises:
        ValueError: for a state that is not of this network.
    """

    def __init__(self, network: Network, state: MethodState | None = None) -> None:
        self._taylor = TaylorImportance(network.graph, network.parameters())
        if state is not None:
            self._taylor.load_state_dict(state)
        self._gathered = False  # for the next step, by `gather_`

    @classmethod
    def wanted(cls, network: Network, settings: Settings, state: MethodState | None = None) -> "StepImportance | None":
        """The importance of a network's channels, or None if the settings rank them by their norms."""
        return cls(network, state) if settings.importance == TAYLOR else None

    def gather_(self, scale: Tensor | None) -> None:
        """Gather now what the next step would, before something other than the loss adds to the gradients.

        Args:
            scale: what the gradients are multiplied by (a GradScaler's factor), a scalar on their device; None stands for one.
        """
        self._taylor.gather_(scale=scale)
        self._gathered = True

    def before_step(self, optimizer: Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Gather from the gradients, or have it done when the step's closure has computed them.

        Returns:
            The arguments to make the step with; None for those given.
        """
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._gathering(args[1]), *args[2:]), kwargs
        if callable(closure := kwargs.get("closure")):
            return args, kwargs | {"closure": self._gathering(closure)}
        self._gather(getattr(optimizer, "grad_scale", None))  # a fused optimizer is given the gradients as they are, with the scale
        return None

    def after_step(self) -> None:
        """Expect the next step's gradients."""
        self._gathered = False

    def take(self) -> npt.NDArray[np.float64]:
        """The importance of every channel (`ChannelSpaces.ids`), gathered since the last call."""
        importance = self._taylor.of_channels()
        self._taylor.reset_()
        return importance

    def cut(self, network: Network, sources: Mapping[str, Source]) -> "StepImportance":
        """Return the same for the smaller network, whose tensors come from `sources`; this one does not change."""
        return StepImportance(network, cut_state(self.state_dict(), sources))

    def state_dict(self) -> MethodState:
        """What has been gathered, to save with a checkpoint."""
        return self._taylor.state_dict()

    def _gathering(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, gathering from the gradients that it leaves."""

        def gathering() -> Any:
            loss = closure()
            self._gather(None)
            return loss

        return gathering

    def _gather(self, scale: Tensor | None) -> None:
        """Gather, unless `gather_` has."""
        if not self._gathered:
            self._taylor.gather_(scale=scale)
