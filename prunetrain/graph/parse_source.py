"""What every part of the parser shares: the current line, errors and literals."""

import ast
from collections.abc import Iterable, Iterator
from typing import Final, NoReturn

from prunetrain.errors import NetworkFileError
from prunetrain.foreign.refusal import shortened
from prunetrain.graph.signatures import Literal, is_integer

LARGEST: Final = 2**31 - 1  # of a whole number
IMPORTS: Final = {  # the only import lines that are allowed, and the names that they define
    "import torch": ("torch",),
    "from torch import Tensor, nn": ("Tensor", "nn"),
    "from torch.nn import functional as F": ("F",),
}


class Source:
    """A file that is being parsed: its name, the names that it has imported, and the line of the current statement."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.imported: set[str] = set()
        self.line = 1

    def fail(self, line: int | ast.AST, message: str) -> NoReturn:
        """Refuse the file.

        Args:
            line: the line, or a node in it.
            message: what is wrong there.

        Raises:
            NetworkFileError: always.
        """
        number = line if isinstance(line, int) else getattr(line, "lineno", 1)
        raise NetworkFileError(f"{self.filename}:{number}: {message}")

    def check_imported(self, node: ast.AST, name: str) -> None:
        """Check that a name which the file uses is imported.

        Raises:
            NetworkFileError: if it is not.
        """
        if name not in self.imported:
            wanted = next(line for line, names in IMPORTS.items() if name in names)
            self.fail(node, f"{name} is not imported: {wanted}")

    def literal(self, node: ast.expr) -> Literal:
        """Return a number, string, None or tuple of them.

        Raises:
            NetworkFileError: for other expressions, and whole numbers beyond 32 bits.
        """
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            self.fail(node, f"expected a literal, not {code_excerpt(node)}")
        if not isinstance(value, (int, float, bool, str, tuple, type(None))):
            self.fail(node, f"expected a number, string or tuple, not {code_excerpt(node)}")
        if any(isinstance(number, int) and abs(number) > LARGEST for number in _flat(value)):
            self.fail(node, f"a number beyond 32 bits: {code_excerpt(node)}")
        return value

    def integers(self, nodes: Iterable[ast.expr]) -> tuple[int, ...]:
        """Return the values of nodes that must be whole numbers.

        Raises:
            NetworkFileError: for anything else.
        """
        found = []
        for node in nodes:
            value = self.literal(node)
            if not isinstance(value, int) or not is_integer(value):
                self.fail(node, f"expected a whole number, not {code_excerpt(node)}")
            found.append(value)
        return tuple(found)

    def arguments(self, call: ast.Call, names: tuple[str, ...]) -> list[tuple[str, ast.expr]]:
        """Return the arguments of a call with the names of their parameters.

        Raises:
            NetworkFileError: for arguments that are too many, unknown or repeated.
        """
        if len(call.args) > len(names):
            self.fail(call, f"too many arguments: {code_excerpt(call)}")
        given = [*zip(names, call.args, strict=False), *((keyword.arg or "**", keyword.value) for keyword in call.keywords)]
        for name, _ in given:
            if [n for n, _ in given].count(name) > 1 or name not in names:
                self.fail(call, f"unknown or repeated argument {name!r}: {code_excerpt(call)}")
        return given


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def code_excerpt(node: ast.AST) -> str:
    """Return the code of a node, short enough for a message."""
    try:
        text = ast.unparse(node).splitlines()[0]
    except ValueError:  # for a number of 5,000 digits, or an f-string that ast.unparse cannot write
        text = f"code that cannot be shown ({type(node).__name__})"
    return shortened(text, 80)
