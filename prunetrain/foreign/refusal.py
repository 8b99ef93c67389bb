"""How every check of this package refuses a file."""


class RefusedFileError(Exception):
    """What is wrong with a file, on one line and without its name; whoever reads it adds that, and what to do."""


def printable(text: str) -> str:
    """Words out of a foreign file on one line; what could steer a terminal is escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in " ".join(text.split()))


def shown(word: object) -> str:
    """A word out of a foreign file as an error message may have it: quoted, escaped, and short."""
    if isinstance(word, str):
        return repr(word[:60] + "..." if len(word) > 60 else word)
    text = printable(repr(word))
    return text if len(text) <= 200 else text[:197] + "..."
