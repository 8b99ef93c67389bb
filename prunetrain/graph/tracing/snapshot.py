"""Undo whatever a model's forward passes, or its own train(), set in its modules or put into their dicts and lists.

In: a model. Out: a `Snapshot`, taken once and restored after every pass.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunetrain.graph.tracing.places import place_of_error, summary_of_error


class Snapshot:
    """The attributes of all modules of a model, with containers copied at every depth.

    Tensors are copied only if the model has a train() of its own, which may merge weights or freeze them; buffers also if `buffers` is set,
    as a forward pass on real images changes running statistics.
    """

    def __init__(self, model: nn.Module, *, buffers: bool = False) -> None:
        self._model = model
        self._before = [(module, _copy_container(module.__dict__)) for module in model.modules()]
        own_train = any(map(_has_own_train, model.modules()))
        tensors = [*(model.parameters() if own_train else ()), *(model.buffers() if own_train or buffers else ())]
        self._tensors = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors]

    @contextmanager
    def in_mode(self, *, training: bool) -> Iterator[None]:
        """Put the model in train or eval mode by its own train(), and restore it afterwards.

        Raises:
            TraceError: if train() fails.
        """
        try:
            self._switch(training)
            yield
        finally:
            for module, attributes in self._before:
                _restore_container(module.__dict__, attributes)
            for tensor, numbers, requires_grad in self._tensors:
                _restore_tensor_(tensor, numbers, requires_grad)

    def _switch(self, training: bool) -> None:
        try:
            self._model.train(training)
        except Exception as error:  # whatever the model's own code raises
            name = type(self._model).__name__
            raise place_of_error(error).error(f"{name} cannot be traced: train({training}) fails: {summary_of_error(error)}") from error


def _has_own_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or "train" in vars(module)


def _restore_tensor_(tensor: Tensor, numbers: Tensor, requires_grad: bool) -> None:
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)
    if not tensor.is_meta and not torch.equal(tensor, numbers):
        with torch.no_grad():
            tensor.copy_(numbers)


def _copy_container(value: Any) -> Any:
    """Return a container and its content, or any other value and None."""
    if type(value) in (dict, OrderedDict):
        return value, {key: _copy_container(item) for key, item in value.items()}
    return (value, list(value)) if type(value) in (list, set) else (value, None)


def _restore_container(container: Any, before: Any) -> None:
    _, content = before
    container.clear()
    if isinstance(container, dict):
        for key, (item, inside) in content.items():
            container[key] = item
            if inside is not None and (inside or item):  # most are the empty dicts of hooks
                _restore_container(item, (item, inside))
    else:
        (container.update if isinstance(container, set) else container.extend)(content)
