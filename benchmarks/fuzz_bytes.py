"""Damage that needs no knowledge of a format, and values that programs often mishandle."""

import random
import struct

WORDS = (
    "",
    "..",
    "../evil",
    "/tmp/evil",
    "a" * 5000,
    "\x00",
    "\x1b[31mred",
    "\ud800",
    "nan",
    "{}",
    "../../generated_nets/x/epoch_000.py",
    "tiny.py:Net",
)
NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 10**18)
FLOATS = (0.0, -1.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"))


def spoil(rng: random.Random, data: bytes) -> bytes:
    """Apply one to three random accidents."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _ACCIDENTS[rng.randrange(len(_ACCIDENTS))](rng, data) if data else rng.randbytes(8)
    return data


def _flip(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + 2 ** rng.randrange(12))


def _zero(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + bytes(end - start) + data[end:]


def _remove(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _move(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    rest = data[:start] + data[end:]
    place = rng.randrange(len(rest) + 1)
    return rest[:place] + data[start:end] + rest[place:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(2 ** rng.randrange(8)) + data[place:]


def _number(rng: random.Random, data: bytes) -> bytes:
    """Overwrite some bytes with a number at the edge of a type."""
    word = struct.pack("<Q", rng.choice(NUMBERS) % 2**64)[: rng.choice((1, 2, 4, 8))]
    place = rng.randrange(len(data))
    return (data[:place] + word + data[place + len(word) :])[: len(data)]


_ACCIDENTS = (_flip, _flip, _truncate, _zero, _remove, _repeat, _move, _insert, _number, _number)
