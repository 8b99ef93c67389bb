"""Parsing: what `render` writes and people edit comes back as the same graph; anything else is refused with its line, and never runs."""

import contextlib
import re
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graphs import (
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

from prunetrain import load_network, zoo
from prunetrain.errors import NetworkFileError
from prunetrain.graph.layergraph import Declared, LayerGraph, Value
from prunetrain.graph.load import read_graph, sha256_of
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace

# What comes back.


@settings(max_examples=200)
@given(layer_graphs(), layer_graphs())
def test_parse_of_render_is_the_graph(graph: LayerGraph, other: LayerGraph) -> None:
    assert parse(render(graph)) == graph
    assert parse(render(graph, dense=residual(), epoch=10)) == graph
    assert (render(graph) == render(other)) == (graph == other)


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_networks_come_back(name: str) -> None:
    with torch.device("meta"):
        graph = trace(zoo.build(name, input_shape=(3, 40, 64), num_classes=10), torch.empty(1, 3, 40, 64))
    source = render(graph, epoch=0)
    assert parse(source) == graph
    assert render(parse(source), epoch=0) == source


TOYS = (
    chain,
    residual,
    without_a_branch,
    depthwise,
    head,
    gate,
    attention,
    auxiliary,
    concat,
    gating,
    grouped,
    layer_norm,
    shuffle,
    windows,
)


@pytest.mark.parametrize("graph", [toy() for toy in TOYS], ids=lambda g: g.class_name)
def test_toy_networks_come_back(graph: LayerGraph) -> None:
    assert parse(render(graph)) == graph


EDITED = '''\
"""My network. Input 3x8x8."""
from torch.nn import functional as F
from torch import (
    Tensor,
    nn,
)
import torch  # for flatten


class Residual(nn.Module):
    # what a person might write

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels=3,
            out_channels=8,
            kernel_size=(3, 3),
            stride=1,
            padding=(1, 1),
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(8, 1e-5, 0.1, True)
        self.layer1_0_conv1 = nn.Conv2d(8, 8, 3, 1, 1, 1, 1, False)
        self.layer1_0_bn1 = nn.BatchNorm2d(num_features=8)
        self.layer1_0_conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False, padding_mode='zeros')
        self.layer1_0_bn2 = nn.BatchNorm2d(8)
        self.layer2_0_downsample_0 = nn.Conv2d(8, 16, 1, 2, bias=False)
        self.layer2_0_downsample_1 = nn.BatchNorm2d(16)
        self.layer2_0_conv1 = nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1, bias=False)
        self.layer2_0_bn1 = nn.BatchNorm2d(16)
        self.layer2_0_conv2 = nn.Conv2d(16, 16, kernel_size=3, padding=1, bias=False)
        self.layer2_0_bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.conv1(x)
        stem = self.bn1(stem)
        stem = F.relu(stem)

        inside = self.layer1_0_conv1(stem)
        y = self.layer1_0_conv2(
            F.relu(
                self.layer1_0_bn1(inside),
            )
        )
        del inside
        x = F.relu((self.layer1_0_bn2(y) + stem))

        projected = self.layer2_0_downsample_1(self.layer2_0_downsample_0(x))
        out = F.relu(input=self.layer2_0_bn1(self.layer2_0_conv1(x)))
        out = self.layer2_0_bn2(self.layer2_0_conv2(out))
        out = F.adaptive_avg_pool2d(F.relu(out + projected), output_size=(1, 1))
        return self.fc(torch.flatten(out, start_dim=1, end_dim=-1))
'''


def test_layers_that_are_not_trained() -> None:
    graph = residual()
    frozen = replace(graph, layers=tuple(replace(layer, trainable=number % 2 == 0) for number, layer in enumerate(graph.layers)))
    text = render(frozen)
    assert parse(text) == frozen != graph
    assert text.count(".requires_grad_(False)  # ") + text.count(".requires_grad_(False)\n") == len(graph.layers) // 2


def test_declared_parameters_that_are_not_trained() -> None:
    text = NETWORK.replace("torch.zeros(4, 1, 1))", "torch.zeros(4, 1, 1), requires_grad=False)")
    assert [tensor.trainable for tensor in (*parse(NETWORK).declared, *parse(text).declared)] == [True, False]
    assert "self.bias = nn.Parameter(torch.zeros(4, 1, 1), requires_grad=False)\n" in render(parse(text))
    assert parse(render(parse(text))) == parse(text)
    assert parse(text.replace("4, 1, 1", "()")).declared == (Declared("bias", (), trainable=False),)


def test_an_edited_file_is_the_same_graph() -> None:
    assert parse(EDITED) == residual()


def forward_of(*lines: str, annotation: str = "Tensor") -> LayerGraph:
    """The graph of a network without layers on images of 4x8x8."""
    head = NETWORK.partition("class")[0].replace("3x8x8", "4x8x8")
    init = "class Net(nn.Module):\n    def __init__(self) -> None:\n        super().__init__()\n"
    bias = "        self.bias = nn.Parameter(torch.zeros(8))\n\n"
    body = "".join(f"        {line}\n" for line in lines)
    return parse(f"{head}{init}{bias}    def forward(self, x: Tensor) -> {annotation}:\n        x = x + self.bias\n{body}")


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("x[:, 1:3]", "x[:, 1:3, :]"),
        ("x[:, 1:3]", "x[:, 1:3:1]"),
        ("x[:, :3]", "x[:, 0:3]"),
        ("x[:, 0]", "x[:, 0, :]"),
        ("x[..., 1:]", "x[..., :, 1:]"),
        ("x[:, :, 1:, ::2]", "x[:, :, 1:][:, :, :, ::2]"),
        ("torch.squeeze(torch.unsqueeze(x, 1), 1)", "torch.squeeze(torch.unsqueeze(x, dim=1), (1,))"),
        ("torch.flip(x, (2,))", "torch.flip(x, dims=2)"),
        ("(x * 2) + 1", "x * 2 + 1"),
        ("x - (x * 2)", "x - x * 2"),
    ],
)
def test_what_may_be_written_in_several_ways(written: str, same: str) -> None:
    assert forward_of(f"return {written}") == forward_of(f"return {same}")


def test_operators_bind_as_in_python() -> None:
    steps = forward_of("return 1 - x * 2 / 3").steps[1:]
    assert [(step.target, dict(step.arguments)) for step in steps] == [
        ("*", {"input": Value(1), "other": 2}),
        ("/", {"input": Value(2), "other": 3}),
        ("-", {"input": 1, "other": Value(3)}),
    ]


def test_parts_for_train_mode_may_be_written_apart() -> None:
    graph = forward_of(
        "y = torch.mean(x, (2, 3))",
        "if self.training:",
        "    a = F.relu(y)",
        "x = F.relu(x)",
        "if self.training:",
        "    b = a * 2",
        "    del a",
        "a = F.gelu(x)",
        "if self.training:",
        "    return a, y, b",
        "return a",
        annotation="Tensor | tuple[Tensor, ...]",
    )
    assert (graph.output, graph.extra, graph.auxiliary) == (Value(6), (), (Value(2), Value(5)))
    assert graph.in_training_only == {1, 2, 4}  # torch.mean as well: nothing else needs it
    assert parse(render(graph)) == graph


def test_line_ends_and_tabs_do_not_matter() -> None:
    source = render(residual())
    assert parse(source.replace("\n", "\r\n")) == residual()
    assert parse(source.replace("    ", "\t")) == residual()


def test_the_last_input_named_in_the_docstring_may_stand_anywhere() -> None:
    assert parse(EDITED.replace('"""My network. Input 3x8x8."""', '"""Two\nlines. Input 3x8x8. And more."""')) == residual()


# What is refused. A line of the network below is replaced (">" lines are added); "!" marks the line that the message must name.

NETWORK = '''\
"""A network. Input 3x8x8."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, kernel_size=3, padding=1)
        self.bias = nn.Parameter(torch.zeros(4, 1, 1))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x) + self.bias)
        x = F.adaptive_avg_pool2d(x, 1)
        x = torch.flatten(x, 1)
        return self.fc(x)
'''
LINES = {
    "docstring": '"""A network. Input 3x8x8."""',
    "torch": "import torch\n",
    "tensor": "from torch import Tensor, nn\n",
    "functional": "from torch.nn import functional as F\n",
    "class": "class Net(nn.Module):",
    "init": "    def __init__(self) -> None:",
    "super": "        super().__init__()",
    "conv": "        self.conv = nn.Conv2d(3, 4, kernel_size=3, padding=1)",
    "bias": "        self.bias = nn.Parameter(torch.zeros(4, 1, 1))",
    "fc": "        self.fc = nn.Linear(4, 2)",
    "forward": "    def forward(self, x: Tensor) -> Tensor:",
    "relu": "        x = F.relu(self.conv(x) + self.bias)",
    "pool": "        x = F.adaptive_avg_pool2d(x, 1)",
    "flatten": "        x = torch.flatten(x, 1)",
    "return": "        return self.fc(x)",
}


def replaced(line: str, *new: str) -> str:
    """The network with one line replaced; `{}` stands for the old one."""
    old = LINES[line]
    assert NETWORK.count(old) == 1
    indent = old[: len(old) - len(old.lstrip())]
    text = textwrap.indent("\n".join(new).replace("{}", old.strip()), indent)
    return NETWORK.replace(old, text + "\n" * old.endswith("\n"))


def line_of(source: str, text: str) -> int:
    numbers = [number for number, line in enumerate(source.splitlines(), start=1) if text in line]
    assert numbers, text
    return numbers[0]


def test_the_network_to_be_spoilt_is_one() -> None:
    assert [layer.name for layer in parse(NETWORK).layers] == ["conv", "fc"]
    assert all(replaced(line, "{}") == NETWORK for line in LINES)


REFUSED: list[tuple[str, list[str], str, str]] = [
    # replaced line, by what, text of the line at fault, part of the message
    ("torch", ["{}", "import os"], "import os", "may import only torch, not: import os"),
    ("torch", ["import torch, os"], "import torch, os", "may import only torch"),
    ("torch", ["import torch as nn"], "import torch as nn", "may import only torch"),
    ("torch", ["{}", "from os import *"], "from os import *", "may import only torch"),
    ("torch", ["{}", "from . import nn"], "from . import", "may import only torch"),
    ("torch", ["{}", "from .torch import Tensor, nn"], "from .torch", "may import only torch"),
    ("torch", ["{}", "import torch.utils.cpp_extension"], "cpp_extension", "may import only torch"),
    ("torch", ["from __future__ import annotations", "{}"], "__future__", "may import only torch"),
    ("tensor", ["from torch import nn"], "from torch import nn", "may import only torch"),
    ("functional", ["from torch.nn import *"], "import *", "may import only torch"),
    ("torch", ["pass"], "pass", "expected the class of the network"),
    ("torch", [""], "torch.zeros", "torch is not imported: import torch"),
    ("tensor", [""], "class Net", "nn is not imported: from torch import Tensor, nn"),
    ("functional", [""], "F.relu", "F is not imported: from torch.nn import functional as F"),
    ("functional", ["{}", "", "print()"], "print()", "expected the class of the network"),
    ("functional", ["{}", "", "nn.Module = object"], "nn.Module = object", "expected the class of the network"),
    ("functional", ["{}", "", "if True:", "    import os"], "if True", "expected the class of the network"),
    ("docstring", ['"""A network."""'], '"""A network."""', 'expected a docstring that names the input, such as "Input 3x32x32."'),
    ("docstring", ['"""A network. Input 3x-8x8."""'], '"""A network', "expected a docstring"),
    ("docstring", ['"""A network. Input 3x8000000000x8."""'], '"""A network', "expected a docstring"),
    ("docstring", ["# A network. Input 3x8x8."], "import torch", "expected a docstring"),
    ("docstring", ['f"""A network. Input 3x8x8."""'], 'f"""A', "expected a docstring"),
    ("docstring", ['b"""A network. Input 3x8x8."""'], 'b"""A', "expected a docstring"),
    ("docstring", ['"""A network. Input 0x8x8."""'], "class Net", "the input shape needs sizes of at least 1"),
    ("docstring", ['"""A network. Input 4x8x8."""'], "F.relu", "self.conv: takes 3 channels, but its input has 4"),
    ("fc", ["{}.requires_grad_(True)"], "requires_grad_", "not a layer that prunetrain knows: nn.Linear(4, 2).requires_grad_(True)"),
    ("fc", ["{}.requires_grad_(False).eval()"], "requires_grad_", "not a layer that prunetrain knows"),
    ("fc", ["{}.requires_grad_(False).requires_grad_(False)"], "requires_grad_", "not a layer that prunetrain knows"),
    ("bias", ["{}.requires_grad_(False)"], "requires_grad_", "not a layer that prunetrain knows"),
    ("class", ["@torch.compile", "{}"], "class Net", "the class must be a plain subclass of nn.Module"),
    ("class", ["class Net(nn.Module, metaclass=print):"], "class Net", "the class must be a plain subclass of nn.Module"),
    ("class", ["class Net(nn.Module, object):"], "class Net", "the class must be a plain subclass of nn.Module"),
    ("class", ["class Net(*[nn.Module]):"], "class Net", "the class must be a plain subclass of nn.Module"),
    ("class", ["class Net(nn.Sequential):"], "class Net", "the class must be a plain subclass of nn.Module"),
    ("class", ["class Net(print('x') or nn.Module):"], "class Net", "the class must be a plain subclass of nn.Module"),
    ("class", ["class Net:"], "class Net", "the class must be a plain subclass of nn.Module"),
    ("class", ["class nn(nn.Module):"], "class nn", "'nn' cannot name a class"),
    ("class", ["class super(nn.Module):"], "class super", "'super' cannot name a class"),
    ("class", ["class _Net(nn.Module):"], "class _Net", "'_Net' cannot name a class"),
    ("class", ["{}", "    size = 3"], "class Net", "the class must hold __init__ and forward, and nothing else"),
    ("class", ["{}", '    """Doc."""'], "class Net", "the class must hold __init__ and forward, and nothing else"),
    ("class", ["class First(nn.Module):", "    pass", "", "", "{}"], "class Net", "nothing may follow the class of the network"),
    ("return", ["print()", "{}"], "print()", "forward may only"),
    ("init", ["@torch.no_grad()", "{}"], "def __init__", "expected: def __init__(self) -> None"),
    ("init", ["def __init__(self, width=print()) -> None:"], "def __init__", "expected: def __init__(self) -> None"),
    ("init", ["def __init__(self):"], "def __init__", "expected: def __init__(self) -> None"),
    ("init", ["async def __init__(self) -> None:"], "class Net", "the class must hold __init__ and forward"),
    ("super", ["pass"], "def __init__", "__init__ must begin with super().__init__()"),
    ("super", ["super().__init__(print())"], "def __init__", "__init__ must begin with super().__init__()"),
    ("super", ["{}", "super().__init__()  # again"], "# again", "__init__ may only define layers"),
    ("super", ["{}", "torch.os.system('true')"], "system", "__init__ may only define layers, not: torch.os.system('true')"),
    ("super", ["{}", "print()"], "print()", "__init__ may only define layers, not: print()"),
    ("super", ["{}", "for _ in range(3):", "    pass"], "for _", "__init__ may only define layers, not: for _ in range(3):"),
    ("super", ["{}", "if True:", "    pass"], "if True", "__init__ may only define layers"),
    ("super", ["{}", "import os"], "import os", "__init__ may only define layers"),
    ("super", ["{}", "width = 3"], "width = 3", "__init__ may only define layers"),
    ("super", ["{}", "self.width = 3"], "self.width", "__init__ may only define layers"),
    ("super", ["{}", "self.a.b = nn.Linear(4, 2)"], "self.a.b", "__init__ may only define layers"),
    ("super", ["{}", "self.a = self.b = nn.Linear(4, 2)"], "self.a", "__init__ may only define layers"),
    ("super", ["{}", "self['a'] = nn.Linear(4, 2)"], "self['a']", "__init__ may only define layers"),
    ("super", ["{}", "torch.a = nn.Linear(4, 2)"], "torch.a", "__init__ may only define layers"),
    ("super", ["{}", "self.a: nn.Linear = nn.Linear(4, 2)"], "self.a", "__init__ may only define layers"),
    ("super", ["{}", "self.forward = nn.Linear(4, 2)"], "self.forward", "'forward' cannot name a layer"),
    ("super", ["{}", "self.__class__ = nn.Linear(4, 2)"], "__class__", "'__class__' cannot name a layer"),
    ("super", ["{}", "self.training = nn.Linear(4, 2)"], "self.training", "'training' cannot name a layer"),
    ("super", ["{}", "self.caf\u00e9 = nn.Linear(4, 2)"], "self.caf", "cannot name a layer"),
    ("super", ["{}", "self.rnn = nn.LSTM(4, 2)"], "nn.LSTM", "not a layer that prunetrain knows: nn.LSTM(4, 2)"),
    ("super", ["{}", "self.a = nn.functional.Linear(4, 2)"], "self.a", "not a layer that prunetrain knows"),
    ("super", ["{}", "self.a = nn.Module.Linear(4, 2)"], "self.a", "not a layer that prunetrain knows"),
    ("super", ["{}", "self.a = torch.nn.Linear(4, 2)"], "self.a", "not a layer that prunetrain knows"),
    ("super", ["{}", "self.a = Linear(4, 2)"], "self.a", "not a layer that prunetrain knows"),
    ("super", ["{}", "self.a = eval('1')"], "self.a", "not a layer that prunetrain knows: eval('1')"),
    ("super", ["{}", "self.a = (lambda: nn)().Linear(4, 2)"], "lambda", "not a layer that prunetrain knows"),
    ("super", ["{}", "self.a = [nn.Linear(4, 2) for _ in 'ab']"], "self.a", "__init__ may only define layers"),
    ("fc", ["{}", "{}  # again"], "# again", "self.fc is defined twice"),
    ("fc", ["{}", "self.bias = nn.Linear(4, 2)"], "self.bias = nn.Linear", "self.bias is defined twice"),
    ("fc", ["{}", "self.fc2 = nn.Linear(4, 2)"], "self.fc2", "self.fc2 is never used"),
    ("fc", ["{}", "self.shift = nn.Parameter(torch.zeros(4))"], "self.shift", "self.shift is never used"),
    ("fc", ["self.fc = nn.Linear(4, 2, 3)"], "self.fc =", "self.fc: bias must be True or False, not 3"),
    ("fc", ["self.fc = nn.Linear(4, 2, True, 'cuda')"], "self.fc =", "too many arguments"),
    ("fc", ["self.fc = nn.Linear(4, 2, device='cuda')"], "self.fc =", "unknown or repeated argument 'device'"),
    ("fc", ["self.fc = nn.Linear(4, 2, in_features=4)"], "self.fc =", "unknown or repeated argument 'in_features'"),
    ("fc", ["self.fc = nn.Linear(4, out_features=2, out_features=2)"], "self.fc =", "unknown or repeated argument 'out_features'"),
    ("fc", ["self.fc = nn.Linear(4)"], "self.fc =", "self.fc: argument 'out_features' is missing"),
    ("fc", ["self.fc = nn.Linear(4, '2')"], "self.fc =", "self.fc: out_features must be a whole number from 1, not '2'"),
    ("fc", ["self.fc = nn.Linear(4, 2.0)"], "self.fc =", "self.fc: out_features must be a whole number from 1, not 2.0"),
    ("fc", ["self.fc = nn.Linear(4, True)"], "self.fc =", "self.fc: out_features must be a whole number from 1, not True"),
    ("fc", ["self.fc = nn.Linear(4, -2)"], "self.fc =", "self.fc: out_features must be a whole number from 1, not -2"),
    ("fc", ["self.fc = nn.Linear(4, None)"], "self.fc =", "self.fc: out_features must be"),
    ("fc", ["self.fc = nn.Linear(4, 1 + 1)"], "self.fc =", "expected a literal, not 1 + 1"),
    ("fc", ["self.fc = nn.Linear(4, 2j)"], "self.fc =", "expected a number, string or tuple, not 2j"),
    ("fc", ["self.fc = nn.Linear(4, [2])"], "self.fc =", "expected a number, string or tuple, not [2]"),
    ("fc", ["self.fc = nn.Linear(4, b'2')"], "self.fc =", "expected a number, string or tuple, not b'2'"),
    ("fc", ["self.fc = nn.Linear(4, f'{2}')"], "self.fc =", "expected a literal, not f'{2}'"),
    ("fc", ["self.fc = nn.Linear(4, (n := 2))"], "self.fc =", "expected a literal, not (n := 2)"),
    ("fc", ["self.fc = nn.Linear(4, print())"], "self.fc =", "expected a literal, not print()"),
    ("fc", ["self.fc = nn.Linear(*(4, 2))"], "self.fc =", "expected a literal, not *(4, 2)"),
    ("fc", ["self.fc = nn.Linear(4, 2, **dict())"], "self.fc =", "unknown or repeated argument '**'"),
    ("fc", ["self.fc = nn.Linear(", "    4,", "    print(),", ")"], "print()", "expected a literal, not print()"),
    ("conv", ["self.conv = nn.Conv2d(3, 4, kernel_size=3, padding='full')"], "self.conv =", "self.conv: padding must be"),
    ("conv", ["self.conv = nn.Conv2d(3, 4, kernel_size=3, padding_mode='mirror')"], "self.conv =", "self.conv: padding_mode must be"),
    ("conv", ["self.conv = nn.Conv2d(3, 4, kernel_size=(3, 3, 3))"], "self.conv =", "self.conv: kernel_size must be"),
    ("conv", ["self.conv = nn.Conv2d(3, 4, kernel_size=9)"], "F.relu", "self.conv: nothing is left of the image"),
    ("conv", ["self.conv = nn.Conv2d(3, 4, kernel_size=3, groups=2)"], "F.relu", "self.conv: 2 groups do not divide 3 and 4 channels"),
    ("conv", ["self.conv = nn.Conv2d(3, 5, kernel_size=3)"], "F.relu", "5x6x6 and 4x1x1 cannot be broadcast"),
    ("bias", ["self.bias = nn.Parameter(torch.ones(4, 1, 1))"], "self.bias =", "a tensor is declared as nn.Parameter("),
    ("bias", ["self.bias = nn.Parameter(torch.zeros())"], "self.bias =", "a tensor is declared as nn.Parameter("),
    ("bias", ["self.bias = nn.Parameter(torch.zeros((4, 1)))"], "self.bias =", "expected a whole number, not (4, 1)"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4, 1.0))"], "self.bias =", "expected a whole number, not 1.0"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(0))"], "self.bias =", "self.bias needs sizes of at least 1"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4, True))"], "self.bias =", "expected a whole number, not True"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4, 2147483648))"], "self.bias =", "a number beyond 32 bits: 2147483648"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4, out=print()))"], "self.bias =", "torch.zeros takes sizes and a dtype"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4, dtype=print()))"], "self.bias =", "torch.zeros takes sizes and a dtype"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4, **print()))"], "self.bias =", "torch.zeros takes sizes and a dtype"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4, dtype=torch.int64))"], "self.bias =", "self.bias cannot be a parameter of int64"),
    ("bias", ["self.bias = nn.Buffer(torch.zeros(4, dtype=torch.float64))"], "self.bias =", "torch.zeros takes sizes and a dtype"),
    ("bias", ["self.bias = nn.Buffer(torch.zeros(4, dtype=int64))"], "self.bias =", "and a dtype (torch.float32, torch.int64, torch.bool)"),
    ("bias", ["self.bias = nn.Buffer(torch.zeros(4, dtype='bool'))"], "self.bias =", "torch.zeros takes sizes and a dtype"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4), requires_grad=True)"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4), requires_grad=print())"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Buffer(torch.zeros(4), requires_grad=False)"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Buffer(torch.zeros(4), persistent=False)"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([0, 1]))"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([0, 1]), persistent=print())"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([]), persistent=False)"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([0, print()]), persistent=False)"], "self.bias =", "expected a literal, not print()"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([0, *x]), persistent=False)"], "self.bias =", "expected a literal, not *x"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([0.0]), persistent=False)"], "self.bias =", "expected a whole number, not 0.0"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([-1]), persistent=False)"], "self.bias =", "self.bias needs int64 positions from 0"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([4294967296]), persistent=False)"], "self.bias =", "a number beyond 32 bits"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor([n for n in print()]), persistent=False)"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Buffer(torch.tensor((0, 1)), persistent=False)"], "self.bias =", "a tensor is declared as"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(print()))"], "self.bias =", "expected a literal, not print()"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(4, 1, 1), False)"], "self.bias =", "not a layer that prunetrain knows"),
    ("bias", ["self.bias = nn.Parameter()"], "self.bias =", "not a layer that prunetrain knows"),
    ("bias", ["self.bias = nn.Parameter(torch.zeros(7, 4, 1, 1))"], "F.relu", "4x8x8 and 7x4x1x1 cannot be broadcast"),
    ("forward", ["def forward(self, x: Tensor, y: Tensor = print()) -> Tensor:"], "def forward", "expected: def forward(self, x: Tensor)"),
    ("forward", ["def forward(self, x: Tensor = None) -> Tensor:"], "def forward", "expected: def forward(self, x: Tensor) -> Tensor"),
    ("forward", ["def forward(self, *x: Tensor) -> Tensor:"], "def forward", "expected: def forward(self, x: Tensor) -> Tensor"),
    ("forward", ["def forward(self, x: print()) -> Tensor:"], "def forward", "expected: def forward(self, x: Tensor) -> Tensor"),
    ("forward", ["def forward(self, x: Tensor):"], "def forward", "expected: def forward(self, x: Tensor) -> Tensor"),
    ("forward", ["@torch.no_grad()", "{}"], "def forward", "expected: def forward(self, x: Tensor) -> Tensor"),
    ("forward", ["def call(self, x: Tensor) -> Tensor:"], "class Net", "the class must hold __init__ and forward"),
    ("forward", ["{}", '    """Doc."""'], '"""Doc."""', "forward may only call layers and functions, line by line"),
    ("pool", ["for _ in range(2):", "    {}"], "for _", "forward may only call layers and functions, line by line, not: for _"),
    ("pool", ["while True:", "    {}"], "while True", "forward may only call layers and functions, line by line"),
    ("pool", ["if self.training:", "    {}"], "F.adaptive", "x would differ between train and eval mode: assign to another name"),
    (
        "pool",
        ["if self.training:", "    y = x", "    {}"],
        "F.adaptive",
        "x would differ between train and eval mode: assign to another name",
    ),
    ("pool", ["if self.training:", "    y = F.relu(x)", "x = x + y"], "x + y", "y is not defined here"),
    ("pool", ["if self.training:", "    y = F.relu(x)", "del y"], "del y", "forward may only"),
    ("pool", ["if self.training:", "    del x"], "del x", "forward may only"),
    ("pool", ["if self.training:", "    y = F.relu(x)"], "F.relu(x)", "the result of F.relu is never used"),
    ("pool", ["if self.training:", "    print()"], "print()", "forward may only call layers and functions, line by line, not: print()"),
    (
        "pool",
        ["if self.training:", "    y = x", "else:", "    y = x"],
        "if self",
        "forward may only call layers and functions, line by line",
    ),
    ("pool", ["if self.training:", "    if self.training:  # again", "        y = x"], "# again", "forward may only"),
    ("pool", ["if self.training:", "    return x, x"], "return x", "forward may only"),
    ("pool", ["if print():", "    y = x"], "if print()", "forward may only call layers and functions, line by line"),
    ("pool", ["if not self.training:", "    y = x"], "if not", "forward may only call layers and functions, line by line"),
    ("pool", ["with torch.no_grad():", "    {}"], "with torch", "forward may only call layers and functions, line by line"),
    ("pool", ["print(x)", "{}"], "print(x)", "forward may only call layers and functions, line by line, not: print(x)"),
    ("pool", ["import os", "{}"], "import os", "forward may only"),
    ("pool", ["global x", "{}"], "global x", "forward may only"),
    ("pool", ["return x", "{}"], "return x", "forward may only"),
    ("pool", ["x = y = F.relu(x)", "{}"], "x = y", "forward may only"),
    ("pool", ["x, y = F.relu(x)", "{}"], "x, y", "forward may only"),
    ("pool", ["x += F.relu(x)", "{}"], "x +=", "forward may only"),
    ("pool", ["x: Tensor = F.relu(x)", "{}"], "x: Tensor =", "forward may only"),
    ("pool", ["self.y = F.relu(x)", "{}"], "self.y", "forward may only"),
    ("pool", ["self.conv.weight = F.relu(x)", "{}"], "self.conv.weight", "forward may only"),
    ("pool", ["self = F.relu(x)", "{}"], "self = ", "self cannot name a local variable"),
    ("pool", ["torch = F.relu(x)", "{}"], "torch = ", "torch cannot name a local variable"),
    ("pool", ["F = F.relu(x)", "{}"], "F = ", "F cannot name a local variable"),
    ("pool", ["del y", "{}"], "del y", "forward may only"),
    ("pool", ["y = x", "del y, y", "{}"], "del y, y", "forward may only"),
    ("pool", ["del self.conv", "{}"], "del self.conv", "forward may only"),
    ("pool", ["del x", "{}"], "F.adaptive", "x is not defined here"),
    ("pool", ["x = F.adaptive_avg_pool2d(y, 1)"], "F.adaptive", "y is not defined here"),
    ("pool", ["y = F.relu(x)", "{}"], "y = F.relu", "the result of F.relu is never used"),
    ("pool", ["x = (lambda x: x)(x)", "{}"], "lambda", "not a layer or function that prunetrain knows: (lambda x: x)(x)"),
    ("pool", ["x = [x for _ in 'a'][0]", "{}"], "for _", "not a layer or function that prunetrain knows"),
    ("pool", ["x = F.relu(y := x)", "{}"], "y := x", "not a layer or function that prunetrain knows: (y := x)"),
    ("pool", ["x = F.relu(x if x else x)", "{}"], "if x", "not a layer or function that prunetrain knows: x if x else x"),
    ("pool", ["x = F.relu(*x)", "{}"], "*x", "not a layer or function that prunetrain knows: *x"),
    ("pool", ["x = F.relu(**x)", "{}"], "**x", "unknown or repeated argument '**'"),
    ("pool", ["x = F.relu(x, inplace=True)", "{}"], "inplace", "unknown or repeated argument 'inplace'"),
    ("pool", ["x = F.relu(x, x)", "{}"], "(x, x)", "too many arguments: F.relu(x, x)"),
    ("pool", ["x = F.relu(f'{x}')", "{}"], "f'{x}'", "not a layer or function that prunetrain knows"),
    ("pool", ["x = F.relu(3)", "{}"], "relu(3)", "F.relu: input must be a tensor, not 3"),
    ("pool", ["x = F.relu((x, x))", "{}"], "relu((", "expected a literal, not (x, x)"),
    ("pool", ["x = F.relu()", "{}"], "relu()", "F.relu: argument 'input' is missing"),
    ("pool", ["x = F.relu(self.training)", "{}"], "self.training", "F.relu: input must be a tensor"),
    ("pool", ["x = self.bias", "{}"], "x = self.bias", "not a layer or function that prunetrain knows: self.bias"),
    ("pool", ["x = x + F.adaptive_avg_pool2d(self.bias, 1)"], "adaptive", "F.adaptive_avg_pool2d: takes images (C, H, W), not 1x1"),
    ("pool", ["x = F.relu(self.conv)", "{}"], "relu(self.conv)", "not a layer or function that prunetrain knows: self.conv"),
    ("pool", ["x = F.relu(self.conv.weight)", "{}"], "weight", "not a layer or function that prunetrain knows: self.conv.weight"),
    ("pool", ["x = F.dropout(x, 0.5, x)", "{}"], "dropout", "F.dropout: training must be self.training, True or False"),
    ("pool", ["x = F.dropout(x, 2)", "{}"], "dropout", "F.dropout: p must be a number from 0 to 1, not 2"),
    ("pool", ["x = F.leaky_relu(x, 1e999)", "{}"], "leaky", "F.leaky_relu: negative_slope must be a finite number"),
    ("pool", ["x = F.softmax(x)", "{}"], "softmax", "F.softmax: argument 'dim' is missing"),
    ("pool", ["x = F.rrelu(x)", "{}"], "rrelu", "not a layer or function that prunetrain knows: F.rrelu(x)"),
    ("pool", ["x = torch.max(x, 1)", "{}"], "torch.max(x, 1)", "not a layer or function that prunetrain knows: torch.max(x, 1)"),
    ("pool", ["x = F.relu(x).values", "{}"], "values", "not a layer or function that prunetrain knows: F.relu(x).values"),
    ("pool", ["x = torch.load(x)", "{}"], "load", "not a layer or function that prunetrain knows: torch.load(x)"),
    ("pool", ["x = torch.nn.functional.relu(x)", "{}"], "relu(x)", "not a layer or function that prunetrain knows"),
    ("pool", ["x = x.relu()", "{}"], "x.relu()", "not a layer or function that prunetrain knows: x.relu()"),
    ("pool", ["x = self.pool(x)", "{}"], "self.pool", "not a layer or function that prunetrain knows: self.pool(x)"),
    ("pool", ["x = self.bias(x)", "{}"], "self.bias(", "not a layer or function that prunetrain knows: self.bias(x)"),
    ("pool", ["x = self.conv.forward(x)", "{}"], "forward(x)", "not a layer or function that prunetrain knows"),
    ("pool", ["x = self.conv(x, x)", "{}"], "(x, x)", "too many arguments: self.conv(x, x)"),
    ("pool", ["x = x % 2", "{}"], "x % 2", "not a layer or function that prunetrain knows: x % 2"),
    ("pool", ["x = 1 + 2", "{}"], "1 + 2", "+: must read a result of the network"),
    ("pool", ["x = x + True", "{}"], "x + True", "+: other must be a tensor or a number, not True"),
    ("pool", ["x = x + 'y'", "{}"], "x + 'y'", "+: other must be a tensor or a number, not 'y'"),
    ("pool", ["x = x + (1, 2)", "{}"], "x + (1", "+: other must be a tensor or a number, not (1, 2)"),
    ("pool", ["x = x @ 2", "{}"], "x @ 2", "@: other must be a tensor, not 2"),
    ("pool", ["x = x * 4294967296", "{}"], "x * 42", "a number beyond 32 bits: 4294967296"),
    ("pool", ["x = x + self.training", "{}"], "x + self", "+: other must be a tensor or a number"),
    ("pool", ["x = -x", "{}"], "-x", "not a layer or function that prunetrain knows: -x"),
    ("pool", ["x = x[0]", "{}"], "adaptive", "F.adaptive_avg_pool2d: takes images (C, H, W), not 8x8"),
    ("pool", ["x = x[True]", "{}"], "x[True]", "[]: index must be a whole number, not True"),
    ("pool", ["x = x[None]", "{}"], "x[None]", "[]: index must be a whole number, not None"),
    ("pool", ["x = x[x]", "{}"], "x[x]", "expected a literal, not x"),
    ("pool", ["x = x[print()]", "{}"], "x[print()]", "expected a literal, not print()"),
    ("pool", ["x = x[:, print():]", "{}"], "print()", "expected a literal, not print()"),
    ("pool", ["x = x[:, 0.5:]", "{}"], "0.5", "[:]: start must be a whole number, not 0.5"),
    ("pool", ["x = x[:, ::-1]", "{}"], "::-1", "[:]: step must be a whole number from 1, not -1"),
    ("pool", ["x = x[:, 0, 1]", "{}"], "0, 1", "expected slices or one index, not x[:, 0, 1]"),
    ("pool", ["x = x[:, 0, 1:]", "{}"], "0, 1", "expected slices or one index, not x[:, 0, 1:]"),
    ("pool", ["x = x[..., 1:, 1:]", "{}"], "1:, 1:", "expected slices or one index, not x[..., 1:, 1:]"),
    ("pool", ["x = x[...]", "{}"], "x[...]", "expected slices or one index, not x[...]"),
    ("pool", ["x = x[()]", "{}"], "x[()]", "expected slices or one index, not x[()]"),
    ("pool", ["x = x[:, :, :, :, 1:]", "{}"], "1:", "[:]: dimension 4 is out of range for 4 dimensions"),
    ("pool", ["x = torch.cat(x, 1)", "{}"], "cat", "torch.cat: tensors must be a tuple of tensors"),
    ("pool", ["x = torch.cat((), 1)", "{}"], "cat", "torch.cat: tensors must be a tuple of tensors, not ()"),
    ("pool", ["x = torch.cat((x, *x), 1)", "{}"], "cat", "not a layer or function that prunetrain knows: *x"),
    ("pool", ["x = torch.cat((x, 2), 1)", "{}"], "cat", "torch.cat: tensors must be a tuple of tensors"),
    ("pool", ["x = torch.einsum()", "{}"], "einsum", "expected a literal, not torch.einsum()"),
    ("pool", ["x = torch.einsum('abcd->ab')", "{}"], "einsum", "torch.einsum: operands must be a tuple of tensors, not ()"),
    ("pool", ["x = torch.einsum('ab->ba', x)", "{}"], "einsum", "torch.einsum: ab->ba does not fit its operands"),
    ("pool", ["x = torch.reshape(x, (x.shape[1], -1))", "{}"], "reshape", "expected a literal, not x.shape[1]"),
    ("pool", ["x = torch.reshape(x, (F.relu(x).shape[0], -1))", "{}"], "reshape", "expected a literal, not F.relu(x).shape[0]"),
    ("pool", ["x = torch.reshape(x, x.shape)", "{}"], "reshape", "not a layer or function that prunetrain knows: x.shape"),
    ("pool", ["x = torch.reshape(x, (-1, 3))", "{}"], "reshape", "torch.reshape: 256 elements do not fit into -1x3"),
    ("pool", ["x = torch.flatten(x, 0, 1)", "{}"], "adaptive", "F.adaptive_avg_pool2d: takes images (C, H, W), not 8x8"),
    ("pool", ["x = await x", "{}"], "await x", "not a layer or function that prunetrain knows: await x"),
    ("pool", ["x = (yield x)", "{}"], "yield x", "not a layer or function that prunetrain knows: (yield x)"),
    ("pool", ["x = None", "{}"], "x = None", "not a layer or function that prunetrain knows: None"),
    ("pool", ["x = F.max_pool2d(x, 20)"], "max_pool2d", "F.max_pool2d: nothing is left of the image"),
    ("flatten", ["{}", "", "x = (", "    x", "    + F.max_pool2d(x, 2)", ")"], "max_pool2d", "F.max_pool2d: takes images (C, H, W), not 4"),
    ("fc", ["self.fc = nn.Linear(5, 2)"], "return", "self.fc: takes 5 channels, but its input has 4"),
    ("return", ["x = self.fc(x)"], "self.fc(x)", "forward must end with return"),
    ("return", ["return"], "return", "forward must end with return"),
    ("return", ["return x, self.fc(x)"], "def forward", "expected: def forward(self, x: Tensor) -> tuple[Tensor, Tensor]"),
    ("return", ["return ()"], "return ()", "not a layer or function that prunetrain knows: ()"),
    ("return", ["return (self.fc(x),)"], "return", "not a layer or function that prunetrain knows: (self.fc(x),)"),
    ("return", ["return (x, (x, x))"], "return", "not a layer or function that prunetrain knows: (x, x)"),
    ("return", ["if self.training:", "    return x, x", "{}"], "if self", "in train mode forward must return what it returns in eval mode"),
    (
        "return",
        ["if self.training:", "    return x", "return x"],
        "if self",
        "in train mode forward must return what it returns in eval mode",
    ),
    ("return", ["if self.training:", "    return x, x", "return x"], "def forward", "-> Tensor | tuple[Tensor, ...]"),
    ("return", ["if self.training:", "    return x, x"], "if self", "forward must end with return"),
    ("return", ["return self.fc(x)()"], "return", "not a layer or function that prunetrain knows: self.fc(x)()"),
    ("return", ["return {}x"], "return", "not Python"),
]


@pytest.mark.parametrize(("line", "new", "at", "message"), REFUSED, ids=[f"{line}:{new[-1]}" for line, new, _, _ in REFUSED])
def test_refused(line: str, new: list[str], at: str, message: str) -> None:
    source = replaced(line, *new)
    with pytest.raises(NetworkFileError) as caught:
        parse(source, "net.py")
    text = str(caught.value)
    assert text.startswith(f"net.py:{line_of(source, at)}: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < 250


def deep(expression: str) -> str:
    return NETWORK.replace("F.adaptive_avg_pool2d(x, 1)", expression)


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("", 1, "expected a docstring"),
        ("\n\n", 1, "expected a docstring"),
        ('"""Input 3x8x8."""', 1, "expected the class of the network"),
        ("PK\x03\x04", 1, "not Python"),
        ("\x00", 1, "not Python"),
        (NETWORK + "\x00", None, "not Python"),
        ("\ufeff" + NETWORK, 1, "not Python"),
        (NETWORK + "\ud800", None, "not Python"),
        (NETWORK + "\n    def extra(self) -> None:\n        pass\n", 8, "the class must hold __init__ and forward, and nothing else"),
        (NETWORK + "\n\nprint()\n", 22, "nothing may follow the class of the network"),
        (NETWORK + "\n\nclass Second(nn.Module):\n    pass\n", 22, "nothing may follow the class of the network"),
        (NETWORK + "if x\n", 20, "not Python"),
        (NETWORK + "  x\n", 20, "not Python"),
        (NETWORK.replace("    x = torch", "   x = torch"), 18, "not Python"),
        ('"""Input 3x8x8."""\n' + "#" * 2_000_001, 1, "too long for a network file"),
        (deep("(" * 1000 + "x" + ")" * 1000), None, "not Python"),
        (deep("F.relu(" * 1000 + "x" + ")" * 1000), None, "not Python"),
        (deep("x" + " + x" * 2000), None, ""),
        (deep("x" + " + x" * 200_000), None, ""),
        (deep("-" * 100_000 + "x"), None, ""),
        (deep("x" + ".a" * 100_000), None, ""),
        (NETWORK.replace("nn.Linear(4, 2)", "nn.Linear(4, " + "9" * 5000 + ")"), None, ""),
        (NETWORK.replace("nn.Linear(4, 2)", "nn.Linear(0x" + "f" * 5000 + ", 2)"), None, ""),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_is_no_network_at_all(source: str, line: int | None, message: str) -> None:
    with pytest.raises(NetworkFileError, match=rf"^net.py:{line or '[0-9]+'}: {message}") as caught:
        parse(source, "net.py")
    assert len(str(caught.value)) < 250


def test_deep_nesting_is_refused_in_its_line() -> None:
    source = deep("x" + " + x" * 800)
    with pytest.raises(NetworkFileError, match=rf"^net.py:{line_of(source, 'x + x')}: nested too deeply for a network file$"):
        parse(source, "net.py")


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "(1, (0x" + "f" * 5000 + ",))"])
def test_a_number_too_long_to_be_shown(number: str) -> None:
    source = deep(f"x * {number}")
    with pytest.raises(NetworkFileError, match=r"^net.py:[0-9]+: a number beyond 32 bits: code that cannot be shown \((Constant|Tuple)\)$"):
        parse(source, "net.py")


# Files.

TOUCH = "__import__('pathlib').Path({!r}).touch()"


@pytest.mark.parametrize(
    "source", [replaced(line, *new) for line, new, _, _ in REFUSED if "print()" in " ".join(new)] + [NETWORK + "\nprint()\n"]
)
def test_a_refused_file_never_runs(source: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "net.py"
    source = source.replace("print()", TOUCH.format(str(canary)))
    path.write_text(source)
    with pytest.raises(NetworkFileError, match=rf"^{re.escape(str(path))}:[0-9]+: "):
        load_network(path)
    assert not canary.exists()

    namespace: dict[str, type[torch.nn.Module]] = {}
    with contextlib.suppress(Exception):  # had it run
        exec(source, namespace)
        namespace["Net"]()(torch.zeros(1, 3, 8, 8))
    assert canary.exists()


def test_load_network_gives_a_module(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    network = load_network(path)
    assert type(network).__name__ == "Net"
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 2)
    assert [name for name, _ in network.named_parameters()] == ["bias", "conv.weight", "conv.bias", "fc.weight", "fc.bias"]
    assert load_network(str(path)) is not network
    assert read_graph(path) == parse(NETWORK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "net.py: no such network file"),
        (b"\xff\xfe\x00", "net.py: not a network file: not UTF-8 text"),
        (NETWORK.replace("A network", "Caf\u00e9").encode("latin-1"), "net.py: not a network file: not UTF-8 text"),
        (
            b"# -*- coding: rot13 -*-\n" + NETWORK.replace("import torch\n", "import os\n").encode(),
            "net.py:4: a network file may import only torch",
        ),
        ("folder", "net.py: not a network file: is a directory"),
    ],
)
def test_files_that_cannot_be_read(content: bytes | str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    for read in (load_network, read_graph):
        with pytest.raises(NetworkFileError) as caught:
            read(path)
        assert message in str(caught.value)
        assert str(caught.value).startswith(str(path))


def test_a_network_too_large_for_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    huge = "self.huge = nn.Linear(8_000_000, 8_000_000)"
    source = NETWORK.replace("self.fc = nn.Linear(4, 2)", f"{huge}\n        self.fc = nn.Linear(4, 8_000_000)")
    path.write_text(source.replace("return self.fc(x)", "return self.huge(self.fc(x))"))
    with pytest.raises(NetworkFileError, match=r"net.py: its weights take 256 TB, and [^\n]+ of memory are free$"):
        load_network(path)


def test_a_network_with_too_many_channels_to_follow() -> None:
    source = NETWORK.replace("self.fc = nn.Linear(4, 2)", "self.fc = nn.Linear(4, 2_000_000_000)")
    with pytest.raises(
        NetworkFileError, match=rf"^net.py:{line_of(source, 'self.fc(x)')}: the network has more than 67,108,864 channels in all "
    ):
        parse(source, "net.py")


def test_the_fingerprint_is_that_of_the_text() -> None:
    assert sha256_of("caf\u00e9") == "850f7dc43910ff890f8879c0ed26fe697c93a067ad93a7d50f466a7028a9bf4e"
