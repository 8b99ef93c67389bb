"""Rendering: expected files, the same bytes everywhere, files that formatter and type checker accept, and locals that die in time.

`UPDATE_GOLDEN=1 pytest tests/test_render.py -k golden` rewrites the expected files in tests/golden/; read the diff before you commit it.
"""

import ast
import difflib
import operator
import os
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from graphs import (
    Sketch,
    attention,
    auxiliary,
    chain,
    concat,
    depthwise,
    gate,
    gating,
    grouped,
    head,
    layer_graphs,
    layer_norm,
    residual,
    shuffle,
    windows,
    without_a_branch,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain import zoo
from prunetrain.graph.blocks import block_of
from prunetrain.graph.functions import OPERATORS, RESULT_OF
from prunetrain.graph.layergraph import Attribute, BatchSize, LayerGraph, Step, Value
from prunetrain.graph.load import instantiate
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "attention": lambda: render(attention()),
    "auxiliary": lambda: render(auxiliary(), epoch=0),
    "chain": lambda: render(chain()),
    "concat": lambda: render(concat()),
    "depthwise": lambda: render(depthwise(), epoch=0),
    "gate": lambda: render(gate()),
    "gating": lambda: render(gating()),
    "grouped": lambda: render(grouped()),
    "head": lambda: render(head()),
    "layer_norm": lambda: render(layer_norm()),
    "residual": lambda: render(residual(), dense=residual(), epoch=0),
    "residual_pruned": lambda: render(residual(6, (3, 7), 12), dense=residual(), epoch=30),
    "residual_without_a_branch": lambda: render(without_a_branch(), dense=residual(), epoch=60),
    "shuffle": lambda: render(shuffle()),
    "windows": lambda: render(windows()),
}


@pytest.mark.parametrize("name", FILES)
def test_golden_file(name: str) -> None:
    path, text = GOLDEN / f"{name}.py", FILES[name]()
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text.encode())
    expected = path.read_bytes().decode()
    assert text == expected, f"tests/golden/{name}.py differs; if it should, run this test with UPDATE_GOLDEN=1"


def test_golden_folder_holds_nothing_else() -> None:
    assert {path.stem for path in GOLDEN.glob("*.py")} == set(FILES)


def zoo_graph(name: str) -> LayerGraph:
    shape = (3, 64, 64)
    with torch.device("meta"):
        return trace(zoo.build(name, input_shape=shape, num_classes=10), torch.empty(1, *shape))


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


STRICT_ONLY = "[no-any-return]"  # mypy runs in the checkout for the cache that `make check` has filled, so it is stricter than plain mypy
RENDER_ELSEWHERE = """
import sys
from prunetrain import zoo
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
for path in sys.argv[2:]:
    sys.stdout.write(render(parse(open(path).read())))
if sys.argv[1] == "trace":
    import torch
    from prunetrain.graph.trace import trace
    with torch.device("meta"):
        model = zoo.build("resnet20", input_shape=(3, 64, 64), num_classes=10)
        sys.stdout.write(render(trace(model, torch.empty(1, 3, 64, 64))))
else:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(("hash_seed", "what"), [("0", "parse"), ("4242", "trace")])
def test_bytes_do_not_depend_on_the_process(hash_seed: str, what: str, tmp_path: Path) -> None:
    paths = sorted(GOLDEN.glob("*.py"))
    expected = "".join(render(parse(path.read_text())) for path in paths) + (render(zoo_graph("resnet20")) if what == "trace" else "")
    arguments = [sys.executable, "-c", RENDER_ELSEWHERE, what, *paths]
    text = run(*arguments, cwd=tmp_path, PYTHONHASHSEED=hash_seed, PYTHONPATH=str(ROOT), TZ="Asia/Tokyo")
    assert text == expected


def check_files(sources: dict[str, str], folder: Path) -> None:
    """Formatter and linter find nothing to do in these files, nor in others of the folder."""
    for name, source in sources.items():
        (folder / name).write_text(source)
    config = ("--no-cache", "--config", ROOT / "generated_nets" / "ruff.toml")
    run(sys.executable, "-m", "ruff", "format", "--check", *config, folder)
    run(sys.executable, "-m", "ruff", "check", *config, folder)


def test_zoo_files_pass_formatter_linter_and_type_checker(tmp_path: Path) -> None:
    for name in zoo.names():
        (tmp_path / f"{name.replace('-', '_').replace('.', '_')}.py").write_text(render(zoo_graph(name), epoch=0))
    for name, text in FILES.items():
        (tmp_path / f"golden_{name}.py").write_text(text())
    check_files({}, tmp_path)
    paths = sorted(tmp_path.glob("*.py"))
    done = subprocess.run([sys.executable, "-m", "mypy", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    problems = [line for line in done.stdout.splitlines() if not line.endswith(STRICT_ONLY)]
    assert len(problems) == 1, done.stdout
    assert f" {len(paths)} source files" in problems[0], done.stdout + done.stderr


# What a file says.


def changed_lines(before: str, after: str) -> list[str]:
    return [line[2:].strip() for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "-+"]


def test_a_diff_shows_the_layers_that_changed() -> None:
    before = render(residual(), dense=residual(), epoch=30)
    after = render(residual(inner=(5, 16)), dense=residual(), epoch=60)
    header, *lines = [line for line in changed_lines(before, after) if not line.startswith('"""')] or [""]
    names = {line.split(" = ")[0] for line in (header, *lines)}
    assert names == {"self.layer1_0_conv1", "self.layer1_0_bn1", "self.layer1_0_conv2"}
    assert len(changed_lines(before, after)) == 2 + 2 * 3


def test_a_removed_branch_renames_nothing() -> None:
    before, after = render(residual()), render(without_a_branch(), dense=residual())
    new = [line.strip() for line in after.splitlines() if line not in before.splitlines()]
    assert new[1:] == ["self.layer1_0_bn2_bias = nn.Parameter(torch.zeros(8, 1, 1))", "x = F.relu(x + self.layer1_0_bn2_bias)"]


@pytest.mark.parametrize(
    ("dense", "epoch", "header"),
    [
        (None, None, "Residual: 56 channels, 50,520 MACs, 1,914 parameters."),
        (None, 30, "Residual, epoch 30: 56 channels, 50,520 MACs, 1,914 parameters."),
        (residual(6, (3, 7), 12), 0, "Residual, epoch 0: 56 channels, 50,520 MACs, 1,914 parameters."),
        (residual(), 7, "Residual, epoch 7: 56 of 82 channels, 34.8% of the dense network's MACs, 36.3% of its parameters."),
        (residual(), None, "Residual: 56 of 82 channels, 34.8% of the dense network's MACs, 36.3% of its parameters."),
    ],
)
def test_header(dense: LayerGraph | None, epoch: int | None, header: str) -> None:
    assert render(residual(6, (3, 7), 12), dense=dense, epoch=epoch).splitlines()[0] == f'"""{header}'


def small(*targets: str, declared: bool = False) -> LayerGraph:
    net = Sketch("Small", (4,))
    x = net.x
    for target in targets:
        x = net.call(target, x)
    return net.graph(net.call("+", x, net.declare("bias", (4,))) if declared else x)


@pytest.mark.parametrize(
    ("graph", "imports"),
    [
        (small(), ["from torch import Tensor, nn"]),
        (small("F.relu"), ["from torch import Tensor, nn", "from torch.nn import functional as F"]),
        (small("torch.tanh"), ["import torch", "from torch import Tensor, nn"]),
        (small(declared=True), ["import torch", "from torch import Tensor, nn"]),
        (small("torch.tanh", "F.relu"), ["import torch", "from torch import Tensor, nn", "from torch.nn import functional as F"]),
    ],
)
def test_nothing_is_imported_that_is_not_used(graph: LayerGraph, imports: list[str]) -> None:
    assert [line for line in render(graph).splitlines() if "import" in line] == imports


def test_arguments_are_written_as_people_write_them() -> None:
    net = Sketch("Written", (4, 8, 8))
    x = net.conv("conv1", net.x, 4, kernel_size=(3, 1), stride=2, padding=(1, 0), groups=2, padding_mode="reflect")
    x = net.norm("bn1", x, eps=1e-3, momentum=0.01, affine=False)
    x = net.call("F.gelu", net.call("F.leaky_relu", x, negative_slope=0.2), approximate="tanh")
    x = net.call("F.avg_pool2d", x, kernel_size=2, stride=1, divisor_override=3)
    text = render(net.graph(net.call("torch.flatten", x, start_dim=1, end_dim=2)))
    for written in (
        'self.conv1 = nn.Conv2d(4, 4, kernel_size=(3, 1), stride=2, padding=(1, 0), groups=2, padding_mode="reflect")  # 4x4x4\n',
        "self.bn1 = nn.BatchNorm2d(4, eps=0.001, momentum=0.01, affine=False)\n",
        'x = F.gelu(F.leaky_relu(self.bn1(self.conv1(x)), 0.2), approximate="tanh")\n',
        "x = F.avg_pool2d(x, 2, stride=1, divisor_override=3)\n",
        "return torch.flatten(x, 1, 2)",
    ):
        assert written in text


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("conv1", ""),
        ("fc", ""),
        ("layer1_0_conv1", "layer1.0"),
        ("layer1_0_downsample_0", "layer1.0"),
        ("block1_depthwise", "block1"),
        ("features_3", "features"),
        ("features_3_0_conv", "features.3.0"),
    ],
)
def test_blocks_are_told_by_names(name: str, block: str) -> None:
    assert block_of(name) == block


def test_long_chains_do_not_make_long_lines() -> None:
    graph = small(*["F.relu"] * 300)
    text = render(graph)
    assert max(map(len, text.splitlines())) < 100
    assert parse(text) == graph


def statements_of(graph: LayerGraph) -> list[str]:
    """The lines of `forward`, without comments."""
    source = render(graph)
    assert parse(source) == graph
    lines = source.partition("def forward")[2].splitlines()[1:]
    return [line.partition("  #")[0][8:] for line in lines if line.strip() and not line.strip().startswith("#")]


def test_operators_and_subscripts() -> None:
    net = Sketch("Net", (4, 8, 8))
    x = net.call("-", 1, net.call("*", net.call("+", net.x, 2), 0.5))
    x = net.slice(net.slice(net.slice(net.call("/", x, -3), 1, 1, -1), 2, step=2), 3, stop=4)
    x = net.slice(net.slice(x, 3, 1), 2, 1)  # not in order, so not in one pair of brackets
    x = net.slice(net.slice(x, -2, stop=2), 1)  # the second one changes nothing
    assert statements_of(net.graph(net.call("[]", net.call("F.relu", x), dim=-1, index=-1))) == [
        "x = (1 - ((x + 2) * 0.5)) / -3",
        "x = x[:, 1:-1, ::2, :4]",
        "x = x[:, :, :, 1:]",
        "x = x[:, :, 1:]",
        "x = x[..., :2, :]",
        "return F.relu(x[:, :])[..., -1]",
    ]


def test_powers() -> None:
    """As the formatter writes them: without spaces between names and numbers."""
    net = Sketch("Net", (4, 8, 8))
    x = net.call("**", net.call("**", net.call("**", net.x, 1e-06), -0.5), net.x)
    assert statements_of(net.graph(net.call("**", net.call("**", -3, net.call("F.relu", x)), 2.0)))[1:] == [
        "x = (x**1e-06) ** -0.5",
        "return ((-3) ** F.relu(x**inputs)) ** 2.0",
    ]


def test_functions_with_tensors_in_tuples() -> None:
    net = Sketch("Net", (4, 8))
    batch, token = BatchSize(net.x), net.declare("token", (1, 1, 8))
    x = net.cat(net.call("torch.broadcast_to", token, size=(batch, -1, -1)), net.x, net.x)
    y = net.step("torch.einsum", equation="nab,ncb->nac", operands=(x, net.x))
    x = net.step("torch.stack", tensors=(y, y), dim=1)
    assert statements_of(net.graph(net.call("torch.reshape", x, shape=(BatchSize(x), 72)))) == [
        "token = torch.broadcast_to(self.token, (x.shape[0], -1, -1))",
        "inputs = x",
        "x = torch.cat((token, x, x), 1)",
        "del token",
        'x = torch.einsum("nab,ncb->nac", x, inputs)',
        "del inputs",
        "x = torch.stack((x, x), 1)",
        "return torch.reshape(x, (x.shape[0], 72))",
    ]


def test_declared_tensors_by_role() -> None:
    net = Sketch("Net", (4, 8, 8))
    x = net.call("*", net.x, net.declare("scale", ()))
    x = net.call("+", x, net.declare("mask", (8, 8), "buffer"))
    rows = net.step("F.embedding", input=net.declare("rows", (4,), "buffer", "int64"), weight=net.declare("table", (9, 8)))
    x = net.call("+", x, net.call("torch.unsqueeze", rows, dim=1))
    text = render(net.graph(net.call("torch.index_select", x, dim=1, index=net.index("reads", 3, 0))))
    for written in (
        "self.scale = nn.Parameter(torch.zeros(()))\n",
        "self.mask = nn.Buffer(torch.zeros(8, 8))\n",
        "self.rows = nn.Buffer(torch.zeros(4, dtype=torch.int64))\n",
        "self.reads = nn.Buffer(torch.tensor([3, 0]), persistent=False)\n",
        "bias = F.embedding(self.rows, self.table)\n",
        "bias = torch.unsqueeze(bias, 1)\n",
    ):
        assert written in text


def test_lines_too_long_for_the_formatter_stay_lines(tmp_path: Path) -> None:
    net = Sketch("Long", (200, 2, 2))
    x = net.call("torch.index_select", net.x, dim=1, index=net.index("reads", *range(200)))
    values = [net.call("F.relu", x) for _ in range(40)]
    graph = net.graph(net.cat(*values))
    source = render(graph)
    assert parse(source) == graph
    assert [line.split()[0] for line in source.splitlines() if line.endswith("# fmt: skip")] == ["self.reads", "return"]
    check_files({"long.py": source}, tmp_path)


@settings(max_examples=5)
@given(st.lists(layer_graphs(), min_size=20, max_size=20))
def test_random_files_pass_formatter_and_linter(graphs: list[LayerGraph]) -> None:
    with TemporaryDirectory() as folder:
        check_files({f"net{number}.py": render(graph) for number, graph in enumerate(graphs)}, Path(folder))


def test_the_head_in_train_mode_shares_nothing_that_eval_mode_has() -> None:
    net = Sketch("Net", (4, 8, 8))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    side = net.conv("aux_conv1", x, 4, kernel_size=1)
    side = net.call("+", net.conv("aux_conv2", side, 4, kernel_size=1), side)
    output = net.call("F.relu", net.conv("conv2", net.call("F.relu", x), 4, kernel_size=1))
    assert statements_of(net.graph(output, auxiliary=(net.call("*", side, x),))) == [
        "x = self.conv1(x)",
        "if self.training:",
        "    aux = self.aux_conv1(x)",
        "    aux_2 = self.aux_conv2(aux)",
        "    aux = aux_2 + aux",
        "    del aux_2",
        "gate = x",
        "x = F.relu(x)",
        "x = F.relu(self.conv2(x))",
        "if self.training:",
        "    aux = aux * gate",
        "    return x, aux",
        "return x",
    ]


def test_a_shortcut_that_is_read_as_the_next_one_is_set_aside() -> None:
    net = Sketch("Overlapping", (4, 6, 6))
    inner = net.conv("conv1", net.x, 4, kernel_size=1)
    x = net.call("+", inner, net.x)  # the last use of one shortcut, while `inner` becomes the next
    graph = net.graph(net.call("+", net.conv("conv2", x, 4, kernel_size=1), inner))
    assert parse(render(graph)) == graph
    assert "        shortcut_2 = x\n        x = x + shortcut\n        del shortcut\n" in render(graph)


def computed_by_hand(graph: LayerGraph, network: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs, step by step as the graph says it, with the layers and tensors of a network."""
    values = [images]

    def given(argument: Any) -> Any:
        match argument:
            case Value(index):
                return values[index]
            case Attribute(name):
                return getattr(network, name)
            case BatchSize(value):
                return len(values[value.index])
            case tuple():
                return tuple(map(given, argument))
        return argument

    for number, step in enumerate(graph.steps):
        if number in graph.in_training_only and not network.training:
            values.append(torch.tensor(torch.nan))
        else:
            values.append(_call(network, step, {name: given(argument) for name, argument in step.arguments}))
    return [values[value.index] for value in (graph.outputs if network.training else (graph.output, *graph.extra))]


def _call(network: nn.Module, step: Step, given: dict[str, Any]) -> Tensor:
    if step.layer is not None:
        layer = getattr(network, step.layer)
        return layer(*[given["input"]] * 3, need_weights=False)[0] if isinstance(layer, nn.MultiheadAttention) else layer(given["input"])
    if step.target in ("[:]", "[]"):
        part = slice(given.get("start"), given.get("stop"), given.get("step")) if step.target == "[:]" else given["index"]
        return given["input"][(slice(None),) * (given["dim"] % given["input"].ndim) + (part,)]
    if step.target in OPERATORS:
        functions = {
            "+": operator.add,
            "-": operator.sub,
            "*": operator.mul,
            "/": operator.truediv,
            "**": operator.pow,
            "@": operator.matmul,
        }
        return functions[step.target](given["input"], given["other"])
    if step.target == "torch.einsum":
        return torch.einsum(given["equation"], *given["operands"])
    if step.target == "F.batch_norm":  # has no defaults for these
        given = {"running_mean": None, "running_var": None, **given}
    result = attrgetter(step.target.partition(".")[2])({"F": F, "torch": torch}[step.target.partition(".")[0]])(**given)
    return result[1 if step.target == "torch.var_mean" else 0] if step.target in RESULT_OF else result


@settings(max_examples=100)
@given(layer_graphs(), st.booleans())
def test_random_files_compute_what_the_graph_says(graph: LayerGraph, training: bool) -> None:
    torch.manual_seed(0)
    network = instantiate(render(graph), "net.py").train(training)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    images = torch.randn(3, *graph.input_shape)
    outputs = []
    for compute in (network, lambda x: computed_by_hand(graph, network, x)):
        torch.manual_seed(1)  # of dropout
        output = compute(images)
        outputs.append([output] if isinstance(output, Tensor) else list(output))
    torch.testing.assert_close(*outputs, rtol=0, atol=0, equal_nan=True)


# Locals die in time.


def kept_too_long(source: str) -> list[str]:
    """Names that hold a value, after its last use, while something else is computed.

    What both modes have cannot be deleted in a part for train mode, so it may live until that part ends.
    """
    forward = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == "forward")
    held = {"x": 0}  # name: the line that computed what it holds
    last_use: dict[int, int] = {}
    moments: list[tuple[int, dict[str, int]]] = []  # every line that computes, and what is held at that time
    for part in forward.body:
        shared = set(held) if isinstance(part, ast.If) else set()
        for statement in part.body if isinstance(part, ast.If) else [part]:
            line = statement.lineno
            computes = any(isinstance(node, (ast.Call, ast.BinOp, ast.Subscript)) for node in ast.walk(statement))
            if computes:
                moments.append((line, {name: value for name, value in held.items() if name not in shared}))
            if computes or isinstance(statement, ast.Return):
                names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
                last_use |= {held[name]: line for name in names if name in held}
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=other)):
                    held[name] = held[other]
                case ast.Assign(targets=[ast.Name(id=name)]):
                    held[name] = line
                case ast.Delete(targets=targets):
                    for target in targets:
                        del held[target.id]
    return [f"{name} in line {line}" for line, names in moments for name, value in names.items() if last_use.get(value, 0) < line]


@pytest.mark.parametrize(
    ("forward", "kept"),
    [
        ("x = f(x)\nreturn f(x)", []),
        ("y = x\nx = f(x)\nx = x + y\ndel y\nreturn f(x)", []),
        ("y = x\nx = f(x)\nx = x + y\nreturn f(x)", ["y in line 5"]),
        ("y = x\nx = f(x)\nx = x + y\ny = f(x)\nreturn x + y", ["y in line 5"]),
        ("y = f(x)\nz = x\nx = f(y)\nreturn x + z", ["y in line 5"]),
        ("y = f(x)\ny = f(y)\nreturn f(y)", ["x in line 3", "x in line 4"]),
    ],
)
def test_the_check_below_finds_what_is_kept(forward: str, kept: list[str]) -> None:
    assert kept_too_long("def forward(x):\n " + forward.replace("\n", "\n ")) == kept


@pytest.mark.parametrize("name", FILES)
def test_golden_files_keep_nothing_alive(name: str) -> None:
    assert kept_too_long(FILES[name]()) == []


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_files_keep_nothing_alive(name: str) -> None:
    assert kept_too_long(render(zoo_graph(name))) == []


@settings(max_examples=100)
@given(layer_graphs())
def test_random_files_keep_nothing_alive(graph: LayerGraph) -> None:
    assert kept_too_long(render(graph)) == []


def test_an_empty_network_returns_its_input() -> None:
    graph = LayerGraph("Nothing", (3, 8, 8), (), (), Value(0))
    assert "return x" in render(graph)
    assert parse(render(graph)) == graph
