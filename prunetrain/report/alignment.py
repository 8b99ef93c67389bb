"""Aligning the network files of a run, so that any two of them can be shown side by side. In: their texts. Out: `AlignedFiles`.

All files are merged into one list of rows: a row holds the lines for the same layer or statement in every file that has it. So a page
stores each line once, and comparing two files means picking two columns.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

_COMMENT = re.compile(r"  # .*")
_NUMBER = re.compile(r"\b\d[\d.,]*\b")

ABSENT = -1


@dataclass(frozen=True)
class AlignedFiles:
    """`texts`: every distinct line, once. `rows[version][row]`: the index of a line in `texts`, or `ABSENT`."""

    texts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]


def align_files(sources: Sequence[str]) -> AlignedFiles:
    """Align the texts of files, the oldest first."""
    indices: dict[str, int] = {}
    keys: list[str] = []  # of the rows
    rows: list[list[int]] = []  # of the files so far, all of the same length
    for source in sources:
        lines = source.splitlines()
        column, inserted = _place(keys, [_key(line) for line in lines])
        numbers = [ABSENT if place == ABSENT else indices.setdefault(lines[place], len(indices)) for place in column]
        for row in inserted:
            keys.insert(row, _key(lines[column[row]]))
            for older in rows:
                older.insert(row, ABSENT)
        keys = [_key(lines[place]) if place != ABSENT else key for place, key in zip(column, keys, strict=True)]
        rows.append(numbers)
    return AlignedFiles(tuple(indices), tuple(map(tuple, rows)))


def _place(keys: list[str], lines: list[str]) -> tuple[list[int], list[int]]:
    """For every row, old or new, the place of its line in a file, or `ABSENT`; and the numbers of the new rows, in order."""
    column: list[int] = []
    inserted: list[int] = []
    for row, place in _pairs(keys, lines):
        if row == ABSENT:
            inserted.append(len(column))
        column.append(place)
    return column, inserted


def _pairs(keys: list[str], lines: list[str]) -> Iterator[tuple[int, int]]:
    """Rows and the places of their lines, in order; `ABSENT` where there is none."""
    for tag, first, last, start, end in SequenceMatcher(None, keys, lines, autojunk=False).get_opcodes():
        if tag != "replace":
            yield from zip_longest(range(first, last), range(start, end), fillvalue=ABSENT)
            continue
        old, new = [_subject(key) for key in keys[first:last]], [_subject(line) for line in lines[start:end]]
        for same, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            rows, places = range(first + a, first + b), range(start + c, start + d)
            if same == "equal":
                yield from zip(rows, places, strict=True)
            else:
                yield from zip_longest(rows, (), fillvalue=ABSENT)
                yield from zip_longest((), places, fillvalue=ABSENT)


def _subject(key: str) -> str:
    """What a statement is about: the name that it assigns, or what stands before its first comma."""
    return key.partition(" = ")[0] if " = " in key else key.partition(",")[0]


def _key(line: str) -> str:
    """A line without its comment and numbers: lines with the same key are the same layer or statement, of different sizes."""
    return _NUMBER.sub("#", _COMMENT.sub("", line))
