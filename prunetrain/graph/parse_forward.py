"""Read `forward`: assignments and deletions line by line, `if self.training:` around what runs in train mode only, and the return.

A name that both modes have must mean the same in both. So a part for train mode may read every name, but may set and delete only names
of its own, which nothing else reads.
"""

import ast
from collections import ChainMap
from itertools import pairwise
from typing import NoReturn

from prunetrain.graph.catalog import FILE_NAMES
from prunetrain.graph.layergraph import Value
from prunetrain.graph.parse_expressions import Expressions
from prunetrain.graph.parse_source import Source, code_excerpt

INPUT_NAME = "x"


class Forward:
    """What `forward` returns: `outputs` in both modes, and `auxiliary` values in train mode only."""

    def __init__(self, source: Source, expressions: Expressions) -> None:
        self._source = source
        self._expressions = expressions
        self._names = {INPUT_NAME: Value(0)}  # of both modes
        self._in_training: dict[str, Value] = {}  # of train mode only
        self.outputs: tuple[Value, ...] = ()
        self.auxiliary: tuple[Value, ...] = ()

    def read(self, node: ast.FunctionDef) -> None:
        """Read the statements.

        Raises:
            NetworkFileError: for anything that the module's docstring does not list.
        """
        returned: tuple[Value, ...] | None = None  # in train mode
        for statement, following in pairwise([*node.body, None]):
            assert statement is not None
            self._source.line = statement.lineno
            match statement:
                case ast.If(test=ast.Attribute(value=ast.Name(id="self"), attr="training"), body=body, orelse=[]) if following:
                    returned = self._part_for_training(body, may_return=isinstance(following, ast.Return))
                case ast.Return(value=ast.expr() as expression) if following is None:
                    self.outputs = self._returned(expression)
                case _ if following is None:
                    self._source.fail(statement, "forward must end with return")
                case _:
                    self._line(statement, in_training=False)
        self._finish(node, returned)

    def _finish(self, node: ast.FunctionDef, returned: tuple[Value, ...] | None) -> None:
        if returned is not None:
            count = len(self.outputs)
            if returned[:count] != self.outputs or len(returned) == count:
                self._source.fail(node.body[-2], "in train mode forward must return what it returns in eval mode, followed by more")
            self.auxiliary = returned[count:]

    def _part_for_training(self, body: list[ast.stmt], *, may_return: bool) -> tuple[Value, ...] | None:
        for statement in body:
            self._source.line = statement.lineno
            match statement:
                case ast.Return(value=ast.expr() as expression) if may_return and statement is body[-1]:
                    return self._returned(expression, in_training=True)
                case _:
                    self._line(statement, in_training=True)
        return None

    def _line(self, statement: ast.stmt, *, in_training: bool) -> None:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                if name in FILE_NAMES:
                    self._source.fail(statement, f"{name} cannot name a local variable: choose another name")
                if in_training and name in self._names:
                    self._source.fail(statement, f"{name} would differ between train and eval mode: assign to another name")
                value = self._value(expression, in_training=in_training)
                self._in_training.pop(name, None)
                (self._in_training if in_training else self._names)[name] = value
            case ast.Delete(targets=targets):
                names = self._in_training if in_training else self._names
                for target in targets:
                    if not isinstance(target, ast.Name) or names.pop(target.id, None) is None:
                        self._refuse(statement)
            case _:
                self._refuse(statement)

    def _refuse(self, statement: ast.stmt) -> NoReturn:
        self._source.fail(statement, f"forward may only call layers and functions, line by line, not: {code_excerpt(statement)}")

    def _value(self, expression: ast.expr, *, in_training: bool) -> Value:
        self._expressions.names = ChainMap(self._in_training, self._names) if in_training else self._names
        return self._expressions.value(expression)

    def _returned(self, expression: ast.expr, *, in_training: bool = False) -> tuple[Value, ...]:
        items = expression.elts if isinstance(expression, ast.Tuple) and len(expression.elts) > 1 else [expression]
        return tuple(self._value(item, in_training=in_training) for item in items)
