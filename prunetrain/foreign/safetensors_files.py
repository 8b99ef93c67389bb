"""Check the two sizes in a safetensors file that its own reader trusts. The reader checks all else: offsets, shapes, types, overlaps."""

from pathlib import Path
from typing import Final

from prunetrain.foreign.memory import available_memory, format_bytes
from prunetrain.foreign.opening import file_size, open_regular
from prunetrain.foreign.refusal import RefusedFileError

_MAX_HEADER: Final = 2**24  # bytes; the format's own limit is 100 MB, but reading that many takes gigabytes of memory


def check_safetensors(path: Path) -> None:
    """Check a file before the library reads it.

    Raises:
        OSError: if it cannot be opened.
        RefusedFileError: if it is not a regular file, its header is longer than the file or far too long, or it does not fit into memory.
    """
    with open_regular(path) as file:
        size, header = file_size(file), int.from_bytes(file.read(8), "little")
    if header > min(size, _MAX_HEADER):
        raise RefusedFileError(f"it declares a header of {header:,} bytes, which is too long")
    if size > (available := available_memory()):
        raise RefusedFileError(f"its tensors take {format_bytes(size)}, and {format_bytes(available)} of memory are free")
