"""The pickle in a file by torch.save, walked: what torch writes is read, everything else refused before anything is built or called."""

import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunetrain.foreign import pickles
from prunetrain.foreign.pickles import MAX_DEPTH, read_pickle
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.foreign.torch_globals import StoredTensor


def saved(content: object) -> tuple[bytes, dict[str, int]]:
    """The pickle that torch.save writes, and the bytes of each storage."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
        folder = name.removesuffix("data.pkl")
        parts = {info.filename.removeprefix(f"{folder}data/"): info.file_size for info in archive.infolist() if "/data/" in info.filename}
        return archive.read(name), parts


class Shape(tuple[int, ...]):
    """Stands for a tensor of this shape; no plain tuple is equal to it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and tuple(self) == tuple(other)

    __hash__ = tuple.__hash__


def like(content: Any) -> Any:
    """Content with what `read_pickle` makes of it: shapes in place of tensors, plain dictionaries in place of special ones."""
    if isinstance(content, Tensor):
        return Shape(content.shape)
    if isinstance(content, dict):
        return {key: like(value) for key, value in content.items()}
    return type(content)(map(like, content)) if type(content) in (list, tuple) else content


def shapes(read: Any) -> Any:
    """What `read_pickle` returned, with shapes in place of tensors."""
    if isinstance(read, StoredTensor):
        return Shape(read.shape)
    if isinstance(read, dict):
        return {key: shapes(value) for key, value in read.items()}
    return type(read)(map(shapes, read)) if type(read) in (list, tuple) else read


SHARED = torch.arange(24.0)
CONTENTS: dict[str, Any] = {
    "plain values": {"a": [1, -1, 2**40, -(2**62), 1.5, float("inf"), None, True, False, "caf\u00e9", ()], 3: (1, (2, [3]), {})},
    "types of numbers": [torch.zeros(2, dtype=dtype) for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)]
    + [torch.zeros(2, dtype=dtype) for dtype in (torch.int64, torch.half, torch.bfloat16, torch.float, torch.double)],
    "places in one storage": [SHARED, SHARED[3:7], SHARED.view(4, 6).T, SHARED.view(2, 3, 4)[:, 1], SHARED[::5], SHARED[23:]],
    "no numbers": [torch.zeros(0), torch.zeros(3, 0, 2), SHARED[:0], torch.zeros(()), torch.zeros(1).expand(1, 1, 1)],
    "channels last": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "parameters": [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2), requires_grad=False), torch.zeros(1, requires_grad=True)],
    "a state dict": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(),
    "an empty state dict": OrderedDict(),
    "a schedule": Counter({30: 1, 60: 2}),
    "a shape": torch.Size([1, 2]),
    "a thousand values": list(range(1000)),
    "one value a thousand times": [SHARED] * 1000,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_torch_saves_is_read(name: str) -> None:
    assert shapes(read_pickle(*saved(CONTENTS[name]))) == like(CONTENTS[name])


def test_devices_are_words() -> None:
    assert read_pickle(*saved([torch.device("cpu"), torch.device("cuda", 1)])) == ["cpu:0", "cuda:1"]


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def storage(key: str = "0", kind: str = "FloatStorage", length: bytes = b"K\x0a") -> bytes:
    """Ten numbers, as torch refers to them."""
    return b"(" + unicode("storage") + f"ctorch\n{kind}\n".encode() + unicode(key) + unicode("cpu") + length + b"tQ"


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in values) + b"t"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, hooks: bytes = b"ccollections\nOrderedDict\n)R") -> bytes:
    start = b"\x8a\x09" + offset.to_bytes(9, "little", signed=True)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + start + numbers(*shape) + numbers(*stride) + b"\x89" + hooks + b"tR"


def read(body: bytes) -> object:
    return read_pickle(b"\x80\x02" + body + b".", {"0": 40})


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedFileError) as caught:
        call()
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_the_pickles_to_be_spoilt_are_read() -> None:
    assert shapes(read(tensor((2, 5), (5, 1)))) == Shape((2, 5))
    assert read(numbers(1, -1)) == (1, -1)


SHARING = "whose elements share places in memory: save a contiguous copy"
BEYOND = "it has a tensor that reaches beyond its storage"


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "message"),
    [
        ((10**12,), (0,), 0, f"it has a tensor of 1,000,000,000,000 numbers {SHARING}"),  # what `expand` makes: costs nothing until copied
        ((2, 5), (0, 1), 0, f"it has a tensor of 10 numbers {SHARING}"),
        ((3, 3), (1, 1), 0, f"it has a tensor of 9 numbers {SHARING}"),
        ((2**32, 2**32), (2**32, 1), 0, BEYOND),
        ((11,), (1,), 0, BEYOND),
        ((10,), (1,), 1, BEYOND),
        ((1,), (1,), 10, BEYOND),
        ((), (), 10, BEYOND),
        ((2,), (10,), 0, BEYOND),
        ((0,), (1,), 11, BEYOND),
        ((10,), (-1,), 9, "its data.pkl is damaged"),
        ((-1,), (1,), 0, "its data.pkl is damaged"),
        ((10,), (1,), -1, "its data.pkl is damaged"),
        ((10,), (1, 1), 0, "its data.pkl is damaged"),
        ((1,) * 65, (1,) * 65, 0, "its data.pkl is damaged"),
    ],
)
def test_tensors_outside_of_their_storage(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, message: str) -> None:
    assert refusal(lambda: read(tensor(shape, stride, offset))) == message


DAMAGED = "its data.pkl is damaged"
ENDLESS = "its values are nested too deeply, or repeated too often"
PLAIN = "it holds more than tensors and plain values: "
BODIES: dict[str, tuple[bytes, str]] = {
    "a function": (b"cos\nsystem\n" + unicode("true") + b"\x85R", f"{PLAIN}'os.system'"),
    "a function by its words": (unicode("os") + unicode("system") + b"\x93", "its data.pkl has the instruction STACK_GLOBAL, which "),
    "a function of torch": (b"ctorch\nload\n", f"{PLAIN}'torch.load'"),
    "a dotted name": (b"ctorch\nStorage.__init__\n", f"{PLAIN}'torch.Storage.__init__'"),
    "a sparse tensor": (b"ctorch._utils\n_rebuild_sparse_tensor\n", f"{PLAIN}'torch._utils._rebuild_sparse_tensor'"),
    "an object": (b"cos\nsystem\n)\x81", f"{PLAIN}'os.system'"),
    "an object of a known class": (b"ccollections\nOrderedDict\n)\x81", "its data.pkl has the instruction NEWOBJ, which "),
    "an old object": (b"(ios\nsystem\n", "its data.pkl has the instruction INST, which "),
    "an object by its number": (b"\x82\x01", "its data.pkl has the instruction EXT1, which "),
    "a name that steers a terminal": (b"cos\n\x1b[31m\n", f"{PLAIN}'os.\\x1b[31m'"),
    "a class as a value": (b"ctorch\nFloatStorage\n", "it holds a class or a storage as a value"),
    "a function as a value": (b"ctorch._utils\n_rebuild_tensor_v2\n", "it holds a class or a storage as a value"),
    "a storage as a value": (storage(), "it holds a class or a storage as a value"),
    "a call of a class": (b"ctorch\nFloatStorage\n)R", DAMAGED),
    "a call of a number": (b"K\x01)R", DAMAGED),
    "a call with a list": (b"ctorch\nSize\n]R", DAMAGED),
    "a dictionary made of a list": (b"ccollections\nOrderedDict\n](K\x01K\x02ea\x85R", DAMAGED),
    "a counter of words": (b"ccollections\nCounter\n}" + unicode("a") + unicode("b") + b"s\x85R", DAMAGED),
    "a size of words": (b"ctorch\nSize\n" + unicode("a") + b"\x85\x85R", DAMAGED),
    "a device of a number": (b"ctorch\ndevice\nK\x01\x85R", DAMAGED),
    "a parameter of a number": (b"ctorch._utils\n_rebuild_parameter\n(K\x01\x88}tR", DAMAGED),
    "hooks of a tensor": (tensor((10,), (1,), hooks=b"}K\x01K\x02s"), DAMAGED),
    "attributes": (b"}}" + unicode("keys") + b"K\x01sb", "it holds an object with attributes of its own"),
    "methods hidden": (
        b"ccollections\nOrderedDict\n)R}" + unicode("items") + b"K\x01sb",
        "it holds an object with attributes of its own",
    ),
    "a key that is a list": (b"}]K\x01s", "it has 'list' as a key: only strings and integers can be keys"),
    "a key that is a fraction": (b"}G" + struct.pack(">d", 0.5) + b"K\x01s", "it has 0.5 as a key: only strings and "),
    "a large key": (b"}\x8a\x09" + (2**31).to_bytes(9, "little") + b"K\x01s", "it has 2147483648 as a key: only strings and "),
    "a large storage": (
        storage(length=b"\x8a\x08" + (2**62).to_bytes(8, "little")),
        "its storage '0' should have 18,446,744,073,709,551,616 b",
    ),
    "a short storage": (storage(length=b"K\x09"), "its storage '0' should have 36 bytes and does not"),
    "a storage of less than nothing": (storage(length=b"J\xff\xff\xff\xff"), DAMAGED),
    "a storage that is not there": (storage(key="../1"), "its storage '../1' should have 40 bytes and does not"),
    "a storage of another kind": (storage(kind="ComplexFloatStorage"), f"{PLAIN}'torch.ComplexFloatStorage'"),
    "a storage twice": (
        storage() + storage(kind="DoubleStorage", length=b"K\x05") + b"\x86",
        "its storage '0' is used as two kinds of numbers",
    ),
    "a reference to elsewhere": (unicode("http://x") + b"Q", DAMAGED),
    "nothing": (b"", DAMAGED),
    "two values": (b"NN", DAMAGED),
    "a mark that stays": (b"(N", DAMAGED),
    "a mark that is missing": (b"Nt", DAMAGED),
    "a tuple of too much": (b"N\x87", DAMAGED),
    "a list that is none": (b"}Na", DAMAGED),
    "a key without a value": (b"}(Nu", DAMAGED),
    "a memo that is empty": (b"h\x01", DAMAGED),
    "a memo of nothing": (b"q\x01", DAMAGED),
    "a memo far out": (b"Nr\xff\xff\xff\x7f", DAMAGED),
    "a word without an end": (b"X\xff\xff\xff\x7fabc", DAMAGED),
    "another protocol": (b"0\x80\x04N", "its data.pkl has the instruction POP, which torch.save does not write"),
    "a second start": (b"N\x80\x02", "its data.pkl declares its protocol after its start, which torch.save does not do"),
    "deep lists": (b"]" * (MAX_DEPTH + 2) + b"a" * (MAX_DEPTH + 1), ENDLESS),
    "very deep tuples": (b")" + b"\x85" * 100_000, ENDLESS),
    "a list in itself": (b"]q\x01h\x01a", ENDLESS),
    "a billion laughs": (b")" + b"q\x01h\x01\x86" * 40, ENDLESS),
    "laughs in attributes": (
        b"ccollections\nOrderedDict\n)R}" + unicode("_metadata") + b")" + b"q\x01h\x01\x86" * 40 + b"sb",
        ENDLESS,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_everything_else_is_refused(name: str) -> None:
    body, message = BODIES[name]
    assert refusal(lambda: read(body)).startswith(message)


def test_beginning_and_end() -> None:
    for data in (b"", b"\x80", b"\x80\x02", b"N", b"\x80\x02N", b"\x80\x02N..", b"\x80\x02N.N", b"\x80\x02N.\x00"):
        assert refusal(lambda data=data: read_pickle(data, {})) == DAMAGED
    for protocol in (0, 3, 5, 255):
        expected = f"its data.pkl is of protocol {protocol}, and torch.save writes 2"
        data = bytes([0x80, protocol]) + b"N."
        assert refusal(lambda data=data: read_pickle(data, {})) == expected


def test_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    data, parts = saved({"a": list(range(100))})
    monkeypatch.setattr(pickles, "MAX_OPCODES", 100)
    assert refusal(lambda: read_pickle(data, parts)) == "its data.pkl has more than 100 instructions"
    monkeypatch.setattr(pickles, "MAX_BYTES", 200)
    assert refusal(lambda: read_pickle(data, parts)) == "its data.pkl is longer than 200 bytes"


@pytest.mark.parametrize("call", [b"(%stR", b"%s\x85R", b"(%stR0N"])
def test_nothing_is_called(call: bytes, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    body = b"cos\nmkdir\n" + call % unicode(str(canary))
    assert refusal(lambda: read(body)) == f"{PLAIN}'os.mkdir'"
    assert not canary.exists()
    pickle.loads(b"\x80\x02" + body + b".")
    assert canary.exists()  # so it would have been called
