"""Errors that a user can cause. The command line prints the message of any of these on one line and exits with code 2.

PruneTrainError
├── ConfigError         an unknown name, key or value in flags, recipes and config files
├── DataError           a data set that is absent, damaged or unusable
├── TraceError          a network that cannot be turned into a LayerGraph
├── NetworkFileError    a network file that is missing, changed, or holds anything but a network
├── CheckpointError     a checkpoint that is missing, damaged or foreign
├── OutputError         a file that could not be written
├── BusyError           a run that another process is working on
├── DivergedError       a training run whose loss or weights are no longer finite
└── WorkerError         workers that cannot continue to train together
"""

import difflib
import errno
from collections.abc import Iterable, Sequence


class PruneTrainError(Exception):
    """Base of all errors that a user can cause; the message says what to do."""


class ConfigError(PruneTrainError):
    """An unknown name, key or value in flags, recipes and config files."""


class DataError(PruneTrainError):
    """A data set that is absent, damaged or unusable."""


class TraceError(PruneTrainError):
    """A network that cannot be turned into a LayerGraph."""


class NetworkFileError(PruneTrainError):
    """A network file that is missing, changed, or holds anything but a network."""


class CheckpointError(PruneTrainError):
    """A checkpoint that is missing, damaged or foreign."""


class OutputError(PruneTrainError):
    """A file that could not be written."""


class BusyError(PruneTrainError):
    """A run that another process is working on."""


class DivergedError(PruneTrainError):
    """A training run whose loss or weights are no longer finite."""


class WorkerError(PruneTrainError):
    """Workers that cannot continue to train together."""


_OUT_OF_MEMORY_MESSAGES = (
    "out of memory",  # CUDA, when it fails outside torch's allocator
    "can't allocate",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "unable to find an engine",  # cuDNN, which rules out every algorithm whose workspace does not fit
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or a GPU ran out of memory. Torch has a class for that, which its libraries do not always use."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_MESSAGES)


def system_reason(error: OSError) -> str:
    """Why the system refused something, to end a message with: "no such file or directory"; for a full disk, what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run again"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason[:1].lower()}{reason[1:]}"


def abbreviate_names(names: Sequence[str], shown: int = 3) -> str:
    """The first few of many names: "a, b, c and 4 more"."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def unknown_name(kind: str, name: str, known: Iterable[str], synonym: str | None = None) -> str:
    """One line with the nearest known names: "unknown model 'resnet21': did you mean resnet20 or resnet32?"; with the synonym if given."""
    names = sorted(known)
    near = [synonym] if synonym else nearest(name, names)
    return f"unknown {kind} {name!r}: {suggest(near, 'choose from ' + ', '.join(names))}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are spelled most like this one, the nearest first; at most three."""
    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)


def suggest(names: Sequence[str], otherwise: str) -> str:
    """Advice: "did you mean resnet20 or resnet32?", or something else if there are no names."""
    return f"did you mean {' or '.join(names)}?" if names else otherwise
