"""Load untrusted files by torch.save: check them (`foreign/torch_files.py`), then load tensors and plain values without running code."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from prunetrain.foreign.opening import open_regular
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.foreign.torch_files import check_torch_file


def load_torch_file(path: Path) -> Any:
    """Load the content of a file, its tensors on the CPU.

    Raises:
        OSError: if it cannot be opened or read.
        RefusedFileError: if it is damaged, or holds anything but tensors and plain values, or more of them than fit into memory.
    """
    with open_regular(path) as file:
        check_torch_file(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about some foreign files before it refuses them
                return torch.load(file, map_location="cpu", weights_only=True)
        except (
            RuntimeError,
            EOFError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            IndexError,
            MemoryError,
            OverflowError,
            pickle.UnpicklingError,
        ) as error:
            raise RefusedFileError(f"torch cannot load it: {type(error).__name__}") from None
