"""ADMM pruning during training, from scratch or on a trained network; `admm_steps.py` has the formulas.

In: parameters, a projection. Out: weights that approach sparse ones while they train. At the end they are pruned for good, and `HeldMasks`
retrains.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prunetrain.methods.admm_steps import (
    AdmmState,
    Projection,
    Residuals,
    add_gradient_,
    initial_state,
    measure_residuals,
    rescale_duals,
    update_state,
)
from prunetrain.methods.training_method import MethodState, TrainingMethod


@dataclass(frozen=True, kw_only=True)
class AdmmSettings:
    """rho starts at `rho` and grows by `rho_factor` at every update up to `rho_max`; Z and U are updated every `interval` epochs.

    The ranges are those of `TrainConfig`, which checks them: 0 < rho <= rho_max, rho_factor and interval from 1.
    """

    rho: float
    rho_factor: float
    rho_max: float
    interval: int


class Admm(TrainingMethod):
    """A `TrainingMethod`: adds the gradient of rho / 2 ||W - Z + U||^2, and updates Z and U every few epochs.

    Args:
        weights: parameters by their names in the state dict.
        project: the projection onto the wanted sparsity; weights that it returns no mask for train freely.
        settings: rho and the interval.
    """

    def __init__(self, weights: Mapping[str, Tensor], project: Projection, settings: AdmmSettings) -> None:
        self._weights = weights
        self._project = project
        self._settings = settings
        self._state = initial_state(weights, project)
        self._rho = settings.rho
        self._residuals = measure_residuals(weights, self._state, self._state, settings.rho)

    def after_backward_(self, loss: Tensor) -> None:
        """Pull the weights towards Z - U."""
        add_gradient_(self._weights, self._state, self._rho)

    def after_epoch_(self, epoch: int) -> None:
        """Update Z, U and then rho at the end of an interval."""
        if epoch % self._settings.interval:
            return
        before, self._state = self._state, update_state(self._weights, self._state, self._project)
        self._residuals = measure_residuals(self._weights, before, self._state, self._rho)
        rho = min(self._settings.rho_max, self._rho * self._settings.rho_factor)
        if rho != self._rho:
            self._state = rescale_duals(self._state, rho / self._rho)
            self._rho = rho

    def metrics(self) -> dict[str, float]:
        """rho, and the residuals of the last update."""
        found = self._residuals
        return {"admm_rho": self._rho, "admm_primal": found.primal, "admm_dual": found.dual, "admm_relative": found.relative}

    def state_dict(self) -> MethodState:
        """Z, U, rho and the last residuals."""
        return {"tensors": {"z": dict(self._state.z), "u": dict(self._state.u)}, "numbers": {"rho": self._rho, **vars(self._residuals)}}

    def load_state_dict(self, state: MethodState) -> None:
        """Continue from a state.

        Raises:
            ValueError: if it belongs to other weights.
        """
        if any(state["tensors"][kind].keys() != self._state.z.keys() for kind in ("z", "u")):
            raise ValueError("Z and U belong to other weights")
        z, u = ({name: tensor.to(self._weights[name].device) for name, tensor in state["tensors"][kind].items()} for kind in ("z", "u"))
        self._state = AdmmState(z, u)
        numbers = dict(state["numbers"])
        self._rho = numbers.pop("rho")
        self._residuals = Residuals(**numbers)
