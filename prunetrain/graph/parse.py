"""The text of a network file as a LayerGraph. Works on the syntax tree: the file never runs.

Only what `render` writes is accepted: imports of torch, one class whose `__init__` defines layers with literal arguments, and a
straight-line `forward` of known calls. Anything else is a NetworkFileError with file and line. Formatting, comments and the names of local
variables are free, so a person may edit a file.
"""

import ast
import re
from collections.abc import Iterator
from typing import Final, NoReturn

from prunetrain.errors import NetworkFileError
from prunetrain.graph.catalog import FILE_NAMES, FUNCTIONS, LAYERS, OPERATORS, Literal, Signature
from prunetrain.graph.layergraph import (
    TRAINING,
    Argument,
    Attribute,
    Declared,
    GraphError,
    Layer,
    LayerGraph,
    Step,
    Value,
    check_identifier,
)
from prunetrain.graph.shapes import infer_shapes

MAX_BYTES: Final = 10_000_000
_IMPORTS: Final = {  # the only lines of import, and the names that they bring
    "import torch": ("torch",),
    "from torch import Tensor, nn": ("Tensor", "nn"),
    "from torch.nn import functional as F": ("F",),
}
_INPUT: Final = re.compile(r"Input (\d{1,6}(?:x\d{1,6})*)\.")
_OPERATOR_OF: Final = {ast.Add: "+", ast.Mult: "*"}


def parse(source: str, filename: str = "<network>") -> LayerGraph:
    """The graph of a network file.

    Args:
        source: the file's text.
        filename: how error messages call it.

    Raises:
        NetworkFileError: if the text is anything but a network as `render` writes it, or its shapes do not fit; with file and line.
    """
    return _Parser(filename).module(source)


class _Parser:
    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._layers: dict[str, Layer] = {}
        self._declared: dict[str, Declared] = {}
        self._names: dict[str, Value] = {}
        self._steps: list[Step] = []
        self._lines: dict[int | str | None, int] = {}  # where a step (its number), layer or tensor (its name), or the class (None) stands
        self._imported: set[str] = set()
        self._line = 1  # of the statement that is being read

    def fail(self, line: int | ast.AST, message: str) -> NoReturn:
        number = line if isinstance(line, int) else getattr(line, "lineno", 1)
        raise NetworkFileError(f"{self._filename}:{number}: {message}")

    def module(self, source: str) -> LayerGraph:
        if len(source) > MAX_BYTES:
            self.fail(1, "too long for a network file")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self.fail(getattr(error, "lineno", 1) or 1, f"not Python: {getattr(error, 'msg', error)}")
        try:
            return self._module(list(tree.body))
        except RecursionError:
            self.fail(self._line, "nested too deeply for a network file")

    def _module(self, body: list[ast.stmt]) -> LayerGraph:
        input_shape = self._docstring(body.pop(0) if body else None)
        while body and isinstance(body[0], (ast.Import, ast.ImportFrom)):
            statement = body.pop(0)
            line = ast.unparse(statement)
            if line not in _IMPORTS:
                self.fail(statement, f"a network file imports nothing but torch, so not: {line}")
            self._imported.update(_IMPORTS[line])
        if not body or not isinstance(body[0], ast.ClassDef):
            self.fail(body[0] if body else 1, "expected the class of the network")
        if len(body) > 1:
            self.fail(body[1], "nothing may follow the class of the network")
        return self._class(body[0], input_shape)

    def _docstring(self, statement: ast.stmt | None) -> tuple[int, ...]:
        match statement:
            case ast.Expr(value=ast.Constant(value=str(text))):
                found = _INPUT.search(text)
                if found:
                    return tuple(map(int, found[1].split("x")))
        self.fail(statement or 1, 'expected a docstring that names the input, such as "Input 3x32x32."')

    def _class(self, node: ast.ClassDef, input_shape: tuple[int, ...]) -> LayerGraph:
        if (
            [ast.unparse(base) for base in node.bases] != ["nn.Module"]
            or node.keywords
            or node.decorator_list
            or getattr(node, "type_params", [])
        ):
            self.fail(node, "the class must be a plain subclass of nn.Module")
        self._check_imported(node, "nn")
        self._lines[None] = node.lineno
        match node.body:
            case [ast.FunctionDef(name="__init__") as init, ast.FunctionDef(name="forward") as forward]:
                self._signature(init, "def __init__(self) -> None")
                self._signature(forward, "def forward(self, x: Tensor) -> Tensor")
            case _:
                self.fail(node, "the class must hold __init__ and forward, and nothing else")
        self._init(init)
        output = self._forward(forward)
        try:
            graph = LayerGraph(
                node.name, input_shape, tuple(self._layers.values()), tuple(self._steps), output, tuple(self._declared.values())
            )
            infer_shapes(graph)
        except GraphError as error:
            self.fail(self._lines[error.part], str(error))
        return graph

    def _check_imported(self, node: ast.AST, name: str) -> None:
        if name not in self._imported:
            wanted = next(line for line, names in _IMPORTS.items() if name in names)
            self.fail(node, f"{name} is not imported: {wanted}")

    def _signature(self, node: ast.FunctionDef, wanted: str) -> None:
        found = f"def {node.name}({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
        if found != wanted or node.decorator_list or getattr(node, "type_params", []):
            self.fail(node, f"expected: {wanted}")

    def _init(self, node: ast.FunctionDef) -> None:
        if not node.body or ast.unparse(node.body[0]) != "super().__init__()":
            self.fail(node, "__init__ must begin with super().__init__()")
        for statement in node.body[1:]:
            self._line = statement.lineno
            match statement:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Call() as call):
                    self._definition(statement, name, call)
                case _:
                    self.fail(statement, f"__init__ may only define layers, so not: {_shown(statement)}")

    def _definition(self, statement: ast.stmt, name: str, call: ast.Call) -> None:
        if name in self._layers or name in self._declared:
            self.fail(statement, f"self.{name} is defined twice")
        self._lines[name] = statement.lineno
        try:
            check_identifier(name, "layer")
            match call:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="nn"), attr="Parameter"), args=[ast.Call() as zeros], keywords=[]):
                    self._declared[name] = Declared(name, self._zeros_shape(zeros))
                case ast.Call(func=ast.Attribute(value=ast.Name(id="nn"), attr=kind)) if kind in LAYERS:
                    arguments = self._arguments(call, LAYERS[kind], literals_only=True)
                    self._layers[name] = Layer.make(name, kind, **dict(arguments))  # type: ignore[arg-type]
                case _:
                    self.fail(statement, f"not a layer that prunetrain knows: {_shown(call)}")
        except ValueError as error:
            self.fail(statement, f"self.{name}: {error}")

    def _zeros_shape(self, call: ast.Call) -> tuple[int, ...]:
        sizes = [self._literal(argument) for argument in call.args]
        if ast.unparse(call.func) != "torch.zeros" or call.keywords or not sizes or not all(type(s) is int and s > 0 for s in sizes):
            self.fail(call, f"a declared parameter is written nn.Parameter(torch.zeros(SIZES)), not {_shown(call)}")
        self._check_imported(call, "torch")
        return tuple(sizes)  # type: ignore[arg-type]

    def _arguments(self, call: ast.Call, signature: Signature, *, literals_only: bool = False) -> Iterator[tuple[str, Argument]]:
        names = signature.names()
        if len(call.args) > len(names):
            self.fail(call, f"too many arguments: {_shown(call)}")
        given = [*zip(names, call.args, strict=False), *((keyword.arg, keyword.value) for keyword in call.keywords)]
        for name, node in given:
            if name is None or [n for n, _ in given].count(name) > 1 or name not in names:
                self.fail(call, f"unknown or repeated argument {name or '**'!r}: {_shown(call)}")
            yield name, self._literal(node) if literals_only else self._argument(node)

    def _forward(self, node: ast.FunctionDef) -> Value:
        self._names = {"x": Value(0)}
        *statements, last = node.body
        for statement in statements:
            self._line = statement.lineno
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                    if name in FILE_NAMES:
                        self.fail(statement, f"{name} cannot name a local variable")
                    self._names[name] = self._value(expression)
                case ast.Delete(targets=[ast.Name(id=name)]) if name in self._names:
                    del self._names[name]
                case _:
                    self.fail(statement, f"forward may only call layers and functions, line by line, so not: {_shown(statement)}")
        self._line = last.lineno
        match last:
            case ast.Return(value=ast.expr() as expression):
                return self._value(expression)
        self.fail(last, "forward must end with return")

    def _value(self, node: ast.expr) -> Value:
        match node:
            case ast.Name(id=name):
                if name not in self._names:
                    self.fail(node, f"{name} is not defined here")
                return self._names[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATOR_OF:
                target = _OPERATOR_OF[type(op)]
                return self._step(node, target, zip(OPERATORS[target].names(), (self._argument(left), self._argument(right)), strict=True))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)) if name in self._layers:
                return self._step(node, f"self.{name}", self._arguments(node, FUNCTIONS["F.relu"]))
            case ast.Call(func=ast.Attribute(value=ast.Name())) if ast.unparse(node.func) in FUNCTIONS:
                target = ast.unparse(node.func)
                self._check_imported(node, target.partition(".")[0])
                return self._step(node, target, self._arguments(node, FUNCTIONS[target]))
        self.fail(node, f"not a layer or function that prunetrain knows: {_shown(node)}")

    def _step(self, node: ast.expr, target: str, arguments: Iterator[tuple[str, Argument]]) -> Value:
        bound = dict(arguments)  # reads the operands first, so that their steps come before this one
        try:
            self._steps.append(Step.make(target, **bound))
        except ValueError as error:
            self.fail(node, f"{target}: {error}")
        self._lines[len(self._steps) - 1] = node.lineno
        return Value(len(self._steps))

    def _argument(self, node: ast.expr) -> Argument:
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name == TRAINING.name or name in self._declared:
                return Attribute(name)
            case ast.Constant() | ast.Tuple() | ast.UnaryOp():
                return self._literal(node)
        return self._value(node)

    def _literal(self, node: ast.expr) -> Literal:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            self.fail(node, f"expected a literal, not {_shown(node)}")
        if not isinstance(value, (int, float, bool, str, tuple, type(None))):
            self.fail(node, f"expected a number, word or tuple, not {_shown(node)}")
        return value


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) <= 80 else text[:77] + "..."
