"""How much memory a cut takes beyond the weights, for networks with large layers (Linux only).

    python benchmarks/slicing_memory.py --models torchvision:vgg16

A third of the filters in every layer but the last is dead. Out: a Markdown table in MB: the weights, the largest layer, the rise of the
process's resident memory (according to the kernel) while selecting and while slicing, and the new weights, which are part of that.
"""

import argparse
import ctypes
import gc
import re
from pathlib import Path

import torch
from runs import machine
from torch import Tensor

from prunetrain.channels.slicing import propose_cut
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.trace import trace_with_state
from prunetrain.models import build

SHAPE = (3, 224, 224)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["torchvision:vgg16"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n\n| network | weights | largest layer | peak of selecting | peak of slicing | of these, new weights |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in arguments.models:
        traced = trace_with_state(build(model, input_shape=SHAPE, num_classes=1000), torch.zeros(2, *SHAPE))
        figures = _peaks(traced.graph, traced.state)
        print(f"| {model} | {' | '.join(f'{figure / 1e6:,.0f}' for figure in figures)} |", flush=True)


def _peaks(graph: LayerGraph, state: dict[str, Tensor]) -> list[int]:
    """Bytes, column by column."""
    for layer in graph.layers[:-1]:
        if layer.kind in ("Conv2d", "Linear"):
            state[f"{layer.name}.weight"][::3] = 0
            if f"{layer.name}.bias" in state:
                state[f"{layer.name}.bias"][::3] = 0
    weights = [tensor.nbytes for tensor in state.values()]
    before = _start_peak()
    proposal = propose_cut(graph, state, threshold=1e-4, criterion="either")
    plan = proposal.plan()
    select = _peak() - before
    before = _start_peak()
    cut = proposal.apply(plan)
    return [sum(weights), max(weights), select, _peak() - before, sum(tensor.nbytes for tensor in cut.state.values())]


def _start_peak() -> int:
    """Return free memory to the system, reset the high-water mark, and return the resident bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
