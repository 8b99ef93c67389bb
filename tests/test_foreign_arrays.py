"""Arrays of strangers: what an .npz or .safetensors file declares is compared with what it has before any of it is read."""

import io
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harmful import Harmful
from safetensors.torch import save_file

from prunetrain.errors import ConfigError, DataError
from prunetrain.foreign import memory
from prunetrain.foreign.arrays import ArrayFile
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.foreign.safetensors_files import check_safetensors
from prunetrain.models.weights import read_weights
from prunetrain.training.data.npz import read

ARRAY = np.arange(24, dtype=np.int64).reshape(2, 3, 4)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def declaring(header: str, content: bytes = bytes(192), version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """A member of any header."""
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + content


def write(path: Path, content: bytes, *, compressed: bool = False) -> Path:
    """A file with the member `a`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", content)
    return path


def array_of(path: Path) -> np.ndarray[Any, Any]:
    with path.open("rb") as file:
        arrays = ArrayFile(file)
        headers = arrays.headers(["a", "b"])
        assert list(headers) == ["a"]
        array = arrays.read("a")
    assert (array.shape, array.dtype, array.nbytes) == (headers["a"].shape, headers["a"].dtype, headers["a"].nbytes)
    return array


def refusal(path: Path) -> str:
    with pytest.raises(RefusedFileError) as caught:
        array_of(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array", [ARRAY, ARRAY.T, np.asfortranarray(ARRAY), ARRAY.astype(">i4"), np.zeros(()), np.zeros((0, 3)), np.array(["a", "bc"])], ids=str
)
def test_what_numpy_saves_is_read(save: Any, array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    save(tmp_path / "a.npz", a=array, c=ARRAY)
    np.testing.assert_array_equal(array_of(tmp_path / "a.npz"), array)


def test_the_header_to_be_spoilt_is_one(tmp_path: Path) -> None:
    for version in ((1, 0), (2, 0)):
        header = "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3, 4)}"
        assert array_of(write(tmp_path / "a.npz", declaring(header, ARRAY.tobytes(), version))).tolist() == ARRAY.tolist()


def header(shape: str = "(2, 3, 4)", descr: str = "'<i8'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (declaring(header(f"({2**62},)")), f"a should take {2**65:,} bytes, but 192 are stored"),  # over what a 64-bit product holds
        (declaring(header(f"({2**31}, {2**31}, 4)")), f"a should take {2**67:,} bytes, but 192 are stored"),
        (declaring(header("(2, 3, 5)")), "a should take 240 bytes, but 192 are stored"),
        (declaring(header(), bytes(193)), "a should take 192 bytes, but 193 are stored"),
        (declaring(header(), bytes(10**6)), "a should take 192 bytes, but 1,000,000 are stored"),
        (declaring(header("(-2, -3, 4)")), "a declares the shape (-2, -3, 4), and no size may be negative"),
        (declaring(header(descr="'|V1000000000'")), "a should take 24,000,000,000 bytes, but 192 are stored"),
        (declaring(header(descr="'|O'")), "a holds Python objects, which are not read"),
        (declaring(header(descr="[('x', '|O'), ('y', '<i4')]")), "a holds Python objects, which are not read"),
        (declaring(header(descr="'what'")), "a: "),
        (declaring(header(descr="__import__('os')")), "a: "),
        (declaring(header(order="1")), "a: "),
        (declaring(header("(2.5,)")), "a: "),
        (declaring(header("24")), "a: "),
        (declaring(header("(" + "9" * 5000 + ",)")), "a: "),
        (declaring("{}"), "a: "),
        (declaring("["), "a: "),
        (declaring("{" * 5000), "a: "),
        (declaring("[" * 9000), "a: "),
        (declaring("-" * 9000 + "1"), "a: "),
        (declaring(""), "a: "),
        (declaring("\x00"), "a: "),
        (declaring("{'\x1b[31m': 1}"), "a: "),
        (declaring(header(), version=(3, 0)), "a: arrays of version (3, 0) are not supported"),
        (declaring(header(), version=(9, 9)), "a: arrays of version (9, 9) are not supported"),
        (declaring(header(), version=(2, 0), length=2**32 - 1), "a: "),  # as long a header as it says, numpy would read
        (declaring(header() + " " * 70_000, version=(2, 0)), "a: "),
        (b"\x93NUMPY", "a: "),
        (b"", "a: "),
        (b"PK", "a: "),
    ],
    ids=lambda value: "",
)
def test_headers_that_lie(content: bytes, message: str, compressed: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", content, compressed=compressed)
    assert refusal(path).startswith(message)
    assert len(refusal(path)) < 250


def test_a_compressed_file_is_measured_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 MB of zeros in 24 kB, to be read on a machine of 1 MB."""
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(ArrayFile, "read", lambda *arguments: pytest.fail("was read"))
    images, labels = np.zeros((6000, 64, 64), np.uint8), np.zeros(6000, np.int64)
    np.savez_compressed(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    assert (tmp_path / "a.npz").stat().st_size < 40_000
    with pytest.raises(DataError, match=r"a\.npz: its arrays need 73\.8 MB of memory, and only 1 MB is free: store fewer images$"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_no_flipped_bit_changes_an_array(compressed: bool, tmp_path: Path) -> None:
    """Where the data is compressed, there are bits behind its end that mean nothing."""
    path = write(tmp_path / "a.npz", npy(ARRAY), compressed=compressed)
    data = path.read_bytes()
    start, end = data.index(b"a.npy") + len("a.npy"), data.index(b"PK\x01\x02")
    unnoticed = 0
    for place in range(start, end):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            array = array_of(path)
        except RefusedFileError as refused:
            assert str(refused).startswith("a: ")
        else:
            unnoticed += 1
            np.testing.assert_array_equal(array, ARRAY, f"byte {place}")
    assert unnoticed <= (5 if compressed else 0)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    objects = np.array([None])
    objects[0] = Harmful(canary)
    np.savez(tmp_path / "a.npz", a=objects)
    assert refusal(tmp_path / "a.npz") == "a holds Python objects, which are not read"
    write(tmp_path / "b.npz", declaring(header("(1,)", "'|u1'"), npy(objects)[-1:]))  # a header that does not say so
    assert array_of(tmp_path / "b.npz").dtype == np.uint8
    assert not canary.exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["a"]
    assert canary.exists()  # so they would have been


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_numpy_never_uses(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("a.npy", npy(ARRAY))
    assert refusal(tmp_path / "a.npz") == "its part 'a.npy' is compressed or encrypted"


def safetensors(header: bytes, content: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + content


ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def test_the_safetensors_to_be_spoilt_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors(ONE, bytes(8)))
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["a"], torch.zeros(2))
    save_file({"b": torch.ones(3)}, tmp_path / "b.safetensors")
    assert torch.equal(read_weights(tmp_path / "b.safetensors")["b"], torch.ones(3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "SafetensorError"),
        (b"\x00" * 8, "SafetensorError"),
        (safetensors(ONE, bytes(8), length=2**63), "it declares a header of 9,223,372,036,854,775,808 bytes, which is too long"),
        (safetensors(ONE, bytes(8), length=2**25), "it declares a header of 33,554,432 bytes, which is too long"),
        (safetensors(ONE, bytes(8), length=80), "it declares a header of 80 bytes, which is too long"),
        (safetensors(ONE, bytes(8), length=10), "SafetensorError"),
        (safetensors(ONE, bytes(7)), "SafetensorError"),
        (safetensors(ONE, bytes(9)), "SafetensorError"),
        (safetensors(b"[" * 10_000), "SafetensorError"),
        (safetensors(ONE.replace(b"[2]", b"[4294967296,4294967296]"), bytes(8)), "SafetensorError"),
        (safetensors(ONE.replace(b"[2]", b"[-1]"), bytes(8)), "SafetensorError"),
        (safetensors(ONE.replace(b"[0,8]", b"[0,4611686018427387904]"), bytes(8)), "SafetensorError"),
        (safetensors(ONE.replace(b"[0,8]", b"[8,0]"), bytes(8)), "SafetensorError"),
        (safetensors(ONE.replace(b"F32", b"F33"), bytes(8)), "SafetensorError"),
        (safetensors(ONE[:-1] + b',"b":' + ONE[5:-1] + b"}", bytes(8)), "SafetensorError"),  # two in one place
    ],
    ids=lambda value: "",
)
def test_safetensors_that_lie(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"a\.safetensors: damaged, or not a file of weights \({re.escape(message)}\)$"):
        read_weights(path)


def test_a_header_of_many_megabytes(tmp_path: Path) -> None:
    """The library takes up to 100 MB, and gigabytes of memory to read them."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**24 + 1))
    os.truncate(path, 2**25)
    with pytest.raises(RefusedFileError, match=r"^it declares a header of 16,777,217 bytes, which is too long$"):
        check_safetensors(path)


def test_safetensors_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 3 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    save_file({"b": torch.ones(1000)}, tmp_path / "b.safetensors")
    with pytest.raises(RefusedFileError, match=r"^its tensors take 4 kB, and 3 kB of memory are free$"):
        check_safetensors(tmp_path / "b.safetensors")
