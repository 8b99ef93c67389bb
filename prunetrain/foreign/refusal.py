"""The error by which every check of this package refuses a file, and how it quotes the file."""

from unicodedata import category


class RefusedFileError(Exception):
    """What is wrong with a file, on one line and without its name; the caller adds the name, and what to do."""


def printable(text: str) -> str:
    """Return text from a foreign file on one line, with characters that could control a terminal escaped.

    Spaces stay as they are, also several in a row and other kinds of them: they belong to the names of files.
    """
    lines = (line.strip() for line in text.splitlines())
    flat = " ".join(line for line in lines if line)
    return "".join(letter if letter.isprintable() or category(letter) == "Zs" else _escaped(letter) for letter in flat)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def quoted(word: object) -> str:
    """Return a word from a foreign file as error messages show it: quoted, escaped, and short."""
    if isinstance(word, str):
        return repr(word[:60] + "..." if len(word) > 60 else word)
    return shortened(printable(repr(word)))


def one_line(error: BaseException) -> str:
    """Return the message of a library's exception as error messages show it: without line breaks, escaped, and short."""
    return shortened(printable(str(error)) or type(error).__name__)


def shortened(text: str, most: int = 200) -> str:
    """Return a text cut to a readable length, in characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
