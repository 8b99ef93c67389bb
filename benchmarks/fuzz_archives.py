"""Damage to zip files: their directories, names and methods, and the content of a part, with a correct checksum."""

import io
import random
import struct
import zipfile
from collections.abc import Callable

from fuzz_bytes import NUMBERS

Parts = list[tuple[str, bytes]]
_FIELDS = ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))  # of a directory entry: offset, bytes
_NAMES = ("../../evil", "/tmp/evil", "last/../evil", "LAST/DATA.PKL", "last/constants.pkl", "last/code/evil.py", "last/data/\ud7ff", "x")


def unpacked(data: bytes) -> Parts:
    """The parts of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def packed(parts: Parts, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of parts, with correct checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def with_part(data: bytes, suffix: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with the content of one part changed."""
    return packed([(name, change(content) if name.endswith(suffix) else content) for name, content in unpacked(data)])


def spoil_archive(rng: random.Random, data: bytes) -> bytes:
    """Damage one thing in an archive."""
    return rng.choice((_directory, _directory, _end, _rename, _swap, _method, _add, _remove, _twice, _around))(rng, data)


def _directory(rng: random.Random, data: bytes) -> bytes:
    places = [place for place in range(len(data) - 46) if data[place : place + 4] in (b"PK\x01\x02", b"PK\x03\x04")]
    if not places:
        return data
    offset, size = rng.choice(_FIELDS)
    return _overwrite(rng, data, rng.choice(places) + offset, size)


def _end(rng: random.Random, data: bytes) -> bytes:
    return _overwrite(rng, data, len(data) - rng.randrange(2, 100), rng.choice((2, 4, 8)))


def _overwrite(rng: random.Random, data: bytes, place: int, size: int) -> bytes:
    word = struct.pack("<Q", rng.choice((*NUMBERS, len(data), len(data) - 22)) % 2**64)[:size]
    return data[:place] + word + data[place + size :]


def _rename(rng: random.Random, data: bytes) -> bytes:
    parts = unpacked(data)
    number = rng.randrange(len(parts))
    parts[number] = (rng.choice(_NAMES), parts[number][1])
    return packed(parts)


def _swap(rng: random.Random, data: bytes) -> bytes:
    parts = unpacked(data)
    one, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    parts[one], parts[other] = (parts[one][0], parts[other][1]), (parts[other][0], parts[one][1])
    return packed(parts)


def _method(rng: random.Random, data: bytes) -> bytes:
    return packed(unpacked(data), rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))


def _add(rng: random.Random, data: bytes) -> bytes:
    count = rng.choice((1, 1, 3000))
    return packed([*unpacked(data), *((f"{rng.choice(_NAMES)}{number}", bytes(rng.choice((0, 10, 5000)))) for number in range(count))])


def _remove(rng: random.Random, data: bytes) -> bytes:
    parts = unpacked(data)
    del parts[rng.randrange(len(parts))]
    return packed(parts)


def _twice(rng: random.Random, data: bytes) -> bytes:
    """Put a name into the directory twice, by giving an entry the name of another of the same length."""
    parts = unpacked(data)
    one, other = rng.choice(parts)[0].encode(), rng.choice(parts)[0].encode()
    return data.replace(one, other) if len(one) == len(other) else data + data


def _around(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(100) + data if rng.random() < 0.5 else data + rng.randbytes(100)
