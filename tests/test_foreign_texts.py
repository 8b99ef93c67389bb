"""Opening files of strangers, settings in TOML and JSON, words in messages, and how much memory there is."""

import json
import os
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunetrain.errors import ConfigError
from prunetrain.foreign import memory
from prunetrain.foreign.memory import available_memory, format_bytes
from prunetrain.foreign.opening import open_regular, read_bytes, read_text
from prunetrain.foreign.refusal import RefusedFileError, printable, quoted
from prunetrain.foreign.toml_json import MAX_BYTES, read_json, read_toml
from prunetrain.training.recipes import load_config_file


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedFileError) as caught:
        call()
    assert str(caught.value).isprintable()
    return str(caught.value)


# Opening.


def test_regular_files_are_read_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"caf\xc3\xa9\r\n")
    (tmp_path / "b").symlink_to("a")
    assert read_bytes(tmp_path / "a", 7) == read_bytes(tmp_path / "b", 100) == b"caf\xc3\xa9\r\n"
    assert read_text(tmp_path / "a", 7) == "caf\u00e9\r\n"
    assert refusal(lambda: read_text(tmp_path / "a", 6)) == "it is longer than 6 bytes"


def test_pipes_sockets_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        assert refusal(lambda path=path: open_regular(path)) == "it is not a regular file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="No such device or address"):
            open_regular(tmp_path / "socket")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(10):
        refusal(lambda: open_regular(Path("/dev/zero")))
        with pytest.raises(IsADirectoryError):
            open_regular(tmp_path)
    assert len(os.listdir("/dev/fd")) == before


def test_a_sparse_file_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 10**13)
    assert refusal(lambda: read_bytes(tmp_path / "a", 1000)) == "it is longer than 1,000 bytes"


# Settings.


def test_plain_settings() -> None:
    expected = {"epochs": 3, "lr": 0.1, "milestones": [1, 2], "deep": {"a": [[]]}, "big": 2**63 - 1, "small": 1e-300}
    assert read_json(json.dumps(expected)) == expected
    assert read_toml(f"epochs = 3\nlr = 0.1\nmilestones = [1, 2]\ndeep.a = [[]]\nbig = {2**63 - 1}\nsmall = 1e-300\n") == expected


TOO_LARGE = "a number or a nesting in it is too large to read"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"b": [{"a": 1, "\\u001b": 2, "\\u001b": 3}]}', "'\\x1b' appears twice"),
        ('{"a": NaN}', "NaN is not allowed as a number"),
        ('{"a": Infinity}', "Infinity is not allowed as a number"),
        ("[-Infinity]", "-Infinity is not allowed as a number"),
        ("[1e999]", "'1e999' is too large a number"),
        ("[-" + "9" * 1000 + ".0]", f"'-{'9' * 59}...' is too large a number"),
        ("9" * 5000, TOO_LARGE),
        (str(2**63), "a whole number in it is beyond 64 bits"),
        (f'{{"a": [{-(2**64)}]}}', "a whole number in it is beyond 64 bits"),
        ("[" * 22 + "]" * 22, "its tables and lists are nested too deeply"),
        ('{"a":' * 30 + "1" + "}" * 30, "its tables and lists are nested too deeply"),
        ("[" * 60_000, TOO_LARGE),
        ('{"a":' * 10_000, TOO_LARGE),
    ],
    ids=lambda value: "",
)
def test_json_that_is_refused(text: str, message: str) -> None:
    assert refusal(lambda: read_json(text)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a = {2**63}", "a whole number in it is beyond 64 bits"),
        ("a = 0x" + "f" * 5000, "a whole number in it is beyond 64 bits"),
        ("a = " + "[" * 22 + "]" * 22, "its tables and lists are nested too deeply"),
        (".".join("a" * 30) + " = 1", "its tables and lists are nested too deeply"),
        ("a = " + "[" * 30_000, TOO_LARGE),
        ("a = " + "9" * 5000, TOO_LARGE),
        ("a = " + "{b = " * 10_000, TOO_LARGE),
    ],
    ids=lambda value: "",
)
def test_toml_that_is_refused(text: str, message: str) -> None:
    assert refusal(lambda: read_toml(text)) == message


def test_what_breaks_the_language_is_left_to_its_reader() -> None:
    for text in ("a = 1\na = 2", "a.b = 1\na = 2", "[a]\n[a]", "a =", "\x00"):
        with pytest.raises(tomllib.TOMLDecodeError):
            read_toml(text)
    for text in ("", "{", "{'a': 1}", "[1,]", "01", "\x00"):
        with pytest.raises(json.JSONDecodeError):
            read_json(text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"#" * (MAX_BYTES + 1), "it is longer than 65,536 bytes"),
        ("a.json", b" " * (MAX_BYTES + 1), "it is longer than 65,536 bytes"),
        ("a.json", b'{"lr": NaN}', "NaN is not allowed as a number"),
        ("a.toml", b"a = 0x" + b"f" * 1000, "a whole number in it is beyond 64 bits"),
        ("a.toml", b"a = " + b"9" * 5000, TOO_LARGE),
        ("a.json", b"{", "not valid JSON: "),
        ("a.json", b'{"\xff": 1}', "not a text file in UTF-8"),
    ],
)
def test_config_files_name_themselves(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config_file(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).isprintable()


def test_a_config_file_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"a\.toml: it is not a regular file$"):
        load_config_file(tmp_path / "a.toml")


# Words of strangers in messages.


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a", "'a'"),
        ("a\nb", r"'a\nb'"),
        ("\x1b[31mred", r"'\x1b[31mred'"),
        ("\u202eabc", r"'\u202eabc'"),
        ("\ud800", r"'\ud800'"),
        ("a" * 61, f"'{'a' * 60}...'"),
        (3, "3"),
        (None, "None"),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
        (list(range(1000)), str(list(range(1000)))[:197] + "..."),
    ],
    ids=lambda value: "",
)
def test_shown(word: object, expected: str) -> None:
    assert quoted(word) == expected
    assert expected.isprintable()


def test_printable() -> None:
    assert printable("conv1.weight caf\u00e9") == "conv1.weight caf\u00e9"
    assert printable("a\r\n\t b\x1b[2J\u202e\ud800") == r"a b\x1b[2J\u202e\ud800"
    assert printable(" my  photo\u202f3\u00a0\u3000.png \n\n  more\tof\n\x1bit") == "my  photo\u202f3\u00a0\u3000.png more\\tof \\x1bit"


# Memory.


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the files in which a system says how much memory there is: 64 MB of 128 MB, and no container."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    containers = tuple((tmp_path / f"{version}.limit", tmp_path / f"{version}.use") for version in "ab")
    monkeypatch.setattr(memory, "_CONTAINERS", containers)
    (tmp_path / "meminfo").write_text("MemTotal: 131072 kB\nMemFree: 1 kB\nMemAvailable: 65536 kB\n")
    return tmp_path


def test_memory_of_a_machine(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory() == 2**26
    for content in ("MemTotal: 131072 kB\n", None):
        (machine / "meminfo").unlink() if content is None else (machine / "meminfo").write_text(content)
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}.get)
        assert available_memory() == 40_960


@pytest.mark.parametrize(
    ("limit", "use", "expected"),
    [
        ("max", "1000", 2**26),
        ("10000000", "1000000", 9_000_000),
        ("10000000", "9999999", 2_500_000),  # most of that is files, which make room
        ("9223372036854771712", "1000", 2**26),  # how the first version says that there is no limit
    ],
)
@pytest.mark.parametrize("version", ["a", "b"])
def test_memory_of_a_container(machine: Path, version: str, limit: str, use: str, expected: int) -> None:
    (machine / f"{version}.limit").write_text(f"{limit}\n")
    (machine / f"{version}.use").write_text(f"{use}\n")
    assert available_memory() == expected


def test_this_machine_has_some() -> None:
    assert 2**20 < available_memory() < 2**50


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1_234_567, "1.2 MB"),
        (20_000_000, "20 MB"),
        (1_590_000_000, "1.5 GB"),
        (256 * 10**12, "256 TB"),
        (10**17, "100 PB"),
        (10**18, "over 1,000 PB"),
        (10**100, "over 1,000 PB"),
    ],
)
def test_readable(size: int, expected: str) -> None:
    assert format_bytes(size) == expected
