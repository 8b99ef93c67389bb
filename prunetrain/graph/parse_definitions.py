"""Read `__init__`: layers with literal arguments, and tensors that the network declares itself."""

import ast
from dataclasses import replace
from typing import Final

from prunetrain.graph.catalog import LAYERS
from prunetrain.graph.layergraph import DTYPES, FROZEN, Declared, GraphError, Layer, check_identifier
from prunetrain.graph.parse_source import Source, code_excerpt

MAX_POSITIONS: Final = 1_000_000  # of an index
_DECLARATIONS: Final = (
    "nn.Parameter(torch.zeros(SIZES)[, requires_grad=False]), nn.Buffer(torch.zeros(SIZES)) or "
    "nn.Buffer(torch.tensor([POSITIONS]), persistent=False)"
)


class Definitions:
    """What `__init__` defines, and the line of each definition by name."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.layers: dict[str, Layer] = {}
        self.declared: dict[str, Declared] = {}
        self.lines: dict[str, int] = {}

    def read(self, node: ast.FunctionDef) -> None:
        """Read the statements of `__init__`.

        Raises:
            NetworkFileError: for anything but definitions.
        """
        fail = self._source.fail
        if not node.body or ast.unparse(node.body[0]) != "super().__init__()":
            fail(node, "__init__ must begin with super().__init__()")
        for statement in node.body[1:]:
            self._source.line = statement.lineno
            match statement:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Call() as call):
                    self._define(statement, name, call)
                case _:
                    fail(statement, f"__init__ may only define layers, not: {code_excerpt(statement)}")

    def _define(self, statement: ast.stmt, name: str, whole: ast.Call) -> None:
        if name in self.lines:
            self._source.fail(statement, f"self.{name} is defined twice")
        self.lines[name] = statement.lineno
        try:
            check_identifier(name, "layer")
            call = _without_frozen(whole)
            match call:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="nn"), attr="Parameter" | "Buffer" as kind), args=[ast.Call() as tensor]
                ) if call is whole:
                    self.declared[name] = self._declared(name, kind, call, tensor)
                case ast.Call(func=ast.Attribute(value=ast.Name(id="nn"), attr=kind)) if kind in LAYERS:
                    arguments = self._source.arguments(call, LAYERS[kind].names())
                    literals = {argument: self._source.literal(node) for argument, node in arguments}
                    self.layers[name] = replace(Layer.make(name, kind, **literals), trainable=call is whole)
                case _:
                    self._source.fail(statement, f"not a layer that prunetrain knows: {code_excerpt(whole)}")
        except GraphError as error:
            self._source.fail(statement, str(error))
        except ValueError as error:
            self._source.fail(statement, f"self.{name}: {error}")

    def _declared(self, name: str, kind: str, call: ast.Call, tensor: ast.Call) -> Declared:
        self._source.check_imported(call, "torch")
        options = [(keyword.arg, ast.unparse(keyword.value)) for keyword in call.keywords]
        trainable = (kind, options) != ("Parameter", [("requires_grad", "False")])
        plain = not options or not trainable
        match ast.unparse(tensor.func), tensor.args, tensor.keywords:
            case "torch.tensor", [ast.List(elts=positions)], [] if (kind, options) == ("Buffer", [("persistent", "False")]):
                if 0 < len(positions) <= MAX_POSITIONS:
                    return Declared.index(name, self._source.integers(positions))
            case "torch.zeros", [ast.Tuple(elts=[])], keywords if plain:
                return Declared(name, (), kind.lower(), self._dtype(keywords), trainable=trainable)
            case "torch.zeros", [_, *_] as sizes, keywords if plain:
                return Declared(name, self._source.integers(sizes), kind.lower(), self._dtype(keywords), trainable=trainable)
        self._source.fail(call, f"a tensor is declared as {_DECLARATIONS}, not {code_excerpt(call)}")

    def _dtype(self, keywords: list[ast.keyword]) -> str:
        for keyword in keywords:
            match keyword:
                case ast.keyword(arg="dtype", value=ast.Attribute(value=ast.Name(id="torch"), attr=dtype)) if dtype in DTYPES:
                    if len(keywords) == 1:
                        return dtype
            names = ", ".join(f"torch.{name}" for name in DTYPES)
            self._source.fail(keyword.value, f"torch.zeros takes sizes and a dtype ({names}), not {code_excerpt(keyword)}")
        return "float32"


def _without_frozen(call: ast.Call) -> ast.Call:
    """Return a call without a trailing `.requires_grad_(False)`."""
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Call() as inside)) if ast.unparse(call) == ast.unparse(inside) + FROZEN:
            return inside
    return call
