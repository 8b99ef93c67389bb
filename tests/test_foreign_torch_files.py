"""Files by torch.save as archives: no flipped bit passes unseen, and nothing that was not written by torch.save is loaded."""

import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harmful import Harmful
from runs import assert_identical
from torch import nn

from prunetrain.foreign import memory, torch_files
from prunetrain.foreign.archives import check_contents, open_archive
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.foreign.torch_files import check_torch_file, read_values
from prunetrain.foreign.torch_globals import StoredTensor
from prunetrain.models.torch_files import load_torch_file

CONTENT = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2), "epoch": 3}
Parts = list[tuple[str, bytes]]


def saved(content: object = CONTENT) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_plain_values_are_read_without_the_tensors(tmp_path: Path) -> None:
    def read(data: bytes) -> object:
        (tmp_path / "file.pt").write_bytes(data)
        with (tmp_path / "file.pt").open("rb") as file:
            return read_values(file)

    values = read(saved())
    assert isinstance(values, dict)
    assert values["epoch"] == 3
    assert isinstance(values["weight"], StoredTensor)
    assert values["weight"].shape == (2, 3)
    for data in (b"", saved()[:-1], edited(saved(), "data.pkl", lambda content: content[:-1])):
        with pytest.raises(RefusedFileError):
            read(data)


def parts_of(data: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def packed(parts: Parts, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive whose checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return buffer.getvalue()


def edited(data: bytes, name: str, edit: Callable[[bytes], bytes]) -> bytes:
    return packed([(path, edit(content) if path.endswith(name) else content) for path, content in parts_of(data)])


def load(data: bytes, folder: Path) -> Any:
    path = folder / "file.pt"
    path.write_bytes(data)
    return load_torch_file(path)


def refusal(data: bytes, folder: Path) -> str:
    with pytest.raises(RefusedFileError) as caught:
        load(data, folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_whole_files_are_loaded(tmp_path: Path) -> None:
    assert_identical(load(saved(), tmp_path), CONTENT)
    assert_identical(load(packed(parts_of(saved())), tmp_path), CONTENT)  # by another writer of zip files
    torch.save(CONTENT, tmp_path / "by_name.pt")  # its folder has the file's name
    assert_identical(load_torch_file(tmp_path / "by_name.pt"), CONTENT)


def test_no_flipped_bit_changes_what_is_loaded(tmp_path: Path) -> None:
    """One bit of every third byte. Most are noticed; the others mean nothing (dates, padding), and load as if nothing were wrong."""
    data, path, noticed, generator = saved(), tmp_path / "file.pt", 0, random.Random(0)
    for place in range(generator.randrange(3), len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :])
        try:
            loaded = load_torch_file(path)
        except RefusedFileError:
            noticed += 1
        else:
            assert_identical(loaded, CONTENT, f"byte {place}")
    assert noticed > 0.5 * len(data) / 3


def test_torch_itself_notices_no_flipped_bit_of_a_weight(tmp_path: Path) -> None:
    data = saved()
    place = data.index(CONTENT["weight"].numpy().tobytes())
    spoilt = data[: place + 5] + bytes([data[place + 5] ^ 1]) + data[place + 6 :]
    assert not torch.equal(torch.load(io.BytesIO(spoilt), weights_only=True)["weight"], CONTENT["weight"])
    assert refusal(spoilt, tmp_path).startswith("its part ")


@pytest.mark.parametrize("step", [1, 37])
def test_no_truncated_file_is_loaded(step: int, tmp_path: Path) -> None:
    data = saved()
    for length in range(0, len(data), step) if step > 1 else range(len(data) - 100, len(data)):
        refusal(data[:length], tmp_path)


TORCH = parts_of(saved())
TOP = TORCH[0][0].partition("/")[0]
FILES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is not a zip file"),
    "a text": (b"epoch,loss\n" * 10, "it is not a zip file, or its end is missing"),
    "something behind": (saved() + b"\0", "it is not a zip file, or its end is missing"),
    "something before": (b"\0" + saved(), "its zip directory is damaged"),
    "two": (saved() + saved(), "its zip directory is damaged"),
    "empty": (packed([]), "it does not begin with a zip entry"),
    "compressed": (packed(TORCH, zipfile.ZIP_DEFLATED), f"its part '{TOP}/data.pkl' is compressed or encrypted"),
    "compressed otherwise": (packed(TORCH, zipfile.ZIP_LZMA), f"its part '{TOP}/data.pkl' is compressed or encrypted"),
    "no pickle": (packed(TORCH[1:]), "it was not written by torch.save"),
    "no folder": (packed([(name.partition("/")[2], content) for name, content in TORCH]), "it was not written by torch.save"),
    "two folders": (packed([*TORCH, ("other/data.pkl", b"")]), "it was not written by torch.save"),
    "a way out": (packed([*TORCH, ("../../evil", b"")]), "it was not written by torch.save"),
    "an absolute way": (packed([*TORCH, ("/tmp/evil", b"")]), "it was not written by torch.save"),
    "a script": (packed([*TORCH, (f"{TOP}/constants.pkl", b"")]), "it was not written by torch.save"),
    "code beside": (packed([*TORCH, (f"{TOP}/code/evil.py", bytes(5000))]), "its part 'code/evil.py' is not one that torch.save writes"),
    "a name twice but for its case": (packed([*TORCH, (f"{TOP}/DATA.PKL", b"N.")]), "its zip directory has a name twice"),
    "a part that is missing": (packed([part for part in TORCH if not part[0].endswith("data/0")]), "its storage '"),
    "a part of another length": (edited(saved(), "data/0", lambda content: content + b"\0"), "its storage '0' should have 24 bytes and "),
    "a pickle that is none": (edited(saved(), "data.pkl", lambda content: content[:-5]), "its data.pkl is damaged"),
    "the old format": (
        b"",
        "it has the format of torch before 1.6: save it again with torch.save(torch.load(FILE, weights_only=True), FILE)",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files(name: str, tmp_path: Path) -> None:
    data, message = FILES[name]
    if name == "the old format":
        torch.save(CONTENT, tmp_path / "file.pt", _use_new_zipfile_serialization=False)
        data = (tmp_path / "file.pt").read_bytes()
    assert refusal(data, tmp_path).startswith(message)


def directory(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


def overwritten(data: bytes, place: int, number: int, size: int) -> bytes:
    place %= len(data)
    return data[:place] + struct.pack("<Q", number)[:size] + data[place + size :]


SIMPLE = packed(TORCH)  # no records of 64 bits: the end record is the last 22 bytes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (overwritten(SIMPLE, -14, 60_000, 2), "torch cannot load it: RuntimeError"),  # entries on this disk
        (overwritten(SIMPLE, -12, 60_000, 2), "its zip directory is damaged"),  # entries
        (overwritten(SIMPLE, -10, 2**31, 4), "its zip directory is damaged"),  # length of the directory
        (overwritten(SIMPLE, -6, 2**31, 4), "its zip directory is damaged"),  # where it begins
        (overwritten(SIMPLE, directory(SIMPLE) + 20, 10**6, 4), f"its part '{TOP}/data.pkl' has two sizes"),
        (overwritten(SIMPLE, directory(SIMPLE) + 42, 1, 4), "it does not begin with a zip entry"),
        (overwritten(SIMPLE, directory(SIMPLE) + 8, 1, 2), f"its part '{TOP}/data.pkl' is compressed or encrypted"),
        (overwritten(SIMPLE, directory(SIMPLE) + 16, 1, 4), f"its part '{TOP}/data.pkl' is damaged"),  # its checksum
        (
            overwritten(overwritten(SIMPLE, directory(SIMPLE) + 20, 10**9, 4), directory(SIMPLE) + 24, 10**9, 4),
            f"its part '{TOP}/data.pkl' overlaps another",
        ),
        (overwritten(saved(), -98 + 40, 2**40, 8), "its zip directory is damaged"),  # of the record of 64 bits: length
        (overwritten(saved(), -98 + 32, 2**40, 8), "its zip directory is damaged"),
        (
            overwritten(overwritten(saved(), -98 + 32, 2**40, 8), -12, 2**16 - 1, 2),
            "its zip directory has 1,099,511,627,776 entries, more than 1,000,000",
        ),
        (overwritten(saved(), -98, 0, 4), "its zip directory is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_directories_that_lie(data: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(data, tmp_path) == message


def test_entries_on_each_other(tmp_path: Path) -> None:
    """Many names for one place would be read as often: the directory's second entry points to the first one's bytes."""
    second = SIMPLE.index(b"PK\x01\x02", directory(SIMPLE) + 1)
    data = overwritten(SIMPLE, second + 42, 0, 4)
    assert refusal(data, tmp_path).endswith("overlaps another")


def test_sizes_against_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 3 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert load(saved(), tmp_path)["epoch"] == 3
    assert refusal(saved(torch.zeros(1000)), tmp_path) == "its tensors take 4 kB, and 3 kB of memory are free"


def test_a_large_pickle_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "MAX_BYTES", 100)
    assert refusal(saved(), tmp_path) == "its data.pkl is longer than 100 bytes"


def test_whatever_torch_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError("a\nb"), pickle.UnpicklingError("c"), EOFError(), KeyError("d"), MemoryError()):

        def fail(*arguments: object, error: Exception = error, **named: object) -> None:
            raise error

        monkeypatch.setattr(torch, "load", fail)
        assert refusal(saved(), tmp_path) == f"torch cannot load it: {type(error).__name__}"


def test_code_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = saved({"a": Harmful(canary)})
    assert refusal(data, tmp_path) == f"it holds more than tensors and plain values: '{os.mkdir.__module__}.mkdir'"
    assert not canary.exists()
    torch.load(io.BytesIO(data), weights_only=False)
    assert canary.exists()  # so it would have run


def test_modules_are_not_loaded(tmp_path: Path) -> None:
    assert refusal(saved(nn.Linear(2, 3)), tmp_path).startswith("it holds more than tensors and plain values: 'torch.nn.modules.")


def test_an_archive_is_read_in_pieces(tmp_path: Path) -> None:
    """Entries of many sizes around a megabyte, each compared with its checksum to its last byte."""
    for size in (0, 1, 2**20 - 1, 2**20, 2**20 + 1):
        data = packed([("x/data.pkl", bytes(size) + b"end")])
        for place in (0, size, size + 2):
            at = data.index(b"x/data.pkl") + len("x/data.pkl") + place
            (tmp_path / "a.zip").write_bytes(data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :])
            with (tmp_path / "a.zip").open("rb") as file:
                archive = open_archive(file, most_entries=1, compressed=False)
                with pytest.raises(RefusedFileError, match=r"^its part 'x/data.pkl' is damaged$"):
                    check_contents(archive)


def test_too_many_entries(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(SIMPLE)
    with (tmp_path / "a.zip").open("rb") as file, pytest.raises(RefusedFileError, match=r"^its zip directory has \d entries, more than 2$"):
        open_archive(file, most_entries=2, compressed=False)


def test_the_check_leaves_the_file_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved())
    with (tmp_path / "a.pt").open("rb") as file:
        check_torch_file(file)
        assert file.tell() == 0
