"""Unwrap a network to prune it, and wrap the smaller one in the same way.

Wrappers are DistributedDataParallel and torch.compile around the network, in any order, and SyncBatchNorm inside it.
"""

from collections.abc import Callable
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
    """The wrappers of a network, innermost first, and the processes that DistributedDataParallel connects."""

    wraps: tuple[Wrap, ...]
    ranks: Ranks

    def __call__(self, network: nn.Module) -> nn.Module:
        """Wrap a network in the same way."""
        for wrap in self.wraps:
            network = wrap(network)
        return network


def unwrap(model: nn.Module) -> tuple[nn.Module, Wrapping]:
    """Return the network inside, and its wrapping.

    Raises:
        ConfigError: for DataParallel, whose replicas of the network a cut would not reach, and for anything but a module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{type(model).__name__} is not a torch.nn.Module")
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
    if synced is not None:  # network files have plain BatchNorm
        wraps.append(partial(nn.SyncBatchNorm.convert_sync_batchnorm, process_group=synced.process_group))
    return model, Wrapping(tuple(reversed(wraps)), ranks)


def _compiled_in_place(network: nn.Module) -> nn.Module:
    """Compile in place as `model.compile()` does, with default arguments, since torch does not keep the given ones."""
    network.compile()
    return network


def _data_parallel_like(model: DistributedDataParallel) -> Wrap:
    """Return a wrapper with the settings and hooks of this DistributedDataParallel, for networks that are on their device already."""
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
    if hasattr(model, "forward_sync_buffers"):  # newer torch calls it this
        settings["forward_sync_buffers"] = model.forward_sync_buffers
    else:
        settings["broadcast_buffers"] = model.broadcast_buffers
    hooks = list(model._comm_hooks)

    def wrap(network: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(network, **settings)
        for hook, state in hooks:
            _forget_shapes_(state)
            wrapped.register_comm_hook(state, hook)
        return wrapped

    return wrap


def _forget_shapes_(state: object) -> None:
    """Drop what PowerSGD keeps of each bucket of gradients, whose shapes a cut changes: it begins anew with the next step."""
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState  # not in builds without torch.distributed

    if isinstance(state, PowerSGDState):
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
