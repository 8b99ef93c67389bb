"""Comparing two runs bit by bit, apart from timings and their folders."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import Checkpoint, load_checkpoint
from prunetrain.training.events import Metrics

UNREPEATABLE = ("epoch_seconds", "images_per_second", "peak_memory_bytes")


def differences(run: RunPaths, reference: RunPaths) -> list[str]:
    """List where one run differs from another: names of files, network files, parts of checkpoints, lines of metrics."""
    found = []
    for folder in ("networks", "checkpoints"):
        names = [sorted(path.name for path in getattr(one, folder).iterdir()) for one in (run, reference)]
        if names[0] != names[1]:
            found.append(f"files in {folder}: {', '.join(names[0])} instead of {', '.join(names[1])}")
    for path in reference.networks.glob("*.py"):
        ours = run.networks / path.name
        if ours.exists() and ours.read_bytes() != path.read_bytes():
            found.append(path.name)
    for path in reference.checkpoints.glob("*.pt"):
        ours = run.checkpoints / path.name
        if ours.exists():
            parts = _parts(load_checkpoint(ours)), _parts(load_checkpoint(path))
            found += [f"{part} in {path.name}" for part, value in parts[1].items() if not identical(parts[0][part], value)]
    lines = [[json.loads(line) for line in one.metrics.read_text().splitlines()] for one in (run, reference)]
    if not identical(*map(repeatable, lines)):
        found.append("metrics.jsonl")
    return found


def repeatable(history: list[Metrics]) -> list[Metrics]:
    """Lines of metrics without timings and memory."""
    return [{key: value for key, value in line.items() if key not in UNREPEATABLE} for line in history]


def _parts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of a checkpoint, without the run's settings, which name its folder, and without timings."""
    progress = vars(checkpoint.progress)
    running = {key: value for key, value in checkpoint.progress.running.items() if key != "seconds"}
    progress = progress | {"history": repeatable(checkpoint.progress.history), "running": running}
    return {name: value for name, value in vars(checkpoint).items() if name != "config"} | {"progress": progress}


def identical(left: Any, right: Any) -> bool:
    """Whether nested values are equal; tensors bit by bit."""
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        same_kind = isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor) and left.dtype == right.dtype
        return same_kind and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return list(left) == list(right) and all(identical(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(identical(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)
