"""Find the line of the model's own code that a call comes from."""

import inspect
import os
import sys
from types import FrameType, TracebackType

import torch
from torch import nn

from prunetrain.graph.tracing.records import Place

_LIBRARY_FOLDERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
_ENTRY = "_run_forward"  # the function of trace.py that calls the model


def place(scope: str) -> Place:
    """Return the innermost line of the model's own code that is running, in the module `scope`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != _ENTRY:
        if not frame.f_code.co_filename.startswith(_LIBRARY_FOLDERS):
            return Place(f"{frame.f_code.co_filename}:{frame.f_lineno}", scope)
        frame = frame.f_back
    return Place("", scope)


def place_of_forward(module: nn.Module, scope: str) -> Place:
    """Return the line where a module's forward begins, if it is the model's own code."""
    code = getattr(inspect.unwrap(module.forward), "__code__", None)
    if code is None or code.co_filename.startswith(_LIBRARY_FOLDERS):
        return Place("", scope)
    return Place(f"{code.co_filename}:{code.co_firstlineno}", scope)


def place_of_error(error: BaseException) -> Place:
    """Return the innermost line of the model's own code in an error's traceback."""
    found = Place("", "")
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_LIBRARY_FOLDERS):
            found = Place(f"{code.co_filename}:{traceback.tb_lineno}", "")
        traceback = traceback.tb_next
    return found


def summary_of_error(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message; torch.jit's first line says nothing."""
    first = (str(error) or type(error).__name__).strip().splitlines()[0]
    if "TorchScript interpreter" in first:
        return "prunetrain cannot follow a scripted function or module (torch.jit): call the Python code instead"
    return first
