"""Read the expressions of `forward` as steps: calls, operators and subscripts, innermost first."""

import ast
from collections.abc import Iterator, Mapping
from typing import Final

from prunetrain.graph.catalog import LAYERS
from prunetrain.graph.expressions import PLAIN_CALL
from prunetrain.graph.functions import FUNCTIONS, OPERATORS, RESULT_OF
from prunetrain.graph.layergraph import TRAINING, Argument, Attribute, BatchSize, Step, Value, signature_of
from prunetrain.graph.parse_definitions import Definitions
from prunetrain.graph.parse_source import Source, code_excerpt
from prunetrain.graph.signatures import Kind

_OPERATOR_OF: Final = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.MatMult: "@"}


class Expressions:
    """The steps read so far, and their lines."""

    def __init__(self, source: Source, definitions: Definitions) -> None:
        self._source = source
        self._layers = definitions.layers
        self._declared = definitions.declared
        self.steps: list[Step] = []
        self.lines: list[int] = []
        self.names: Mapping[str, Value] = {}  # what can be read at this point

    def value(self, node: ast.expr) -> Value:
        """Add the steps of an expression and return its result.

        Raises:
            NetworkFileError: for anything but known layers, functions, operators and names.
        """
        match node:
            case ast.Name(id=name):
                if name not in self.names:
                    self._source.fail(node, f"{name} is not defined here")
                return self.names[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATOR_OF:
                target = _OPERATOR_OF[type(op)]
                return self._step(node, target, zip(OPERATORS[target].names(), map(self._argument, (left, right)), strict=True))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)) if self._call_of(name) == PLAIN_CALL:
                return self._step(node, f"self.{name}", self._arguments(node, f"self.{name}"))
            case ast.Attribute(value=ast.Call(func=function) as call, attr="values") if RESULT_OF.get(ast.unparse(function)) == ".values":
                return self._function(call, ast.unparse(function))
            case ast.Subscript(value=ast.Call(func=function) as call, slice=ast.Constant(1)) if (
                RESULT_OF.get(ast.unparse(function)) == "[1]"
            ):
                return self._function(call, ast.unparse(function))
            case ast.Call(func=ast.Attribute() as function) if ast.unparse(function) in FUNCTIONS.keys() - RESULT_OF:
                return self._function(node, ast.unparse(function))
            case ast.Subscript(value=ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name), args=[input, *_])) if (
                self._is_special_call(node, name, input)
            ):
                return self._step(node, f"self.{name}", iter([("input", self._argument(input))]))
            case ast.Subscript():
                return self._subscript(node)
        self._source.fail(node, f"not a layer or function that prunetrain knows: {code_excerpt(node)}")

    def _function(self, call: ast.Call, target: str) -> Value:
        self._source.check_imported(call, target.partition(".")[0])
        return self._step(call, target, self._arguments(call, target))

    def _call_of(self, name: str) -> str | None:
        """Return how a layer is called, or None if there is no such layer."""
        return LAYERS[self._layers[name].kind].call if name in self._layers else None

    def _is_special_call(self, node: ast.expr, name: str, input: ast.expr) -> bool:
        """Whether an expression is the whole call of a layer that takes more than its input; the input must be a name."""
        call = self._call_of(name)
        if call in (None, PLAIN_CALL) or not isinstance(input, ast.Name | ast.Attribute):
            return False
        return ast.unparse(node) == str(call).format(name=f"self.{name}", input=ast.unparse(input))

    def _step(self, node: ast.expr, target: str, arguments: Iterator[tuple[str, Argument]]) -> Value:
        bound = dict(arguments)  # reads the operands first, so that their steps come before this one
        try:
            self.steps.append(Step.make(target, **bound))
        except ValueError as error:
            self._source.fail(node, f"{target}: {error}")
        self.lines.append(node.lineno)
        return Value(len(self.steps))

    def _arguments(self, call: ast.Call, target: str) -> Iterator[tuple[str, Argument]]:
        signature = signature_of(target)
        if target == "torch.einsum" and not call.keywords:  # takes its operands one by one
            equation, *operands = call.args or [call]
            yield "equation", self._source.literal(equation)
            yield "operands", tuple(map(self._argument, operands))
            return
        for name, node in self._source.arguments(call, signature.names()):
            match node:
                case ast.Tuple(elts=[_, *_] as items) if signature[name].kind is Kind.TENSORS:
                    yield name, tuple(map(self._argument, items))
                case ast.Tuple(elts=items) if signature[name].kind is Kind.SHAPE:
                    yield name, tuple(map(self._size, items))
                case _:
                    yield name, self._argument(node)

    def _argument(self, node: ast.expr) -> Argument:
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name == TRAINING.name or name in self._declared:
                return Attribute(name)
            case ast.Constant() | ast.Tuple() | ast.UnaryOp():
                return self._source.literal(node)
        return self.value(node)

    def _size(self, node: ast.expr) -> Argument:
        match node:
            case ast.Subscript(value=ast.Attribute(value=ast.Name() as name, attr="shape"), slice=ast.Constant(value=0)):
                return BatchSize(self.value(name))
        return self._source.literal(node)

    def _subscript(self, node: ast.Subscript) -> Value:
        """`[:, :, ::2, 1:]`: a step for each slice but bare colons, or for one index; `...` counts one dimension from the end."""
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        from_end = bool(items) and isinstance(items[0], ast.Constant) and items[0].value is Ellipsis
        items = items[1:] if from_end else items
        marked = [position for position, item in enumerate(items) if not _is_bare(item)] or ([0] if from_end else [len(items) - 1])
        together = not from_end and all(isinstance(item, ast.Slice) for item in items)
        if not items or (len(marked) > 1 and not together):
            self._source.fail(node, f"expected slices or one index, not {code_excerpt(node)}")
        value = self._argument(node.value)
        for position in marked:
            arguments: dict[str, Argument] = {"input": value, "dim": position - len(items) * from_end}
            match items[position]:
                case ast.Slice(lower, upper, step):
                    bounds = {"start": lower, "stop": upper, "step": step}
                    arguments |= {name: self._source.literal(bound) for name, bound in bounds.items() if bound is not None}
                    value = self._step(node, "[:]", iter(arguments.items()))
                case index:
                    value = self._step(node, "[]", iter((arguments | {"index": self._source.literal(index)}).items()))
        return Value(len(self.steps))


def _is_bare(item: ast.expr) -> bool:
    return isinstance(item, ast.Slice) and item.lower is item.upper is item.step is None
