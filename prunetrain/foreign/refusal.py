"""The error by which every check of this package refuses a file, and how it quotes the file."""


class RefusedFileError(Exception):
    """What is wrong with a file, on one line and without its name; the caller adds the name, and what to do."""


def printable(text: str) -> str:
    """Return text from a foreign file on one line, with characters that could control a terminal escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in " ".join(text.split()))


def quoted(word: object) -> str:
    """Return a word from a foreign file as error messages show it: quoted, escaped, and short."""
    if isinstance(word, str):
        return repr(word[:60] + "..." if len(word) > 60 else word)
    text = printable(repr(word))
    return text if len(text) <= 200 else text[:197] + "..."
