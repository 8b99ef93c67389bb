"""The commands that the documents show. In: Markdown. Out: `Shown`: where, and the words as a shell would split them.

Commands are every line of a ```bash, ```console or ```sh block, every line of an indented block that starts with a known program, and code
in a line of text that starts with `prunetrain` or `make` and goes on.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent
DOCUMENTS = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
SHELLS = ("bash", "console", "sh")
PROGRAMS = ("prunetrain", "python", "torchrun", "make", "pip", "diff", "eval", "tensorboard")

_FENCE = re.compile(r"^```(\w*)")
_INLINE = re.compile(r"`((?:prunetrain|make) [^`]+)`")


@dataclass(frozen=True)
class Shown:
    """A command as it stands in a document."""

    document: str
    line: int
    text: str
    inline: bool = False  # within a sentence: words in capitals and dots may stand for something

    @property
    def words(self) -> list[str]:
        """Its words, without the comment behind it and the dots that stand for more."""
        return [word for word in shlex.split(self.text, comments=True) if word not in ("...", "\u2026")]

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


def commands(path: Path) -> Iterator[Shown]:
    """Every command of a document, in order."""
    language: str | None = None
    for number, line in _lines(path):
        if fence := _FENCE.match(line):
            language = None if language is not None else fence[1]
        elif language in SHELLS:
            if text := line.removeprefix("$ ").strip():
                yield Shown(path.name, number, text)
        elif language is None and line.startswith("    "):
            if line.split(maxsplit=1)[0] in PROGRAMS:
                yield Shown(path.name, number, line.strip())
        elif language is None:
            for text in _INLINE.findall(line):
                yield Shown(path.name, number, text, inline=True)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1; one that ends in a backslash goes on in the next."""
    begun: tuple[int, str] | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        start, text = (begun[0], f"{begun[1]} {line.strip()}") if begun else (number, line)
        begun = (start, text[:-1].rstrip()) if text.endswith("\\") else None
        if begun is None:
            yield start, text


def python_blocks(path: Path) -> list[str]:
    """The ```python blocks of a document."""
    return blocks(path, "python")


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of a document that are fenced as of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
