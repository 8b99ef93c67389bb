"""Damage to files of arrays: headers of .npy members that declare missing data, pickled objects, and headers of safetensors."""

import io
import json
import os
import random
import struct
import zipfile
from typing import Any

import numpy as np
from fuzz_archives import packed, spoil_archive, unpacked
from fuzz_bytes import NUMBERS, WORDS, spoil

_TYPES = ("|u1", "<i8", "|O", "|V1000000000", "<U100000000", "<f4", "|b1", "<c16", "<M8[s]", ">i8", "(1000000,)u1", "O", "x", "|S0")
_SHAPES = (
    (2**62,),
    (2**40, 8, 8),
    (-1, 8, 8),
    (2**31, 2**31, 2**31),
    (),
    (0,),
    (64, 8, 8, 1),
    (64, 8),
    (True, 8),
    ("a",),
    (1.5,),
    (64,) * 70,
    (10**9, 8, 8),
)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.canary,)


def spoil_npz(rng: random.Random, data: bytes, canary: str) -> bytes:
    """Damage one thing in an .npz file, compressed or not."""
    if rng.random() < 0.3:
        data = packed(unpacked(data), zipfile.ZIP_DEFLATED)
    choice = rng.random()
    if choice < 0.25:
        return spoil(rng, data)
    if choice < 0.45:
        return spoil_archive(rng, data)
    parts = unpacked(data)
    number = rng.randrange(len(parts))
    name, content = parts[number]
    parts[number] = (name, _array(rng, content, canary))
    return packed(parts, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _array(rng: random.Random, content: bytes, canary: str) -> bytes:
    choice = rng.random()
    if choice < 0.15:
        return spoil(rng, content)
    if choice < 0.3:
        buffer = io.BytesIO()
        array = np.empty(64, object)
        array[:] = [Harmful(canary)] * 64
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()
    if choice < 0.4:
        return content + bytes(rng.choice((1, 10**8)))  # more than declared; compressed it is small
    header = {"descr": "|u1", "fortran_order": False, "shape": (64, 8, 8)}
    key = rng.choice(("descr", "shape", "shape", "fortran_order"))
    values = {"descr": _TYPES, "shape": _SHAPES, "fortran_order": (True, 1, None)}
    text = repr({**header, key: rng.choice(values[key])})
    if rng.random() < 0.2:
        text = rng.choice(
            (
                "{" * 5000,
                "[" * 9000,
                text * 400,
                "__import__('os')",
                text.replace("64", "9" * 5000),
                "{'descr': " + text + "}",
                " " * 70_000,
            )
        )
    return _npy(rng, text) + content[128:]


def _npy(rng: random.Random, text: str) -> bytes:
    """A header of numpy's format, mostly version 1."""
    version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    encoded = text.encode() + b"\n"
    length = rng.choice((len(encoded), len(encoded), len(encoded), 2**32 - 1, 0, 65_535))
    size = struct.pack("<H", length % 2**16) if version == (1, 0) else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes(version) + size + encoded


def spoil_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Damage one thing in a .safetensors file."""
    choice = rng.random()
    if choice < 0.4:
        return spoil(rng, data)
    length = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    if choice < 0.5:
        header[rng.choice(WORDS[:6])] = header.pop(name)
    else:
        values: dict[str, tuple[Any, ...]] = {
            "dtype": ("F64", "F16", "BF16", "I8", "F8_E4M3", "C64", "X", None, 3),
            "shape": ([2**40], [-1], [], [0], [2**63 - 1, 2], [2**32, 2**32], ["a"], None, [1] * 1000, [1.5]),
            "data_offsets": ([0, 2**62], [10, 0], [0], None, [-1, 3], [0, 4], [2**64, 2**65]),
        }
        key = rng.choice(list(values))
        header[name][key] = rng.choice(values[key])
    text = json.dumps(header).encode()
    size = rng.choice((len(text), len(text), len(text), rng.choice(NUMBERS) % 2**64))
    return struct.pack("<Q", size) + text + numbers
