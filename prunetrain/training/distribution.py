"""The processes that train one model together, or the only one. All must decide the same, so rank 0 has the last word."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from prunetrain.errors import OutputError, PruneTrainError


@dataclass(frozen=True)
class Ranks:
    """A process group, or None for one process alone."""

    group: ProcessGroup | None = None

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return 1 if self.group is None else self.group.size()

    def mean(self, number: float, device: torch.device) -> float:
        """The mean of a number that each rank has its own of."""
        if self.group is None:
            return number
        total = torch.tensor(number, dtype=torch.float32, device=device)
        distributed.all_reduce(total, group=self.group)
        return float(total) / self.group.size()

    def share_(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of rank 0. BatchNorm's statistics are those of each rank's own batches, and rounding may differ."""
        if self.group is None:
            return
        for tensor in tensors:
            values = tensor.detach().contiguous()
            distributed.broadcast(values, group=self.group, group_src=0)
            tensor.detach().copy_(values)

    def on_first(self, action: Callable[[], None]) -> None:
        """Do something on rank 0 only; the others wait for it, and fail as it does.

        Raises:
            PruneTrainError: what the action raised on rank 0; on the others an OutputError that says the same.
        """
        if self.group is None:
            action()
            return
        failure: PruneTrainError | None = None
        if self.group.rank() == 0:
            try:
                action()
            except PruneTrainError as error:
                failure = error
        message = [str(failure) if failure else None]
        distributed.broadcast_object_list(message, group=self.group, group_src=0)
        if message[0] is not None:
            raise failure or OutputError(message[0])
