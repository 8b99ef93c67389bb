"""A model as it was: whatever its forward passes set in its modules, or put into their dicts and lists, is undone.

In: a model. Out: a `Snapshot`, taken once and put back after every pass.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Snapshot:
    """The attributes of all modules of a model, containers copied all the way down; tensors are not copied."""

    def __init__(self, model: nn.Module) -> None:
        self._before = [(module, _copied(module.__dict__)) for module in model.modules()]

    @contextmanager
    def in_mode(self, *, training: bool) -> Iterator[None]:
        """The model in train or eval mode; as it was afterwards."""
        try:
            for module, _ in self._before:
                module.training = training
            yield
        finally:
            for module, attributes in self._before:
                _put_back(module.__dict__, attributes)


def _copied(value: Any) -> Any:
    """A container and its content; anything else and None."""
    if type(value) in (dict, OrderedDict):
        return value, {key: _copied(item) for key, item in value.items()}
    return (value, list(value)) if type(value) in (list, set) else (value, None)


def _put_back(container: Any, before: Any) -> None:
    _, content = before
    container.clear()
    if isinstance(container, dict):
        for key, (item, inside) in content.items():
            container[key] = item
            if inside is not None and (inside or item):  # most are the empty dicts of hooks
                _put_back(item, (item, inside))
    else:
        (container.update if isinstance(container, set) else container.extend)(content)
