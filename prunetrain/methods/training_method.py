"""One interface for the methods that act while a network trains, so that the loop need not know them.

    backward -> after_backward_ (gradients) -> optimizer -> after_step_ (weights) ... end of an epoch -> after_epoch_

A method's state consists of tensors with the shapes of weights, by the weight's name in the state dict, and of numbers. So a checkpoint can
hold it, and a cut gathers it by the same sources as the optimizer's state.
"""

from collections.abc import Mapping
from typing import Final, TypedDict

from torch import Tensor
from torch.optim import Optimizer

from prunetrain.channels.sources import Source

KEEP: Final = "keep"
"""The kind of tensors that hold masks: true where a weight stays."""

IMPORTANCE: Final = "importance"
"""The kind of tensors that hold sums of squares, one for each channel of a layer."""

EARLY: Final = "early"
"""The kind of tensors that hold the weights to rewind to."""


class MethodState(TypedDict):
    """A method's state: `tensors[kind][weight]`, and numbers by name. It loads with `weights_only=True`."""

    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, float]


def empty_method_state() -> MethodState:
    """Return the state of a method that keeps nothing."""
    return {"tensors": {}, "numbers": {}}


class TrainingMethod:
    """A method that acts while a network trains, in place on the parameters that it was made with. This base class does nothing."""

    def after_backward_(self, loss: Tensor) -> None:
        """Change the gradients, which are complete and unscaled; `loss` is the batch's loss, detached."""

    def after_step_(self, optimizer: Optimizer, skipped: Tensor | None = None) -> None:
        """Change the weights.

        Args:
            optimizer: the optimizer that has just stepped.
            skipped: a single bool on the weights' device: whether the step was skipped because of overflows, in which case whatever depends
                on the step must be skipped too; None if steps are never skipped.
        """

    def after_epoch_(self, epoch: int) -> None:
        """Change the weights or the state, after `epoch` epochs."""

    def metrics(self) -> dict[str, float]:
        """The metrics to record for the epoch, by name."""
        return {}

    def state_dict(self) -> MethodState:
        """All that `load_state_dict` needs to continue; the tensors are not copies."""
        return empty_method_state()

    def load_state_dict(self, state: MethodState) -> None:
        """Continue from a state."""


def cut_state(state: MethodState, sources: Mapping[str, Source]) -> MethodState:
    """Return a method's state for the smaller network.

    Args:
        state: the method's state for the larger network; unchanged.
        sources: where the smaller network's tensors come from (`channels/slicing.py`).
    """
    tensors = {
        kind: {name: source.gather(kept[source.name]) for name, source in sources.items() if source.name in kept}
        for kind, kept in state["tensors"].items()
    }
    return {"tensors": tensors, "numbers": dict(state["numbers"])}
