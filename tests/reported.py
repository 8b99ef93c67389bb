"""Runs on disk as a report reads them, without training: networks by hand and lines of metrics."""

import json
from pathlib import Path
from typing import Any

import torch
from graphs import residual, without_a_branch

from prunetrain.files import write_text
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.render import render
from prunetrain.paths import RunPaths

NETWORKS: dict[int, LayerGraph] = {0: residual(), 2: residual(inner=(3, 5)), 4: without_a_branch()}


def line(epoch: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics of a run that halves its MACs after epoch 2."""
    macs = 600_000 if epoch <= 2 else 300_000
    return {
        "epoch": epoch,
        "train_loss": 2.0 / epoch,
        "lasso": 0.5 / epoch,
        "lasso_strength": 0.01,
        "train_top1": 0.25 * epoch - 0.1,
        "val_loss": 1.5 / epoch,
        "val_top1": 0.2 * epoch,
        "lr": 0.1 if epoch <= 3 else 0.01,
        "batch_size": 32,
        "macs": macs,
        "params": macs // 100,
        "channels": 50,
        "train_macs_total": 3 * 600_000 * 100 * epoch if epoch <= 2 else 3 * 100 * (2 * 600_000 + (epoch - 2) * macs),
        "train_images_total": 100 * epoch,
        "epoch_seconds": 2.5,
        "images_per_second": 1234.5,
        "peak_memory_bytes": 2**20,
        "workers": 1,
        "gradient_bytes": 0,
        **changes,
    }


def write_run(folder: Path, name: str, networks: dict[int, LayerGraph] | None = None, epochs: int = 4, **changes: Any) -> RunPaths:
    """Write a run of as many epochs as its metrics are to have, by default with `NETWORKS`."""
    run = RunPaths(folder, name)
    networks = NETWORKS if networks is None else networks
    for epoch, graph in networks.items():
        write_text(run.network(epoch), render(graph, dense=networks[0], epoch=epoch))
    if epochs:
        write_text(run.metrics, "".join(json.dumps(line(epoch + 1, **changes)) + "\n" for epoch in range(epochs)))
    return run


def write_settings(run: RunPaths, **settings: Any) -> RunPaths:
    """Write a last checkpoint of which only the settings can be read."""
    torch.save({"config": settings, "model": {"fc.weight": torch.ones(2, 3)}}, run.last)
    return run
