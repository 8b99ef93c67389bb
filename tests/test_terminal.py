"""A terminal that closes while a run prints."""

import errno
import io
import sys

import pytest

from prunetrain.report.terminal import console


class Stream(io.StringIO):
    """A terminal; once it has an error, it raises it whenever something is written."""

    error: int | None = None

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.error is not None:
            raise OSError(self.error, "no")
        return super().write(text)


def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """In place of standard output; called by tests themselves, since pytest puts its own back when a test begins."""
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def test_what_is_printed_after_a_terminal_closed_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    output = console()
    assert output.is_terminal
    output.print("before")
    stream.error = errno.EIO
    output.print("after")
    assert "before" in stream.getvalue() and "after" not in stream.getvalue()


def test_other_errors_of_printing_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    stream.error = errno.ENOSPC
    with pytest.raises(OSError, match="no"):
        console().print("text")
