"""Check files by torch.save as a whole: the archive, its checksums, the pickle in it, and the sizes and strides of its tensors."""

import zipfile
from typing import BinaryIO, Final

from prunetrain.foreign.archives import ARCHIVE_ERRORS, check_contents, open_archive
from prunetrain.foreign.memory import available_memory, format_bytes
from prunetrain.foreign.pickles import MAX_BYTES, read_pickle
from prunetrain.foreign.refusal import RefusedFileError, quoted

MAX_TENSORS: Final = 1_000_000
_OLD_FORMAT: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled number by which torch recognises it
_PICKLE: Final = "data.pkl"
_STORAGES: Final = "data/"
_MAX_METADATA: Final = 4096  # bytes of torch's notes beside the pickle: a version, the byte order


def check_torch_file(file: BinaryIO) -> None:
    """Check a file before `torch.load(file, weights_only=True)`. Nothing is built from it, and it is read a megabyte at a time.

    Raises:
        RefusedFileError: for anything that torch.save would not write, inconsistent content, and tensors that do not fit into memory.
    """
    if file.read(len(_OLD_FORMAT)) == _OLD_FORMAT:
        raise RefusedFileError(
            "it has the format of torch before 1.6: save it again with torch.save(torch.load(FILE, weights_only=True), FILE)"
        )
    archive = open_archive(file, most_entries=MAX_TENSORS, compressed=False)
    parts = _parts(archive)
    size = sum(length for name, length in parts.items() if name.startswith(_STORAGES))
    if size > (available := available_memory()):
        raise RefusedFileError(f"its tensors take {format_bytes(size)}, and {format_bytes(available)} of memory are free")
    check_contents(archive)
    _values(archive, parts)
    file.seek(0)


def read_values(file: BinaryIO) -> object:
    """Read the plain values in a file, with a `StoredTensor` for each tensor, whose numbers are not read.

    Raises:
        RefusedFileError: for anything that torch.save would not write, and inconsistent content.
    """
    archive = open_archive(file, most_entries=MAX_TENSORS, compressed=False)
    return _values(archive, _parts(archive))


def _values(archive: zipfile.ZipFile, parts: dict[str, int]) -> object:
    """Return what the pickle builds."""
    try:
        data = archive.read(f"{_folder(archive)}{_PICKLE}")
    except ARCHIVE_ERRORS:
        raise RefusedFileError(f"its {_PICKLE} is damaged") from None
    return read_pickle(data, {name.removeprefix(_STORAGES): length for name, length in parts.items() if name.startswith(_STORAGES)})


def _folder(archive: zipfile.ZipFile) -> str:
    """The folder that holds everything in the archive, with a trailing slash."""
    names = archive.namelist()
    folder = names[0].partition("/")[0] + "/" if names else ""
    if not folder or any(not name.startswith(folder) for name in names):
        raise RefusedFileError("it was not written by torch.save")
    return folder


def _parts(archive: zipfile.ZipFile) -> dict[str, int]:
    """The number of bytes of every part, by its name in the folder."""
    folder = _folder(archive)
    parts = {entry.filename.removeprefix(folder): entry.file_size for entry in archive.infolist()}
    if _PICKLE not in parts or "constants.pkl" in parts:
        raise RefusedFileError("it was not written by torch.save")
    if parts[_PICKLE] > MAX_BYTES:
        raise RefusedFileError(f"its {_PICKLE} is longer than {MAX_BYTES:,} bytes")
    for name, length in parts.items():
        if name != _PICKLE and not name.startswith(_STORAGES) and length > _MAX_METADATA:
            raise RefusedFileError(f"its part {quoted(name)} is not one that torch.save writes")
    return parts
