"""Methods with several workers: the same on all of them, and what one process alone would do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Recorder, write_images
from workers import NETWORK, in_float64, together

from prunetrain.config import TrainConfig
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.run import start_run

COMMON = {"dataset": "npz", "device": "cpu", "epochs": 4, "batch_size": 64, "schedule": "constant", "lr": 0.05}
METHODS: dict[str, dict[str, Any]] = {
    "masks": {"method": "magnitude", "rate": 0.5, "prune_at": 2, "rounds": 2, "retrain": "weight-rewind", "rewind_epoch": 1},
    "admm": {"method": "admm", "rate": 0.5, "prune_at": 2, "rho": 0.05},
    "taylor": {"penalty_ratio": 0.1, "prune_interval": 1, "target_macs": 0.3, "target_by": 1.0, "round_to": "1", "importance": "taylor"},
    "soft": {"method": "fpgm", "rate": 0.5, "prune_at": 2, "streams": "together"},
}


def train(rank: int, configs: list[TrainConfig]) -> list[list[float]]:
    """Validation loss and parameters that are not zero, epoch by epoch, for each run."""
    with in_float64():
        histories = [start_run(config, Recorder()).history for config in configs]
    return [[line[key] for line in history for key in ("val_loss", "nonzero_params", "train_loss")] for history in histories]


def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    """The workers compare network file, weights and the method's state after every pruning, and would refuse to go on."""
    (tmp_path / "net.py").write_text(NETWORK)
    images = str(write_images(tmp_path / "images.npz"))
    model = f"{tmp_path / 'net.py'}:Net"

    def configs(folder: str) -> list[TrainConfig]:
        changes = {"model": model, "data_dir": images, "sync_batch_norm": True, "output_dir": str(tmp_path / folder)}
        return [TrainConfig(**{**COMMON, **method, **changes, "name": name}) for name, method in METHODS.items()]

    left, right = together(2, train, tmp_path / "ranks", configs("two"))
    assert left == right
    for one, two in zip(train(0, configs("one")), left, strict=True):
        assert two == pytest.approx(one, rel=1e-6)
    for name in METHODS:
        alone, both = (load_checkpoint(tmp_path / folder / "checkpoints" / name / "last.pt") for folder in ("one", "two"))
        assert alone.method["numbers"] == pytest.approx(both.method["numbers"], rel=1e-6)
        for weight, mask in alone.method["tensors"].get("keep", {}).items():
            assert torch.equal(mask, both.method["tensors"]["keep"][weight])
        for tensor, sums in alone.method["tensors"].get("importance", {}).items():
            torch.testing.assert_close(both.method["tensors"]["importance"][tensor], sums, rtol=1e-6, atol=0.0)
