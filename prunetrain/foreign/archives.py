"""Zip files, as torch.save and numpy.savez write them: check sizes, positions and checksums before anything is read from them.

Python's zipfile reads the whole directory of an archive at once and checks neither for overlapping entries nor for sizes that the file
cannot hold; torch's reader compares no checksums. So: first the end record, then the directory, then every byte against its checksum.
"""

import struct
import zipfile
import zlib
from typing import BinaryIO, Final

from prunetrain.foreign.opening import file_size
from prunetrain.foreign.refusal import RefusedFileError, quoted

_END: Final = struct.Struct("<4s4H2LH")  # signature, disks (2), entries (2), bytes and offset of the directory, length of a comment
_LOCATOR: Final = struct.Struct("<4sLQL")  # signature, disk, offset of the next record, disks
_END_64: Final = struct.Struct("<4sQ2H2L4Q")  # signature, size, versions (2), disks (2), entries (2), bytes and offset of the directory
_LOCAL: Final = struct.Struct("<4s5H3L2H")  # the header before an entry: ... lengths of name and extra field
_ENTRY_BYTES: Final = 46  # smallest size of a directory entry
_LONGEST_ENTRY: Final = 1024  # bytes per entry on average, at most; names and extra fields are short
_CHUNK: Final = 2**20
_ENCRYPTED: Final = 1

# Errors that reading a damaged archive may raise.
ARCHIVE_ERRORS: Final = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error, OSError)


def open_archive(file: BinaryIO, *, most_entries: int, compressed: bool) -> zipfile.ZipFile:
    """Open a file as an archive and check its directory.

    Args:
        file: a regular file, open for reading.
        most_entries: largest number of entries allowed.
        compressed: whether its entries may be compressed (by deflate).

    Raises:
        RefusedFileError: if it is not a zip file or damaged, and for duplicate names, overlapping entries, and whatever torch and numpy
            never write: other methods, encryption, comments.
    """
    _check_end(file, most_entries)
    try:
        archive = zipfile.ZipFile(file)
    except ARCHIVE_ERRORS:
        raise RefusedFileError("its zip directory is damaged") from None
    names = [entry.filename.lower() for entry in archive.infolist()]  # torch ignores case when it looks up names
    if len(set(names)) < len(names):
        raise RefusedFileError("its zip directory has a name twice")
    for entry in archive.infolist():
        methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if compressed else (zipfile.ZIP_STORED,)
        if entry.compress_type not in methods or entry.flag_bits & _ENCRYPTED:
            raise RefusedFileError(f"its part {quoted(entry.filename)} is compressed or encrypted")
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
            raise RefusedFileError(f"its part {quoted(entry.filename)} has two sizes")
    _check_offsets(file, archive)
    return archive


def check_contents(archive: zipfile.ZipFile) -> None:
    """Compare every entry with its checksum, reading a megabyte at a time.

    Raises:
        RefusedFileError: at the first entry that differs.
    """
    for entry in archive.infolist():
        try:
            with archive.open(entry) as stream:
                while stream.read(_CHUNK):
                    pass
        except ARCHIVE_ERRORS:
            raise RefusedFileError(f"its part {quoted(entry.filename)} is damaged") from None


def _check_end(file: BinaryIO, most_entries: int) -> None:
    """Check the numbers in the end record, which decide how much is read as the directory."""
    size = file_size(file)
    if size < _END.size:
        raise RefusedFileError("it is not a zip file")
    end = size - _END.size
    file.seek(end)
    signature, _, _, _, *counts, comment = _END.unpack(file.read(_END.size))
    if signature != b"PK\x05\x06" or comment:
        raise RefusedFileError("it is not a zip file, or its end is missing")
    large = _read_zip64_end(file, end)
    if large is not None:
        end, *larger = large
        if any(small not in (full, most) for small, full, most in zip(counts, larger, (2**16 - 1, 2**32 - 1, 2**32 - 1), strict=True)):
            raise RefusedFileError("its zip directory is damaged")
        counts = larger
    entries, length, offset = counts
    if entries > most_entries:
        raise RefusedFileError(f"its zip directory has {entries:,} entries, more than {most_entries:,}")
    if not _ENTRY_BYTES * entries <= length <= _LONGEST_ENTRY * entries or offset + length != end:
        raise RefusedFileError("its zip directory is damaged")


def _read_zip64_end(file: BinaryIO, end: int) -> tuple[int, int, int, int] | None:
    """The directory's end, entries, bytes and offset from the 64-bit record, which torch always writes and others only above 4 GB."""
    start = end - _LOCATOR.size - _END_64.size
    if start < 0:
        return None
    file.seek(start)
    record, locator = file.read(_END_64.size), file.read(_LOCATOR.size)
    signature, _, place, _ = _LOCATOR.unpack(locator)
    if signature != b"PK\x06\x07":
        return None
    signature, *_, entries, length, offset = _END_64.unpack(record)
    if signature != b"PK\x06\x06" or place != start:
        raise RefusedFileError("its zip directory is damaged")
    return start, entries, length, offset


def _check_offsets(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Check that the entries follow each other without overlap, from the start of the file to its directory."""
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if not entries or entries[0].header_offset != 0:
        raise RefusedFileError("it does not begin with a zip entry")
    for entry, following in zip(entries, [*(later.header_offset for later in entries[1:]), archive.start_dir], strict=True):
        file.seek(entry.header_offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size:
            raise RefusedFileError(f"its part {quoted(entry.filename)} is cut off")
        *_, name, extra = _LOCAL.unpack(header)
        if entry.header_offset + _LOCAL.size + name + extra + entry.compress_size > following:
            raise RefusedFileError(f"its part {quoted(entry.filename)} overlaps another")
