"""The names of a network's classes, in the order of its outputs: what a checkpoint remembers of its data, and how two of them compare.

In: names as a checkpoint and a data set have them. Out: nothing, or an error that names the first difference.
"""

from collections.abc import Sequence
from pathlib import Path

from prunetrain.errors import ConfigError
from prunetrain.foreign.refusal import shown
from prunetrain.training.data import DataSource
from prunetrain.training.data.base import as_text


def names_of(data: DataSource) -> list[str]:
    """The class names of a data set as a checkpoint holds them; bytes that are no UTF-8 in a folder's name are escaped."""
    return [as_text(name) for name in data.class_names]


def check_names(trained: Sequence[str], data: DataSource, what: Path) -> None:
    """Check that outputs mean what the labels of a data set mean.

    Plain numbers, as .npz files have, say nothing of another data set's names; what has other numbers of classes is not compared.

    Args:
        trained: the names that a checkpoint holds.
        data: what the network is to be used on.
        what: how the message calls the network.

    Raises:
        ConfigError: at the first class that has another name.
    """
    names = names_of(data)
    if len(trained) != len(names) or (set(trained) != set(names) and (are_numbers(trained) or are_numbers(names))):
        return
    for number, (was, name) in enumerate(zip(trained, names, strict=True)):
        if was != name:
            raise ConfigError(
                f"{what} was trained with {shown(was)} as class {number}, and the data has {shown(name)} there: "
                "name its class folders as they were in training, or use the data of the training"
            )


def are_numbers(names: Sequence[str]) -> bool:
    """Whether classes have no names but their numbers."""
    return all(name == str(number) for number, name in enumerate(names))
