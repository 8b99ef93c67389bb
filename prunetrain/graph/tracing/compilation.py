"""Run what torch.compile made of a model, or of parts of it, as it was written."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compilation_disabled() -> Iterator[None]:
    """Let compiled modules and functions run their own Python, so that a tracer sees what they do."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the compiler takes long to import
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
