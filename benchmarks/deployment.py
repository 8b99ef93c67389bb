"""A pruned network in deployment: its latency relative to the dense one's, in torch, torch.compile and ONNX Runtime.

    python benchmarks/deployment.py generated_nets/RUN/epoch_000.py generated_nets/RUN/epoch_010.py

In: two network files of a run, with their checkpoints where `prunetrain train` wrote them. Both are exported with BatchNorm folded, as a
network file with safetensors and as ONNX, and reloaded by a process that has torch, safetensors and ONNX Runtime, but not prunetrain.
Out: a Markdown table of the pruned network's time relative to the dense one's; all engines and both networks take turns in every round.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

BATCH_SIZES = (1, 32)
_SHORTEST = 0.02  # seconds of a turn


def main() -> None:
    """Export, or measure in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--exported", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.exported:
        measure(arguments.exported, arguments.rounds, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("dense", "pruned"):
            network: Path = getattr(arguments, name)
            checkpoint = network.parent.parent.parent / "checkpoints" / network.parent.name / f"{network.stem}.pt"
            for form in ("safetensors", "onnx"):
                command = [sys.executable, "-m", "prunetrain", "export", str(checkpoint), "-o", f"{folder}/{name}.{form}", "--fold-bn"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        subprocess.run([sys.executable, *sys.argv, "--exported", folder], check=True, env=environment)


def measure(folder: Path, rounds: int, threads: int) -> None:
    """Time everything in turns, and print."""
    assert not any(name.split(".")[0] == "prunetrain" for name in sys.modules)
    torch.set_num_threads(threads)
    networks = {name: load(folder / f"{name}.py", folder / f"{name}.safetensors") for name in ("dense", "pruned")}
    sessions = {name: session(folder / f"{name}.onnx", threads) for name in networks}
    shape = sessions["dense"].get_inputs()[0].shape[1:]
    versions = f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}"
    print(f"{versions}, {threads} threads, {rounds} rounds; input {'x'.join(map(str, shape))}\n")
    print("| batch | torch | torch.compile | ONNX Runtime |\n| --- | --- | --- | --- |")
    for batch_size in BATCH_SIZES:
        images = torch.randn(batch_size, *shape)
        pairs = {
            "torch": {name: run_torch(network, images) for name, network in networks.items()},
            "torch.compile": {name: run_torch(torch.compile(network), images) for name, network in networks.items()},
            "ONNX Runtime": {name: run_onnx(sessions[name], images) for name in networks},
        }
        ratios = time_in_turn(pairs, rounds)
        print(f"| {batch_size} | {' | '.join(spread(ratio) for ratio in ratios.values())} |", flush=True)


def load(network: Path, weights: Path) -> nn.Module:
    """Load a network from its two files, without prunetrain."""
    spec = importlib.util.spec_from_file_location(network.stem, network)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (cls,) = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, nn.Module))
    model: nn.Module = cls()
    model.load_state_dict(load_file(weights))
    return model.eval()


def session(path: Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_torch(network: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], None]:
    """Run one forward pass in torch."""

    @torch.inference_mode()
    def run() -> None:
        network(images)

    return run


def run_onnx(session: Any, images: Tensor) -> Callable[[], None]:
    """Run one forward pass in ONNX Runtime."""
    inputs = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, inputs)


def time_in_turn(pairs: dict[str, dict[str, Callable[[], None]]], rounds: int) -> dict[str, list[float]]:
    """For every engine, the ratios of the pruned network's seconds to the dense one's, round by round."""
    repeats = {}
    for engine, pair in pairs.items():
        for action in pair.values():
            seconds(action, 2)  # compiles
        repeats[engine] = max(1, round(_SHORTEST / seconds(pair["dense"], 1)))
    ratios: dict[str, list[float]] = {engine: [] for engine in pairs}
    for _ in range(rounds):
        for engine, pair in pairs.items():
            dense, pruned = (seconds(pair[name], repeats[engine]) for name in ("dense", "pruned"))
            ratios[engine].append(pruned / dense)
    return ratios


def seconds(action: Callable[[], None], repeats: int) -> float:
    """Mean seconds of an action."""
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - start) / repeats


def spread(sample: list[float]) -> str:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(sample, n=4, method="inclusive")
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
