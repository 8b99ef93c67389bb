"""Where retraining starts after pruning: which weights, which optimizer state, and which part of the learning-rate schedule.

    finetune        weights as pruned, on at the schedule's last learning rate                  Han et al., 2015, arXiv 1506.02626
    lr-rewind       weights as pruned, the schedule again from epoch k                         Renda et al., 2020, arXiv 2003.02389
    weight-rewind   weights and optimizer of epoch k, the schedule again from there                Frankle et al., 2019, arXiv 1903.01611
    init-rewind     weights of epoch 0, all of the schedule (the lottery ticket)               Frankle and Carbin, 2019, arXiv 1803.03635

In: a snapshot of the trained network, one of epoch k. Out: a `Restart`. Masks or a cut are applied to it as they are to any network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from prunetrain.channels.slicing import slice_optimizer_state
from prunetrain.channels.sources import Source
from prunetrain.errors import ConfigError, unknown_name
from prunetrain.methods.masks import Masks

RETRAINING: Final = ("finetune", "init-rewind", "lr-rewind", "weight-rewind")


@dataclass(frozen=True)
class Snapshot:
    """A network at the end of an epoch (0: before the first): state dict; the optimizer's state dict, if any; and its parameters' names."""

    epoch: int
    state: Mapping[str, Tensor]
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    parameters: Sequence[str] = ()

    def masked(self, masks: Masks) -> "Snapshot":
        """With zeros where weights go; `HeldMasks` sees to the optimizer."""
        return Snapshot(self.epoch, masks.applied(self.state), self.optimizer, self.parameters)

    def cut(self, sources: Mapping[str, Source], parameters: Sequence[str]) -> "Snapshot":
        """Of a smaller network.

        Args:
            sources: where its tensors came from.
            parameters: the names of its parameters in its order.
        """
        state = {name: source.gather(self.state[source.name]) for name, source in sources.items()}
        if not self.optimizer:
            return Snapshot(self.epoch, state, {}, parameters)
        shapes = {name: self.state[name].shape for name in self.parameters}
        return Snapshot(self.epoch, state, slice_optimizer_state(self.optimizer, self.parameters, parameters, sources, shapes), parameters)


@dataclass(frozen=True)
class Restart:
    """What retraining starts from. `schedule[i]` is the epoch, from 0, whose learning rate retraining's epoch i has.

    Where `snapshot` has no optimizer state a new optimizer starts.
    """

    snapshot: Snapshot
    schedule: tuple[int, ...]


def check_rewind(kind: str, epoch: int, total: int) -> None:
    """Refuse a rewinding that cannot be.

    Args:
        kind: one of `RETRAINING`.
        epoch: how many epochs of training the rewound network has seen.
        total: epochs of the schedule.

    Raises:
        ConfigError: for an unknown kind, or an epoch that does not lie in the schedule or is not the kind's.
    """
    if kind not in RETRAINING:
        raise ConfigError(unknown_name("retraining", kind, RETRAINING))
    if kind in ("lr-rewind", "weight-rewind") and not 0 <= epoch < total:
        raise ConfigError(f"{kind} needs a rewind-epoch from 0 to {total - 1}, as the run had {total} epochs, not {epoch}")


def restart(kind: str, *, last: Snapshot, early: Snapshot, total: int, epochs: int) -> Restart:
    """Where retraining starts.

    Args:
        kind: one of `RETRAINING`.
        last: the trained network.
        early: the network of the epoch to rewind to; finetune looks at none of it, lr-rewind at its epoch only.
        total: epochs of the schedule that `last` was trained by.
        epochs: how long to fine-tune; the other kinds train as long as the schedule lasts.

    Raises:
        ConfigError: for what `check_rewind` refuses, and for init-rewind to another epoch than 0.
    """
    check_rewind(kind, early.epoch, total)
    match kind:
        case "finetune":
            return Restart(_fresh(last), (total - 1,) * epochs)
        case "lr-rewind":
            return Restart(_fresh(last), tuple(range(early.epoch, total)))
        case "init-rewind" if early.epoch != 0:
            raise ConfigError(f"init-rewind goes back to epoch 0, not {early.epoch}: use weight-rewind for that")
    return Restart(early, tuple(range(early.epoch, total)))


def _fresh(snapshot: Snapshot) -> Snapshot:
    """Without the optimizer's state, whose momentum is of weights that are gone."""
    return Snapshot(snapshot.epoch, snapshot.state)
