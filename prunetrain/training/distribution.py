"""Communication between the processes that train one model together, which may be just one.

In: each process's own value. Out: the same value on all of them. Every method is collective: all ranks call it, in the same order. A
single process sends nothing. All ranks must decide alike, so rank 0 has the last word.
"""

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup, Work
from torch.nn.parallel import DistributedDataParallel

from prunetrain.errors import PruneTrainError, WorkerError

_Value = TypeVar("_Value")

KEEPALIVE_SECONDS: Final = 300.0
"""Seconds between two keepalive messages of a rank that the others wait for: well under `TIMEOUT` of `joining.py`."""


@dataclass(frozen=True)
class Ranks:
    """A process group, or None for a single process."""

    group: ProcessGroup | None = None

    @classmethod
    def joined(cls) -> "Ranks":
        """The processes that this one has joined (`joining.join`), or itself alone."""
        return cls(distributed.group.WORLD) if distributed.is_available() and distributed.is_initialized() else cls()

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return 0 if self.group is None else self.group.rank()

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return 1 if self.group is None else self.group.size()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace each rank's tensor by the sum over the ranks, and return it."""
        if self.group is not None:
            distributed.all_reduce(tensor, group=self.group)
        return tensor

    def mean(self, number: float, device: torch.device) -> float:
        """The mean of the ranks' numbers."""
        if self.group is None:
            return number
        return float(self.sum_(torch.tensor(number, dtype=torch.float64, device=device))) / self.world_size

    def all_agree(self, wish: bool, device: torch.device) -> bool:
        """Whether all ranks wish for something that they must do alike."""
        return self.mean(float(wish), device) == 1

    def gather(self, value: _Value) -> list[_Value]:
        """Every rank's value, by rank. For small values only: they are pickled."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: _Value) -> _Value:
        """The value of rank 0. For small values only: it is pickled."""
        if self.group is None:
            return value
        values = [value]
        distributed.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of rank 0: each rank's BatchNorm statistics come from its own batches, and rounding may differ.

        Tensors on a device for which the group has no backend, such as CPU tensors with NCCL alone, are not changed.
        """
        if self.group is None:
            return
        devices = {pair.partition(":")[0] for pair in distributed.get_backend_config(self.group).split(",")}
        for tensor in tensors:
            if tensor.device.type not in devices:
                continue
            values = tensor.detach().contiguous()
            distributed.broadcast(values, group=self.group, group_src=0)
            tensor.detach().copy_(values)

    def on_rank_zero(self, action: Callable[[], _Value]) -> _Value:
        """Run an action on rank 0 only; the others wait for its pickled result, however long it takes, and fail as it does.

        The action must not communicate with other ranks.

        Raises:
            PruneTrainError: what the action raised on rank 0.
        """
        if self.group is None:
            return action()
        done: tuple[_Value | None, PruneTrainError | None] | None = None
        if self.rank == 0:
            with self._keepalive():
                try:
                    done = (action(), None)
                except PruneTrainError as error:
                    done = (None, error)
            done = self.broadcast(done)
        else:
            while done is None:
                done = self.broadcast(None)
        assert done is not None
        value, failure = done
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]  # only a failure leaves it None

    @contextmanager
    def _keepalive(self) -> Iterator[None]:
        """Send the others, which wait in `broadcast`, a None now and then, so that they do not take this rank for lost."""
        done = threading.Event()
        gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

        def send_keepalives() -> None:
            if gpu is not None:  # a new thread starts on the first GPU, and NCCL would send from there
                torch.cuda.set_device(gpu)
            with suppress(RuntimeError):  # another rank is lost: the next exchange reports it
                while not done.wait(KEEPALIVE_SECONDS):
                    self.broadcast(None)

        thread = threading.Thread(target=send_keepalives, name="keepalive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def check_same(self, what: str, value: str) -> None:
        """Check that all ranks have the same value of `what`.

        Raises:
            WorkerError: if they do not; the message says which rank differs.
        """
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise WorkerError(f"worker {rank} does not have worker 0's {what}: give all machines the same files, settings and version")

    def parallel(self, model: nn.Module, *, static_graph: bool) -> nn.Module:
        """Wrap the model in DistributedDataParallel, which averages every gradient over the ranks; a single process gets the model itself.

        BatchNorm's statistics stay each rank's own.

        Args:
            model: on its device, with the same weights on every rank.
            static_graph: whether torch may rearrange its buckets into the order in which gradients arrive, which is faster. Without it the
                layout depends only on the network, so that a resumed run adds gradients in the same order as any other.
        """
        if self.world_size == 1:
            return model
        device = next(model.parameters()).device
        newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        unsynced: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=self.group,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
            find_unused_parameters=not static_graph,
            **unsynced,
        )

    def sum_with_gradient(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the ranks, for autograd: its gradient is the sum of all ranks' gradients."""
        return tensor if self.group is None else _AllReduceSum.apply(tensor, self.group)


class _AllReduceSum(torch.autograd.Function):
    """All-reduce in both directions. L = L_0(s) + L_1(s) + ... with s = x_0 + x_1 + ..., so dL/dx_r = the sum of all dL_q/ds."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        distributed.all_reduce(total, group=ctx.group)
        return total, None


class StepAgreement:
    """What all ranks do after a step: the largest of their wishes, known one step later.

    Each rank's wish is a whole number on the CPU, so that nothing waits for a GPU. Since the answer is read a step later, no rank waits
    for another here longer than it does in the exchange of gradients. A single process gets its own wish at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._group = ranks.group
        self._pending: tuple[Work, Tensor] | None = None

    def after_step(self, wish: int) -> int:
        """Submit this rank's wish; return what all wished for after the previous step, or 0 if there was none."""
        if self._group is None:
            return wish
        agreed = self.wait()
        number = torch.tensor(wish)
        work = distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = (work, number)
        return agreed

    def wait(self) -> int:
        """Return what all wished for after the last step; 0 if that was returned before."""
        if self._pending is None:
            return 0
        work, number = self._pending
        work.wait()
        self._pending = None
        return int(number)
