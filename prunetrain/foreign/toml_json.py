"""Read settings in TOML and JSON: no NaN or infinity in JSON, no duplicate keys, nothing deep or huge.

In: text. Out: plain values. Invalid TOML or JSON raises the parser's own error, which names the line.
"""

import json
import tomllib
from math import isinf
from typing import Any, Final

from prunetrain.foreign.refusal import RefusedFileError, quoted

MAX_BYTES: Final = 2**16  # of a file of settings; Python's TOML reader takes quadratic time for hostile ones
_MAX_DEPTH: Final = 20
_LARGEST: Final = 2**63 - 1


def read_toml(text: str) -> object:
    """Read the values of a TOML file.

    Raises:
        tomllib.TOMLDecodeError: if it is not valid TOML.
        RefusedFileError: for values that are nested too deeply, or too large.
    """
    try:
        return _check_nesting(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError, OverflowError):  # such as for a number of 5,000 digits
        raise RefusedFileError("a number or a nesting in it is too large to read") from None


def read_json(text: str | bytes) -> object:
    """Read the values of a JSON file.

    Raises:
        json.JSONDecodeError: if it is not valid JSON.
        RefusedFileError: for a duplicate key, Infinity and NaN, and values that are nested too deeply, or too large.
    """
    try:
        return _check_nesting(json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_parse_finite))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (ValueError, RecursionError):
        raise RefusedFileError("a number or a nesting in it is too large to read") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise RefusedFileError(f"{quoted(key)} appears twice")
        table[key] = value
    return table


def _refuse_constant(word: str) -> float:
    raise RefusedFileError(f"{word} is not allowed as a number")


def _parse_finite(word: str) -> float:
    number = float(word)
    if isinf(number):
        raise RefusedFileError(f"{quoted(word)} is too large a number")
    return number


def _check_nesting(value: object) -> object:
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise RefusedFileError("its tables and lists are nested too deeply")
        if isinstance(part, int) and abs(part) > _LARGEST:
            raise RefusedFileError("a whole number in it is beyond 64 bits")
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        waiting.extend((inner, depth + 1) for inner in parts)
    return value
