"""Damage to text: network files by token and by statement, settings in TOML and JSON, lines of metrics."""

import io
import json
import random
import tokenize
from collections.abc import Callable
from typing import Any

from fuzz_bytes import FLOATS, NUMBERS, WORDS, spoil

_LITERALS = (
    "2_000_000_000",
    "10**9",
    "-1",
    "0",
    "1e9",
    "9" * 5000,
    "0x" + "f" * 5000,
    "True",
    "None",
    "'same'",
    "(1, 2)",
    "()",
    "f'{x}'",
    "1j",
    "...",
    "nan",
    "1e400",
    "2147483647",
)
_WORDS = (
    "self",
    "x",
    "nn",
    "torch",
    "F",
    "super",
    "print",
    "__import__",
    "eval",
    "__class__",
    "\uff4e\uff4e",
    "lambda",
    "yield",
    "await",
    "conv1\u0430",
    "forward",
    "training",
    "del",
    "if",
    ":=",
    "*",
    "@",
    "**",
    "[",
    "(",
    ")",
    ";",
    "\\",
)


def spoil_network(rng: random.Random, source: str, canary: str) -> bytes:
    """Damage one to three things in a network file."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        source = rng.choice((_token, _token, _token, _number, _number, _statement, _statement, _expression, _huge, _line))(
            rng, source, canary
        )
    data = source.encode("utf-8", "surrogatepass")
    choice = rng.random()
    if choice < 0.2:
        return spoil(rng, data)
    return (
        data if choice > 0.3 else rng.choice((b"\xef\xbb\xbf", b"# -*- coding: utf-7 -*-\n", b"\x00", b"\xff\xfe", b"\x0c", b"\r")) + data
    )


def _tokens(source: str) -> list[tuple[int, int, str]]:
    """Start, end and text of every token."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    try:
        found = list(tokenize.generate_tokens(io.StringIO(source).readline))
        places = [(starts[t.start[0] - 1] + t.start[1], starts[t.end[0] - 1] + t.end[1], t.string) for t in found if t.string.strip()]
    except (tokenize.TokenError, SyntaxError, IndexError):
        places = []
    return places or [(0, len(source), source)]


def _replace(rng: random.Random, source: str, text: Callable[[], str], only: Callable[[str], bool] = lambda token: True) -> str:
    places = [place for place in _tokens(source) if only(place[2])]
    if not places:
        return source
    start, end, _ = rng.choice(places)
    return source[:start] + text() + source[end:]


def _token(rng: random.Random, source: str, canary: str) -> str:
    other = rng.choice(_tokens(source))[2][:200]
    return _replace(rng, source, lambda: rng.choice((other, other, f"{other} {other}", "", rng.choice(_WORDS), rng.choice(_LITERALS))))


def _number(rng: random.Random, source: str, canary: str) -> str:
    return _replace(rng, source, lambda: rng.choice((*_LITERALS, *map(str, NUMBERS))), only=lambda token: token[0].isdigit())


def _code(rng: random.Random, canary: str) -> str:
    touch = f"open({canary!r}, 'w').close()"
    spelled = (touch, f"__import__('os').system('touch {canary}')", f"exec({touch!r})", f"[{touch} for _ in '1']", f"(y := {touch})")
    return rng.choice(spelled)


def _statement(rng: random.Random, source: str, canary: str) -> str:
    code = _code(rng, canary)
    forms = (
        code,
        f"x = {code}",
        f"self.a = {code}",
        f"if {code}: pass",
        f"assert {code}",
        f"@(lambda f: {code})",
        f"def f(a={code}): pass",
        f"import os; {code}",
        f"class A(metaclass=lambda *a: {code}): pass",
        f"try:\n    {code}\nfinally: pass",
        f"del x[{code}]",
        f"x: {code} = 1",
        f"raise {code}",
        f"match {code}:\n    case _: pass",
    )
    lines = source.splitlines(keepends=True) or [""]
    place = rng.randrange(len(lines))
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())].strip("\r\n")
    form = rng.choice(forms).replace("\n", f"\n{indent}")
    return "".join([*lines[:place], f"{indent}{form}\n", *lines[place:]])


def _expression(rng: random.Random, source: str, canary: str) -> str:
    """Replace a number, a name or a string by code."""
    code = _code(rng, canary)
    return _replace(rng, source, lambda: rng.choice((code, f"({code})", f"f'{{{code}}}'", f"*[{code}]", f"x if {code} else x")))


def _huge(rng: random.Random, source: str, canary: str) -> str:
    count = rng.choice((30, 300, 3000))
    texts = (
        "(" * count + "x" + ")" * count,
        "-" * count + "1",
        "x" + ".a" * count,
        "x" + "[0]" * count,
        "x" + " + x" * count,
        "'" + "a" * count * 20 + "'",
        "(" + "1, " * count + ")",
        "F.relu(" * count + "x" + ")" * count,
    )
    return _replace(rng, source, lambda: rng.choice(texts))


def _line(rng: random.Random, source: str, canary: str) -> str:
    lines = source.splitlines(keepends=True) or [""]
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    changed: tuple[list[str], ...] = (
        [],
        [lines[other]],
        [lines[place]] * rng.choice((2, 500)),
        [lines[place].rstrip() + f"  # {rng.choice(WORDS)}\n"],
    )
    return "".join([*lines[:place], *rng.choice(changed), *lines[place + 1 :]])


def spoil_settings(rng: random.Random, text: str) -> bytes:
    """Damage one thing in a file of settings."""
    choice = rng.random()
    if choice < 0.4:
        return spoil(rng, text.encode())
    values = (
        *map(str, NUMBERS),
        "9" * 5000,
        "0x" + "f" * 5000,
        "NaN",
        "nan",
        "Infinity",
        "-inf",
        "1e999",
        "null",
        "true",
        "[]",
        "{}",
        '"' + "\\u0000" * 3 + '"',
        "[" * 5000,
        "{a." * 20,
        "1979-05-27",
        '"x"',
        "'''",
        "[1, [2, [3]]]",
        "1_000",
    )
    if choice < 0.8:
        return _replace(rng, text, lambda: rng.choice(values)).encode()
    lines = text.splitlines(keepends=True)
    keys = (
        "epochs",
        "model",
        "data-dir",
        "output_dir",
        "name",
        "weights",
        "model-args",
        "milestones",
        "lr",
        "__class__",
        "a" * 1000,
        ".".join("a" * 500),
    )
    lines.insert(rng.randrange(len(lines) + 1), rng.choice((f"{rng.choice(keys)} = {rng.choice(values)}\n", lines[0], "a" * 70_000)))
    return "".join(lines).encode()


def spoil_metrics(rng: random.Random, data: bytes) -> bytes:
    """Damage one thing in lines of metrics."""
    if rng.random() < 0.4:
        return spoil(rng, data)
    lines: list[Any] = [json.loads(line) for line in data.splitlines()]
    line = rng.choice(lines)
    key = rng.choice(list(line))
    value: Any = rng.choice((None, "x", [], {"a": 1}, True, rng.choice(NUMBERS), 10**400, rng.choice(FLOATS), rng.choice(WORDS)))
    if rng.random() < 0.2:
        del line[key]
    else:
        line[key] = value
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
