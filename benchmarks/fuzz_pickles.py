"""Damage to the pickle inside a file written by torch.save: foreign names, calls, numbers, words, and endless structures."""

import pickletools
import random
import struct
from collections.abc import Callable

from fuzz_bytes import FLOATS, NUMBERS, WORDS, spoil

_FUNCTIONS = (
    "os system", "posix system", "builtins eval", "builtins exec", "builtins __import__", "builtins getattr", "subprocess Popen",
    "shutil rmtree", "runpy run_path", "torch load", "torch.hub load", "torch._utils _rebuild_wrapper_subclass", "numpy load",
    "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor", "torch._utils _rebuild_meta_tensor_no_storage",
    "collections OrderedDict", "collections Counter", "torch FloatStorage", "torch DoubleStorage", "torch Size", "torch device",
    "torch.nn.parameter Parameter", "builtins bytearray", "builtins set", "_codecs encode", "torch float32", "torch._utils _rebuild_tensor",
)  # fmt: skip


def spoil_pickle(rng: random.Random, data: bytes, canary: str) -> bytes:
    """Damage one thing in a pickle."""
    return rng.choice((_name, _call, _call, _number, _number, _number, _word, _remove, _repeat, _deep, _laughs, _itself, _bytes))(
        rng, data, canary
    )


def _spans(data: bytes, *names: str) -> list[tuple[int, int, str]]:
    """Start, end and opcode of all instructions of the given kinds, or of all kinds if none is given."""
    found = [(position or 0, opcode.name) for opcode, _, position in pickletools.genops(data)]
    ends = [*(start for start, _ in found[1:]), len(data)]
    return [(start, end, name) for (start, name), end in zip(found, ends, strict=True) if not names or name in names]


def _replaced(rng: random.Random, data: bytes, names: tuple[str, ...], make: Callable[[], bytes]) -> bytes:
    spans = _spans(data, *names)
    if not spans:
        return data
    start, end, _ = rng.choice(spans)
    return data[:start] + make() + data[end:]


def _unicode(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _global(rng: random.Random) -> bytes:
    module, _, name = rng.choice(_FUNCTIONS).partition(" ")
    if rng.random() < 0.2:
        return _unicode(module) + _unicode(name) + b"\x93"
    return f"c{module}\n{name}\n".encode()


def _name(rng: random.Random, data: bytes, canary: str) -> bytes:
    return _replaced(rng, data, ("GLOBAL",), lambda: _global(rng))


def _call(rng: random.Random, data: bytes, canary: str) -> bytes:
    """Insert a call that would leave a trace; its result is discarded, kept, or replaces a value."""
    arguments = rng.choice((f"touch {canary}", f"open({canary!r}, 'w')", canary))
    call = _global(rng) + rng.choice((b"(" + _unicode(arguments) + b"tR", _unicode(arguments) + b"\x85R", b")R", b")\x81", b"N\x85R"))
    if rng.random() < 0.5:
        return data[:2] + call + rng.choice((b"0", b"")) + data[2:]
    return _replaced(rng, data, ("BINFLOAT", "BINUNICODE", "BININT1", "NONE", "BININT"), lambda: call)


def _number(rng: random.Random, data: bytes, canary: str) -> bytes:
    def make() -> bytes:
        value = rng.choice(NUMBERS)
        if rng.random() < 0.1:
            return b"G" + struct.pack(">d", rng.choice(FLOATS))
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        length = rng.choice((9, 9, 9, 200))
        return b"\x8a" + bytes([length]) + value.to_bytes(length, "little")

    return _replaced(rng, data, ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), make)


def _word(rng: random.Random, data: bytes, canary: str) -> bytes:
    return _replaced(rng, data, ("BINUNICODE",), lambda: _unicode(rng.choice((*WORDS, str(rng.randrange(40))))))


def _remove(rng: random.Random, data: bytes, canary: str) -> bytes:
    return _replaced(rng, data, (), lambda: b"")


def _repeat(rng: random.Random, data: bytes, canary: str) -> bytes:
    start, end, _ = rng.choice(_spans(data))
    return data[:end] + data[start:end] * rng.choice((1, 2, 1000)) + data[end:]


def _deep(rng: random.Random, data: bytes, canary: str) -> bytes:
    depth = rng.choice((20, 60, 1000, 100_000))
    return _replaced(
        rng, data, ("BINFLOAT", "BINUNICODE"), lambda: b")" + b"\x85" * depth if rng.random() < 0.5 else b"]" * depth + b"a" * (depth - 1)
    )


def _laughs(rng: random.Random, data: bytes, canary: str) -> bytes:
    """A tuple of two tuples of two tuples, 40 deep: a hundred bytes that print as a trillion."""
    return _replaced(rng, data, ("BINFLOAT", "BINUNICODE"), lambda: b")r\xff\xff\x00\x00" + b"j\xff\xff\x00\x00\x86r\xff\xff\x00\x00" * 40)


def _itself(rng: random.Random, data: bytes, canary: str) -> bytes:
    return _replaced(rng, data, ("BINFLOAT", "BINUNICODE"), lambda: b"]r\xff\xff\x00\x00j\xff\xff\x00\x00a")


def _bytes(rng: random.Random, data: bytes, canary: str) -> bytes:
    return spoil(rng, data)
