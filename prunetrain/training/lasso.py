"""The group lasso and the fading of channels in a run's training steps.

In: a run at some step of an epoch. Out: its gradients or weights changed, and lambda at the first batch.

The proximal step reads and writes every weight, whatever the batch. So it is taken only every `proximal_interval` steps and at the end of
every epoch, as large as the steps since the last one together (ProxSkip, arXiv 2202.09357, takes the proximal step in one of 1 / p steps,
1 / p times as large). Channels fade linearly at the same steps, and towards the end at every step: their weights would grow back in
between, and the cut must remove next to nothing. Which steps these are depends only on the step's number, so a resumed run takes the same
ones. If float16 skips such a step because of an overflow, its proximal step is lost, but not its fading, which must reach zero in time.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.optim import Optimizer

from prunetrain.channels.spaces import find_spaces
from prunetrain.methods.training_method import TrainingMethod
from prunetrain.regularizers.fading import Fading
from prunetrain.regularizers.fused_layers import kernels_work
from prunetrain.regularizers.group_lasso import GroupLasso, proximal_step_size
from prunetrain.training.lasso_schedule import interval_start
from prunetrain.training.state import TrainState, trained_parameters

_SMOOTH = 16  # a step fades at most 1 / _SMOOTH of what is left, as long as there are enough steps


class LassoMethod(TrainingMethod):
    """The group lasso as a `TrainingMethod`, for the rest of an epoch.

    Args:
        state: the run, before its next step; lambda is set at its very first batch.
        lasso: the group lasso of its network.
        steps: number of steps in the whole epoch.
    """

    def __init__(self, state: TrainState, lasso: GroupLasso, steps: int) -> None:
        self._state = state
        self._lasso = lasso
        self._steps = steps
        self._done = state.progress.step
        self._steps_to_cut = _epochs_to_cut(state) * steps
        channels = state.progress.fading
        weights = trained_parameters(state.model)
        self._fading = Fading(state.graph, find_spaces(state.graph), weights, channels) if channels else None
        if state.environment.ranks.all_agree(kernels_work(state.device), state.device):  # or weights would drift apart
            lasso.use_kernels()

    def after_backward_(self, loss: Tensor) -> None:
        """Set lambda, if this is the first batch whose loss is finite; add the gradient."""
        state = self._state
        if state.progress.lasso_strength != 0.0:
            state.run_method.method.after_backward_(loss)
        if state.progress.lasso_strength is None:
            mean = state.environment.ranks.mean(float(loss), state.device)
            if not math.isfinite(mean):  # an overflow of float16, whose step is skipped
                return
            ratio = state.config.penalty_ratio  # as lambda of a lasso without groups, it acts on nothing, and the run still fades
            strength = self._lasso.strength_for(ratio, mean) if self._lasso.has_groups else ratio
            state.progress = replace(state.progress, lasso_strength=strength)
        if state.config.lasso_step == "subgradient":
            self._lasso.add_gradient_(self._strength)

    def after_step_(self, optimizer: Optimizer, skipped: Tensor | None = None) -> None:
        """Shrink the groups and the fading channels, if this step is one for it."""
        self._done += 1
        if self._state.config.lasso_step == "proximal" and self._shrinks(self._done):
            amount = self._strength * proximal_step_size(optimizer, optimizer.param_groups[0])
            self._lasso.shrink_(amount * self._steps_since(self._shrinks), unless=skipped)
        if self._fading and self._fades(self._done):  # linearly, to zero at the last step
            left = self._steps_to_cut - self._done
            self._fading.scale_(left / (left + self._steps_since(self._fades)))

    def _shrinks(self, step: int) -> bool:
        """Whether the proximal step follows a step of the epoch."""
        return step % self._state.config.proximal_interval == 0 or step == self._steps

    def _fades(self, step: int) -> bool:
        """Whether fading follows a step of the epoch."""
        return self._shrinks(step) or self._steps_to_cut - step < _SMOOTH * self._state.config.proximal_interval

    def _steps_since(self, acts: Callable[[int], bool]) -> int:
        """Steps since the last one after which `acts` was true; since the epoch's start if there is none."""
        return next(count for count in range(1, self._done + 1) if count == self._done or acts(self._done - count))

    @property
    def _strength(self) -> float:
        """Lambda."""
        return self._state.progress.lasso_strength or 0.0


def _epochs_to_cut(state: TrainState) -> int:
    """Epochs from the start of this one to the next reconfiguration."""
    config, epoch = state.config, state.progress.epoch
    return min(config.epochs, interval_start(config, epoch) + config.prune_interval) - epoch
