"""The names of a network's classes, in the order of its outputs: as a checkpoint stores them, and compared with those of a data set.

In: the names in a checkpoint and in a data set. Out: nothing, or an error that names the first difference.
"""

from collections.abc import Sequence
from pathlib import Path

from prunetrain.errors import ConfigError, abbreviate_names
from prunetrain.foreign.refusal import quoted
from prunetrain.training.data import DataSource
from prunetrain.training.data.base import escape_non_utf8


def names_of(data: DataSource) -> list[str]:
    """The class names of a data set as a checkpoint holds them; bytes of a folder's name that are not UTF-8 are escaped."""
    return [escape_non_utf8(name) for name in data.class_names]


def check_names(trained: Sequence[str], data: DataSource, what: Path) -> None:
    """Check that a network's outputs stand for the same classes as the labels of a data set.

    Plain numbers, as .npz files have, say nothing about another data set's names. If the numbers of classes differ, nothing is compared.

    Args:
        trained: the names that a checkpoint holds.
        data: the data that the network will be used on.
        what: how the message names the network.

    Raises:
        ConfigError: at the first class whose name differs.
    """
    names = names_of(data)
    if len(trained) != len(names) or (set(trained) != set(names) and (are_numbers(trained) or are_numbers(names))):
        return
    for number, (was, name) in enumerate(zip(trained, names, strict=True)):
        if was != name:
            raise ConfigError(
                f"{what} was trained with {quoted(was)} as class {number}, but the data has {quoted(name)} there: "
                "name its class folders as they were in training, or use the training data"
            )


def differences(trained: Sequence[str], data: DataSource) -> str:
    """Which classes only a network or only a data set has, for a message on their numbers; empty if the classes of either are numbers."""
    names = names_of(data)
    if are_numbers(trained) or are_numbers(names):
        return ""
    only = {"only the data has": set(names) - set(trained), "only the network has": set(trained) - set(names)}
    return "".join(f"; {what} {abbreviate_names([quoted(name) for name in sorted(found)])}" for what, found in only.items() if found)


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the classes' names are just their numbers."""
    return all(name == str(number) for number, name in enumerate(names))
