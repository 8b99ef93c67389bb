"""One short hash of many tensors, so that processes can compare what they hold. In: nested values. Out: their sha256."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(value: object) -> str:
    """The sha256 of nested dictionaries, sequences, tensors and literals; tensors by their bits, on any device."""
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", value: object) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(repr(key).encode())
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())
