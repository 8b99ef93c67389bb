"""What torch makes of a network: DistributedDataParallel and torch.compile around it, in any order, SyncBatchNorm inside.

Taken off to prune, put on again after.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from prunetrain.errors import ConfigError
from prunetrain.training.distribution import Ranks

Wrap: TypeAlias = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Wrapping:
    """What was around a network, innermost first, and the processes that DistributedDataParallel connects."""

    wraps: tuple[Wrap, ...]
    ranks: Ranks

    def __call__(self, network: nn.Module) -> nn.Module:
        """The network in the same wrapping."""
        for wrap in self.wraps:
            network = wrap(network)
        return network


def unwrap(model: nn.Module) -> tuple[nn.Module, Wrapping]:
    """The network inside, and what was around it.

    Raises:
        ConfigError: for DataParallel, whose replicas of the network no cut would reach.
    """
    wraps: list[Wrap] = []
    ranks = Ranks()
    while True:
        if isinstance(model, DistributedDataParallel):
            wraps.append(_data_parallel_like(model))
            ranks = Ranks(model.process_group)
            model = model.module
        elif hasattr(model, "_orig_mod"):  # what torch.compile returns; its class would pull in the whole compiler
            wraps.append(model.dynamo_ctx)  # type: ignore[arg-type]  # the compiler with its backend and mode
            model = model._orig_mod  # type: ignore[assignment]
        else:
            break
    if isinstance(model, nn.DataParallel):
        raise ConfigError("the model is in DataParallel: give the module inside, or use DistributedDataParallel")
    if model._compiled_call_impl is not None:
        wraps.append(_compiled_in_place)
    synced = next((module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)), None)
    if synced is not None:  # a network file has BatchNorm
        wraps.append(partial(nn.SyncBatchNorm.convert_sync_batchnorm, process_group=synced.process_group))
    return model, Wrapping(tuple(reversed(wraps)), ranks)


@contextmanager
def not_compiled(network: nn.Module) -> Iterator[None]:
    """Inside, modules that were compiled in place run as they are written, so that a tracer sees what they do."""
    compiled = {module: module._compiled_call_impl for module in network.modules() if module._compiled_call_impl is not None}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


def _compiled_in_place(network: nn.Module) -> nn.Module:
    """What `model.compile()` does; torch does not keep the arguments that it was given, so these are the defaults."""
    network.compile()
    return network


def _data_parallel_like(model: DistributedDataParallel) -> Wrap:
    """DistributedDataParallel with the settings and communication hooks of another. The network is on its device already."""
    settings: dict[str, Any] = {
        name: getattr(model, name)
        for name in (
            "device_ids",
            "output_device",
            "dim",
            "process_group",
            "find_unused_parameters",
            "gradient_as_bucket_view",
            "static_graph",
        )
    }
    settings["bucket_cap_mb"] = None if model.bucket_bytes_cap_default else model.bucket_bytes_cap / 2**20
    if hasattr(model, "forward_sync_buffers"):  # newer torch has this name for it
        settings["forward_sync_buffers"] = model.forward_sync_buffers
    else:
        settings["broadcast_buffers"] = model.broadcast_buffers
    hooks = list(model._comm_hooks)

    def wrap(network: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(network, **settings)
        for hook, state in hooks:
            wrapped.register_comm_hook(state, hook)
        return wrapped

    return wrap
