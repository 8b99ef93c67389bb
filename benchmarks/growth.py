"""How the cost of a cut grows with the network: chains of 10 to 1,000 layers, and layers of 256 to 16,384 channels.

    python benchmarks/growth.py --repeats 5

Out: Markdown tables of milliseconds per layer and microseconds per channel, by phase: if work grows linearly, the numbers in a column are
constant. Half of the channels between layers are dead. `select` finds what is dead, including spaces and constants; `slice` makes the
smaller graph and weights; `load` builds the module without filling it with random numbers. Each figure is the median of the repeats; all
sizes take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from runs import machine
from torch import Tensor, nn

from prunetrain.channels.slicing import propose_cut
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.parse import _parsed, parse
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace_with_state
from prunetrain.models.assembling import assemble

PHASES = ("trace", "spaces", "select", "slice", "render", "parse", "load")
LAYERS = (10, 30, 100, 300, 1000)
CHANNELS = (256, 1024, 4096, 16384)
WIDTH = 16  # channels of every layer of a chain
IMAGE = (3, 8, 8)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, 1 thread, CPU time; median of {arguments.repeats} repeats")
    for name, build in CHAINS.items():
        print(f"\n{name}: milliseconds per layer\n")
        _print_table("layers", LAYERS, _measured(build, LAYERS, arguments.repeats), 1e3)
    print("\none layer: microseconds per channel\n")
    _print_table("channels", CHANNELS, _measured(_wide, CHANNELS, arguments.repeats), 1e6)


def _measured(build: Callable[[int], nn.Module], sizes: Sequence[int], repeats: int) -> list[dict[str, float]]:
    """Median seconds of CPU time by phase, for networks of these sizes."""
    times: list[list[dict[str, float]]] = [[] for _ in sizes]
    models = [_half_dead(build(size)) for size in sizes]
    for repeat in range(repeats + 1):
        for model, found in zip(models, times, strict=True):
            seconds = _seconds(model)
            if repeat:  # the first one warms up
                found.append(seconds)
    return [{phase: statistics.median(one[phase] for one in found) for phase in PHASES} for found in times]


def _seconds(model: nn.Module) -> dict[str, float]:
    """One pass from the model to the smaller network."""
    _parsed.cache_clear()
    marks = [time.process_time()]

    def lap() -> None:
        marks.append(time.process_time())

    traced = trace_with_state(model, torch.zeros(1, *IMAGE))
    lap()
    find_spaces(traced.graph)
    lap()
    proposal = propose_cut(traced.graph, traced.state, threshold=1e-4, criterion="either")
    plan = proposal.plan(1)
    lap()
    cut = proposal.apply(plan)
    lap()
    source = render(cut.graph, dense=traced.graph, epoch=1)
    lap()
    graph = parse(source, "network.py")
    lap()
    assemble(source, "network.py", graph, cut.state)
    lap()
    return {phase: end - start for phase, (start, end) in zip(PHASES, pairwise(marks), strict=True)}


def _print_table(what: str, sizes: Sequence[int], rows: list[dict[str, float]], unit: float) -> None:
    print(f"| {what} | {' | '.join(PHASES)} |\n|{' --- |' * (len(PHASES) + 1)}")
    for size, row in zip(sizes, rows, strict=True):
        print(f"| {size:,} | {' | '.join(f'{row[phase] / size * unit:.3g}' for phase in PHASES)} |")


def _half_dead(model: nn.Module) -> nn.Module:
    """The model with every other filter and bias zero; the classifier stays."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    with torch.no_grad():
        for layer in layers:
            for tensor in layer.parameters():
                tensor[1::2] = 0
    return model


class _Unit(nn.Sequential):
    """A conv, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class _Residual(nn.Module):
    """Two convs beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _Unit(WIDTH, WIDTH), _Unit(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.second(self.first(x)))


class _Concatenation(nn.Module):
    """Two convs of half the width side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = _Unit(WIDTH, WIDTH // 2), _Unit(WIDTH, WIDTH // 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


class _Dense(nn.Module):
    """Sixteen convs that each read all earlier ones, as in DenseNet, and one that restores the width."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleList(_Unit(WIDTH + 4 * number, 4) for number in range(15))
        self.transition = _Unit(WIDTH + 4 * 15, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for unit in self.units:
            features.append(unit(torch.cat(features, 1)))
        y: Tensor = self.transition(torch.cat(features, 1))
        return y


def _network(*body: nn.Module) -> nn.Module:
    return nn.Sequential(_Unit(IMAGE[0], WIDTH), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))


def _wide(channels: int) -> nn.Module:
    return _network(_Unit(WIDTH, channels), _Unit(channels, WIDTH))


CHAINS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda layers: _network(*(_Unit(WIDTH, WIDTH) for _ in range(layers))),
    "residual": lambda layers: _network(*(_Residual() for _ in range(layers // 2))),
    "concatenation": lambda layers: _network(*(_Concatenation() for _ in range(layers // 2))),
    "dense blocks": lambda layers: _network(*(_Dense() for _ in range(max(1, layers // 16)))),
}


if __name__ == "__main__":
    main()
