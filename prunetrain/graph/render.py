"""A LayerGraph as the text of a network file: flat, readable Python that imports nothing but torch.

The text is a pure function of the arguments, byte for byte. `render` decides everything; `templates/network.py.jinja` only places it.
"""

from dataclasses import dataclass
from functools import cache
from itertools import groupby

import jinja2

from prunetrain.graph.costs import Costs, costs, out_channels
from prunetrain.graph.layergraph import Declared, Layer, LayerGraph
from prunetrain.graph.layout import Statement, block_of, join_arguments, layout, literal
from prunetrain.graph.shapes import Shape, infer_shapes
from prunetrain.paths import templates

TEMPLATE = "network.py.jinja"


@dataclass(frozen=True)
class Line:
    """Code and its comment."""

    code: str
    comment: str = ""


@dataclass(frozen=True)
class Group:
    """Lines of one block; the block's name is "" where no comment names it."""

    block: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Page:
    """What the template places."""

    summary: str
    input: str
    imports: tuple[str, ...]
    class_name: str
    definitions: tuple[Group, ...]
    statements: tuple[Group, ...]


def render(graph: LayerGraph, *, dense: LayerGraph | None = None, epoch: int | None = None) -> str:
    """The network file of a graph.

    Args:
        graph: the network.
        dense: the network before any cut; the file then says what is left of it, layer by layer and in total.
        epoch: the epoch after which the network looks like this.

    Returns:
        Python source. `parse(render(graph, ...)) == graph`, whatever `dense` and `epoch` are.

    Raises:
        ValueError: if the shapes of the graph do not fit together.
    """
    shapes = infer_shapes(graph)
    statements = layout(graph)
    page = Page(
        summary=_summary(graph, dense, epoch),
        input=shape_text(graph.input_shape),
        imports=_imports(graph),
        class_name=graph.class_name,
        definitions=_definitions(graph, shapes, dense or graph),
        statements=_forward(graph, statements, shapes),
    )
    return _template().render(page=page)


def shape_text(shape: Shape) -> str:
    """(3, 32, 32) as 3x32x32."""
    return "x".join(map(str, shape))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template(TEMPLATE)


def _summary(graph: LayerGraph, dense: LayerGraph | None, epoch: int | None) -> str:
    now = costs(graph)
    title = graph.class_name if epoch is None else f"{graph.class_name}, epoch {epoch}"
    if dense is None or dense == graph:
        return f"{title}: {now.channels:,} channels, {now.macs:,} MACs, {now.params:,} parameters."
    before: Costs = costs(dense)
    macs, params = now.macs / before.macs, now.params / before.params
    channels = f"{now.channels:,} of {before.channels:,} channels"
    return f"{title}: {channels}, {macs:.1%} of the dense network's MACs, {params:.1%} of its parameters."


def _imports(graph: LayerGraph) -> tuple[str, ...]:
    lines = []
    if graph.declared or any(step.target.startswith("torch.") for step in graph.steps):
        lines.append("import torch")
    lines.append("from torch import Tensor, nn")
    if any(step.target.startswith("F.") for step in graph.steps):
        lines.append("from torch.nn import functional as F")
    return tuple(lines)


def _definitions(graph: LayerGraph, shapes: tuple[Shape, ...], dense: LayerGraph) -> tuple[Group, ...]:
    output_shapes = {step.layer: shapes[value.index] for value, step in graph.results() if step.layer}
    before = {layer.name: out_channels(layer) for layer in dense.layers}
    first_use = {
        name: number for number, step in reversed(list(enumerate(graph.steps))) for name in (step.layer, *step.attributes()) if name
    }
    waiting = list(graph.declared)
    entries: list[tuple[str, Line]] = []
    for layer in graph.layers:
        while waiting and first_use[waiting[0].name] < first_use[layer.name]:
            tensor = waiting.pop(0)
            entries.append((block_of(tensor.name), Line(_declaration(tensor))))
        comment = ""
        if out_channels(layer) is not None:
            comment = shape_text(output_shapes[layer.name])
            if before.get(layer.name) not in (None, out_channels(layer)):
                comment += f", was {before[layer.name]}"
        entries.append((block_of(layer.name), Line(_definition(layer), comment)))
    entries += [(block_of(tensor.name), Line(_declaration(tensor))) for tensor in waiting]
    return _groups(entries)


def _definition(layer: Layer) -> str:
    written = [(name, literal(value)) for name, value in layer.arguments]
    names = layer.signature.names()[: layer.signature.positional]
    return f"{layer.name} = nn.{layer.kind}({join_arguments(written, names)})"


def _declaration(tensor: Declared) -> str:
    return f"{tensor.name} = nn.Parameter(torch.zeros({', '.join(map(str, tensor.shape))}))"


def _forward(graph: LayerGraph, statements: list[Statement], shapes: tuple[Shape, ...]) -> tuple[Group, ...]:
    entries = []
    shown = graph.input_shape
    for number, statement in enumerate(statements):
        comment = ""
        following = statements[number + 1 :]
        ends_block = (
            all(s.value is None for s in following if s.block == statement.block) or not following or following[0].block != statement.block
        )
        if statement.value is not None and ends_block and shapes[statement.value.index] != shown:
            shown = shapes[statement.value.index]
            comment = shape_text(shown)
        entries.append((statement.block, Line(statement.code, comment)))
    return _groups(entries)


def _groups(entries: list[tuple[str, Line]]) -> tuple[Group, ...]:
    merged: list[tuple[str, Line]] = []
    for block, line in entries:
        inside = merged and merged[-1][0] and block.startswith(merged[-1][0] + ".")
        merged.append((merged[-1][0] if inside else block, line))
    return tuple(Group(block, tuple(line for _, line in lines)) for block, lines in groupby(merged, key=lambda entry: entry[0]))
