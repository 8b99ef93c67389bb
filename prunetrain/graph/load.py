"""Network files on disk: read one as a graph, import one as a torch module. A file is parsed and checked before it is imported."""

import copyreg
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from prunetrain.errors import NetworkFileError, system_reason
from prunetrain.foreign.opening import read_text
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.memory import check_state_fits
from prunetrain.graph.parse import MAX_BYTES, parse

if TYPE_CHECKING:
    from torch import nn


def read_source(path: Path) -> str:
    """Return the text of a network file.

    Raises:
        NetworkFileError: if there is no such file, or it is not text, or too long.
    """
    try:
        return read_text(path, MAX_BYTES).replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise NetworkFileError(f"{path}: no such network file") from None
    except UnicodeDecodeError:
        raise NetworkFileError(f"{path}: not a network file: not UTF-8 text") from None
    except OSError as error:
        raise NetworkFileError(f"{path}: not a network file: {system_reason(error)}") from None
    except RefusedFileError as refused:
        raise NetworkFileError(f"{path}: not a network file: {refused}") from None


def read_graph(path: Path) -> LayerGraph:
    """Return the graph that a network file describes.

    Raises:
        NetworkFileError: if the file is missing or holds anything but a network.
    """
    return parse(read_source(path), str(path))


def sha256_of(source: str) -> str:
    """Return the fingerprint by which a checkpoint identifies its network file."""
    return hashlib.sha256(source.encode()).hexdigest()


def instantiate(source: str, filename: str, *, allocates: bool = True) -> "nn.Module":
    """Build the network of a file's text, with newly initialised weights.

    Args:
        source: the text; this very string is parsed and then executed.
        filename: the file's name in error messages.
        allocates: False on torch's meta device, where weights take no memory.

    Raises:
        NetworkFileError: if the text is anything but a network (it is not executed then), or one that is too large for this machine.
    """
    graph = parse(source, filename)
    if allocates:
        check_state_fits(graph, filename)
    made = _executed(source, filename, graph.class_name)
    try:
        network: nn.Module = made()
    except (
        RuntimeError,
        MemoryError,
        TypeError,
        ValueError,
        AssertionError,
    ) as error:  # sizes beyond the machine's memory, or beyond 64 bits
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NetworkFileError(f"{filename}: torch cannot build this network: {reason}") from error
    return network


class _FileClass(type):
    """The type of classes that come from a network file. They are pickled as the file's text, as no name could import their module.

    So `torch.save` and other processes can take whole networks. A copy of a network has the same class; the file is not executed again.
    """

    _file: tuple[str, str]  # the text, and the file's name in error messages


def _executed(source: str, filename: str, name: str) -> _FileClass:
    """Execute the text of a network file, which was parsed before, and return its class as a `_FileClass`."""
    module = ModuleType(f"prunetrain_network_{name}")
    exec(compile(source, filename, "exec"), module.__dict__)
    return _FileClass(name, (getattr(module, name),), {"__module__": module.__name__, "_file": (source, filename)})


def class_of(source: str, filename: str) -> type:
    """Return the class that the text of a network file defines; pickled networks refer to this function by name.

    Raises:
        NetworkFileError: if the text is anything but a network; nothing in it runs then.
    """
    return _executed(source, filename, parse(source, filename).class_name)


def _reduced(made: _FileClass) -> tuple[Callable[[str, str], type], tuple[str, str]]:
    return class_of, made._file


copyreg.pickle(_FileClass, _reduced)  # type: ignore[arg-type]  # which is typed for instances


def load_network(path: str | Path) -> "nn.Module":
    """Build the network of a file, with newly initialised weights.

    Raises:
        NetworkFileError: if the file is missing or holds anything but a network; nothing in it runs then.
    """
    return instantiate(read_source(Path(path)), str(path))
