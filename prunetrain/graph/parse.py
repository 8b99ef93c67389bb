"""Parse the text of a network file into a LayerGraph. Only the syntax tree is read: the file never runs.

Only what `render` writes is accepted: imports of torch, one class whose `__init__` defines layers with literal arguments, and a `forward`
of known calls line by line. Anything else is a NetworkFileError with file and line. Formatting, comments and the names of local variables
are free, so you may edit a file by hand.
"""

import ast
import re
from functools import lru_cache
from typing import Final

from prunetrain.graph.expressions import annotation
from prunetrain.graph.layergraph import GraphError, LayerGraph
from prunetrain.graph.parse_definitions import Definitions
from prunetrain.graph.parse_expressions import Expressions
from prunetrain.graph.parse_forward import INPUT_NAME, Forward
from prunetrain.graph.parse_source import IMPORTS, Source
from prunetrain.graph.shapes import check_shapes

MAX_BYTES: Final = 2_000_000  # a syntax tree takes a thousand times as much memory; the largest file of a real network has 100,000
_INPUT: Final = re.compile(r"Input (\d{1,6}(?:x\d{1,6})*)\.")


def parse(source: str, filename: str = "<network>") -> LayerGraph:
    """Return the graph of a network file.

    Args:
        source: the file's text.
        filename: the file's name in error messages.

    Raises:
        NetworkFileError: if the text is anything but a network as `render` writes it, or its shapes do not fit; with file and line.
    """
    return _parsed(source, filename)


@lru_cache(maxsize=2)  # a run's dense network, and its newest, which is parsed when it is read and again before it is executed
def _parsed(source: str, filename: str) -> LayerGraph:
    place = Source(filename)
    if len(source) > MAX_BYTES:
        place.fail(1, f"too long for a network file: {len(source):,} characters, at most {MAX_BYTES:,}")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        place.fail(getattr(error, "lineno", 1) or 1, f"not Python: {getattr(error, 'msg', error)}")
    try:
        return _module(place, list(tree.body))
    except RecursionError:
        place.fail(place.line, "nested too deeply for a network file")


def _module(source: Source, body: list[ast.stmt]) -> LayerGraph:
    input_shape = _docstring(source, body.pop(0) if body else None)
    while body and isinstance(body[0], (ast.Import, ast.ImportFrom)):
        statement = body.pop(0)
        line = ast.unparse(statement)
        if line not in IMPORTS:
            source.fail(statement, f"a network file may import only torch, not: {line}")
        source.imported.update(IMPORTS[line])
    if not body or not isinstance(body[0], ast.ClassDef):
        source.fail(body[0] if body else 1, "expected the class of the network")
    if len(body) > 1:
        source.fail(body[1], "nothing may follow the class of the network")
    return _class(source, body[0], input_shape)


def _docstring(source: Source, statement: ast.stmt | None) -> tuple[int, ...]:
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            found = _INPUT.search(text)
            if found:
                return tuple(map(int, found[1].split("x")))
    source.fail(statement or 1, 'expected a docstring that names the input, such as "Input 3x32x32."')


def _class(source: Source, node: ast.ClassDef, input_shape: tuple[int, ...]) -> LayerGraph:
    plain = [ast.unparse(base) for base in node.bases] == ["nn.Module"] and not node.keywords and not node.decorator_list
    if not plain or getattr(node, "type_params", []):
        source.fail(node, "the class must be a plain subclass of nn.Module")
    source.check_imported(node, "nn")
    match node.body:
        case [ast.FunctionDef(name="__init__") as init, ast.FunctionDef(name="forward") as forward]:
            _check_signature(source, init, "self", "None")
            _check_signature(source, forward, f"self, {INPUT_NAME}: Tensor", "Tensor")
            _check_annotation(source, init, "None")
        case _:
            source.fail(node, "the class must hold __init__ and forward, and nothing else")
    definitions = Definitions(source)
    definitions.read(init)
    expressions = Expressions(source, definitions)
    read = Forward(source, expressions)
    read.read(forward)
    _check_annotation(source, forward, annotation(len(read.outputs), auxiliary=bool(read.auxiliary)))
    lines: dict[int | str | None, int] = {None: node.lineno} | dict(definitions.lines) | dict(enumerate(expressions.lines))
    try:
        graph = LayerGraph(
            node.name,
            input_shape,
            tuple(definitions.layers.values()),
            tuple(expressions.steps),
            read.outputs[0],
            tuple(definitions.declared.values()),
            read.outputs[1:],
            read.auxiliary,
        )
        check_shapes(graph)
    except GraphError as error:
        source.fail(lines[error.part], str(error))
    return graph


def _check_signature(source: Source, node: ast.FunctionDef, arguments: str, returns: str) -> None:
    if ast.unparse(node.args) != arguments or node.decorator_list or getattr(node, "type_params", []):
        source.fail(node, f"expected: def {node.name}({arguments}) -> {returns}")


def _check_annotation(source: Source, node: ast.FunctionDef, returns: str) -> None:
    if node.returns is None or ast.unparse(node.returns) != returns:
        source.fail(node, f"expected: def {node.name}({ast.unparse(node.args)}) -> {returns}")
