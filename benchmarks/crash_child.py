"""The process that `crash_test.py` kills: the command line, which also records its current phase in a shared page.

In: arguments of the command line, a file to show the phase in, a file for the output. Out: an exit code. Nothing but the page and the
names of functions differs from `prunetrain`: each function below is called unchanged, between two writes of one byte.
"""

import mmap
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from importlib import import_module
from pathlib import Path
from typing import Any


class Phase(IntEnum):
    """What a process is doing."""

    START = 0
    STEPS = 1
    VALIDATION = 2
    RECONFIGURATION = 3
    NETWORK_FILE = 4
    BETWEEN = 5  # the network file is there, its checkpoint is not
    CHECKPOINT = 6
    METRICS = 7
    OTHER = 8

    @property
    def words(self) -> str:
        """The phase in readable form."""
        return _WORDS[self]


_WORDS = {
    Phase.START: "start-up, and loading what to resume from",
    Phase.STEPS: "in the steps of an epoch",
    Phase.VALIDATION: "validation",
    Phase.RECONFIGURATION: "reconfiguration, apart from its files",
    Phase.NETWORK_FILE: "writing a network file",
    Phase.BETWEEN: "between a network file and its checkpoint",
    Phase.CHECKPOINT: "writing a checkpoint",
    Phase.METRICS: "writing the metrics",
    Phase.OTHER: "between these",
}


class Page:
    """A byte that two processes share through a file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes([Phase.START]))
        with path.open("r+b") as file:
            self._byte = mmap.mmap(file.fileno(), 1)

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return Phase(self._byte[0])

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._byte[0] = phase


def train(arguments: list[str], page_file: Path, output: Path) -> None:
    """Run the command line in this process and end it."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    page = Page(page_file)
    page.phase = Phase.START
    _show_writes(page)
    run = import_module("prunetrain.training.run")
    _show(page, run, "train_one_epoch", lambda *_: Phase.STEPS, Phase.OTHER)
    _show(page, run, "evaluate", lambda *_: Phase.VALIDATION, Phase.OTHER)
    _show(page, run, "reconfigure", lambda *_: Phase.RECONFIGURATION, Phase.OTHER)
    from prunetrain.commands import main

    sys.argv = ["prunetrain"]
    main(arguments)


def _show_writes(page: Page) -> None:
    """Show the phase of file writes in every module that has imported the functions, or will."""
    files = import_module("prunetrain.files")
    written = files.write_atomically
    _show(page, files, "write_atomically", lambda path, *_: _phase_of(path), None)
    _show(page, files, "append_line", lambda *_: Phase.METRICS, None)
    for module in list(sys.modules.values()):
        if getattr(module, "write_atomically", None) is written:
            module.write_atomically = files.write_atomically  # type: ignore[attr-defined]


def _phase_of(path: Path) -> Phase:
    return {".py": Phase.NETWORK_FILE, ".pt": Phase.CHECKPOINT}.get(path.suffix, Phase.METRICS)


def _show(page: Page, module: Any, name: str, phase_of: Callable[..., Phase], after: Phase | None) -> None:
    """Wrap a function of a module to show its phase. The phase after it is `after`, or the earlier one; after a network file, BETWEEN."""
    function = getattr(module, name)

    def call(*args: Any, **named: Any) -> Any:
        before = page.phase
        now = phase_of(*args)
        page.phase = now
        try:
            return function(*args, **named)
        finally:
            if now is Phase.NETWORK_FILE:
                page.phase = Phase.BETWEEN
            elif before is Phase.BETWEEN:
                page.phase = Phase.RECONFIGURATION
            else:
                page.phase = before if after is None else after

    setattr(module, name, call)
