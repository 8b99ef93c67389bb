"""What acts in a training step: one interface for the methods that work while a network trains, so that the loop need not know them.

    backward -> after_backward_ (gradients) -> optimizer -> after_step_ (weights) ... end of an epoch -> after_epoch_

What a method keeps is tensors shaped like weights, by the weight's name in the state dict, and numbers. So a checkpoint can hold it, and a
cut gathers it by the same sources as everything an optimizer keeps.
"""

from collections.abc import Mapping
from typing import Final, TypedDict

from torch import Tensor
from torch.optim import Optimizer

from prunetrain.channels.sources import Source

KEEP: Final = "keep"
"""The kind of tensors that are masks: true where a weight stays."""

EARLY: Final = "early"
"""The kind of tensors that are the weights to go back to."""


class MethodState(TypedDict):
    """What a method keeps: `tensors[kind][weight]`, and numbers by name. Loads with `weights_only=True`."""

    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, float]


def nothing_kept() -> MethodState:
    """The state of a method that keeps nothing."""
    return {"tensors": {}, "numbers": {}}


class TrainingMethod:
    """A method that acts while a network trains, on the parameters that it was made with, in place. By itself it does nothing."""

    def after_backward_(self, loss: Tensor) -> None:
        """Change the gradients, which are there and unscaled; `loss` is the batch's, detached."""

    def after_step_(self, optimizer: Optimizer, skipped: Tensor | None = None) -> None:
        """Change the weights.

        Args:
            optimizer: what has just stepped.
            skipped: a single truth value on their device: whether the step was skipped for its overflows, so that what acts on its account
                must not; None where no step can be.
        """

    def after_epoch_(self, epoch: int) -> None:
        """Change weights or what is kept, once `epoch` epochs are done."""

    def metrics(self) -> dict[str, float]:
        """What is worth a place in the epoch's line of metrics, by name."""
        return {}

    def state_dict(self) -> MethodState:
        """All that `load_state_dict` needs to go on; the tensors are those that are kept, not copies."""
        return nothing_kept()

    def load_state_dict(self, state: MethodState) -> None:
        """Go on from a state."""


def cut_state(state: MethodState, sources: Mapping[str, Source]) -> MethodState:
    """What a method of the smaller network goes on from.

    Args:
        state: of the larger network's method; unchanged.
        sources: where the smaller network's tensors came from (`channels/slicing.py`).
    """
    tensors = {
        kind: {name: source.gather(kept[source.name]) for name, source in sources.items() if source.name in kept}
        for kind, kept in state["tensors"].items()
    }
    return {"tensors": tensors, "numbers": dict(state["numbers"])}
