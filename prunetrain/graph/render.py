"""Render a LayerGraph as the text of a network file: flat, readable Python that imports only torch.

The text is a pure function of the arguments, byte for byte. `render` decides everything; `templates/network.py.jinja` only places it.
A line that is too long for the formatter, such as a long list of positions, stays one line and ends in `# fmt: skip`.
"""

from dataclasses import dataclass
from functools import cache
from itertools import groupby, takewhile

import jinja2

from prunetrain.graph.blocks import block_of, block_of_tensor
from prunetrain.graph.costs import Costs, costs
from prunetrain.graph.expressions import annotation, join_arguments, literal
from prunetrain.graph.functions import WEIGHTED
from prunetrain.graph.layergraph import FROZEN, Declared, Layer, LayerGraph
from prunetrain.graph.layout import Statement, layout
from prunetrain.graph.shapes import infer_shapes
from prunetrain.graph.windows import shape_text
from prunetrain.paths import templates

TEMPLATE = "network.py.jinja"
LINE_LENGTH = 320  # as in generated_nets/ruff.toml


@dataclass(frozen=True)
class Line:
    """A line of code and its comment."""

    code: str
    comment: str = ""


@dataclass(frozen=True)
class Group:
    """The lines of one block; its name is "" if no comment names it."""

    block: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Page:
    """The values that the template fills in."""

    summary: str
    input: str
    imports: tuple[str, ...]
    class_name: str
    definitions: tuple[Group, ...]
    returns: str
    statements: tuple[Group, ...]


def render(graph: LayerGraph, *, dense: LayerGraph | None = None, epoch: int | None = None) -> str:
    """Return the network file of a graph.

    Args:
        graph: the network.
        dense: the network before any cut; the file then says what is left of it, layer by layer and in total.
        epoch: the epoch after which the network looks like this.

    Returns:
        Python source. `parse(render(graph, ...)) == graph`, whatever `dense` and `epoch` are.

    Raises:
        ValueError: if the shapes of the graph do not fit together.
    """
    shapes = shape_texts(graph)
    page = Page(
        summary=_summary(graph, dense, epoch),
        input=shape_text(graph.input_shape),
        imports=_imports(graph),
        class_name=graph.class_name,
        definitions=_definitions(graph, shapes, dense or graph),
        returns=annotation(len(graph.extra) + 1, auxiliary=bool(graph.auxiliary)),
        statements=_forward(layout(graph), shapes),
    )
    return _template().render(page=page)


def shape_texts(graph: LayerGraph) -> list[str]:
    """Return the shape of every value in readable form: 14x32x32 for images, 64Nx49x96 for windows of images, where N is the batch size.

    Raises:
        ValueError: if the shapes of the graph do not fit together.
    """
    texts = []
    for one, two in zip(infer_shapes(graph, 1), infer_shapes(graph, 2), strict=True):
        sizes = [str(n) if n == m else f"{n}N" if n > 1 else "N" for n, m in zip(one, two, strict=True)]
        texts.append("x".join(sizes[1:] if sizes[:1] == ["N"] and len(sizes) > 1 else sizes))
    return texts


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


def _definitions(graph: LayerGraph, shapes: list[str], dense: LayerGraph) -> tuple[Group, ...]:
    comments = _channel_comments(graph, shapes, dense)
    first_use = {
        name: number for number, step in reversed(list(enumerate(graph.steps))) for name in (step.layer, *step.attributes()) if name
    }
    waiting = list(graph.declared)
    entries: list[tuple[str, Line]] = []
    for layer in graph.layers:
        while waiting and first_use[waiting[0].name] < first_use[layer.name]:
            tensor = waiting.pop(0)
            entries.append((block_of_tensor(tensor.name, graph), _line(_declaration(tensor), comments.get(tensor.name, ""))))
        entries.append((block_of(layer.name), _line(_definition(layer), comments.get(layer.name, ""))))
    entries += [(block_of_tensor(tensor.name, graph), _line(_declaration(tensor), comments.get(tensor.name, ""))) for tensor in waiting]
    return _groups(entries)


def _channel_comments(graph: LayerGraph, shapes: list[str], dense: LayerGraph) -> dict[str, str]:
    """What each layer makes, and each function with a weight under the name of its declared tensor: "24x8x8, was 32"."""
    before, now = costs(dense).layer_channels, costs(graph).layer_channels
    output_shapes = {}
    for value, step in graph.results():
        weight = graph.weight_of(step) if step.target in WEIGHTED else None
        output_shapes[weight.name if weight else step.layer] = shapes[value.index]
    return {
        name: output_shapes[name] + (f", was {before[name]}" if before.get(name, channels) != channels else "")
        for name, channels in now.items()
    }


def _definition(layer: Layer) -> str:
    written = [(name, literal(value)) for name, value in layer.arguments]
    names = layer.signature.names()[: layer.signature.positional]
    return f"self.{layer.name} = nn.{layer.kind}({join_arguments(written, names)}){'' if layer.trainable else FROZEN}"


def _declaration(tensor: Declared) -> str:
    if tensor.role == "index":
        return f"self.{tensor.name} = nn.Buffer(torch.tensor([{', '.join(map(str, tensor.values))}]), persistent=False)"
    sizes = [", ".join(map(str, tensor.shape)) or "()"]
    if tensor.dtype != "float32":
        sizes.append(f"dtype=torch.{tensor.dtype}")
    frozen = "" if tensor.trainable else ", requires_grad=False"
    return f"self.{tensor.name} = nn.{tensor.role.capitalize()}(torch.zeros({', '.join(sizes)}){frozen})"


def _forward(statements: list[Statement], shapes: list[str]) -> tuple[Group, ...]:
    entries = []
    shown = shapes[0]
    in_training: str | None = None  # the block whose `if self.training:` is open
    for number, statement in enumerate(statements):
        comment = ""
        if statement.value is not None and _ends_block(statements, number) and shapes[statement.value.index] != shown:
            comment = shapes[statement.value.index]
            shown = shown if statement.in_training else comment
        if statement.in_training and in_training != statement.block:
            entries.append((statement.block, Line("if self.training:")))
        in_training = statement.block if statement.in_training else None
        entries.append((statement.block, _line("    " * statement.in_training + statement.code, comment)))
    return _groups(entries)


def _ends_block(statements: list[Statement], number: int) -> bool:
    """Whether a statement computes the last value of its block in its mode."""
    statement = statements[number]
    following = takewhile(lambda other: other.block == statement.block, statements[number + 1 :])
    return all(other.value is None or other.in_training != statement.in_training for other in following)


def _line(code: str, comment: str = "") -> Line:
    """Return a line of a method, marked `fmt: skip` if the formatter would break it."""
    if len(f"        {code}  # {comment}") > LINE_LENGTH:
        comment = f"{comment}  # fmt: skip" if comment else "fmt: skip"
    return Line(code, comment)


def _groups(entries: list[tuple[str, Line]]) -> tuple[Group, ...]:
    merged: list[tuple[str, Line]] = []
    for block, line in entries:
        inside = merged and merged[-1][0] and block.startswith(merged[-1][0] + ".")
        merged.append((merged[-1][0] if inside else block, line))
    return tuple(Group(block, tuple(line for _, line in lines)) for block, lines in groupby(merged, key=lambda entry: entry[0]))
