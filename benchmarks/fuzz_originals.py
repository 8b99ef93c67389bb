"""The files that `fuzz.py` damages: a tiny real run of two epochs, its data, weights of two kinds, settings of two kinds.

In: an empty folder. Out: these files in it. The run's network comes from a file of its own, which is replaced afterwards by one that leaves
a trace when it is imported: no command may import it.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch

from prunetrain.commands import main
from prunetrain.training.checkpoints import load_checkpoint

LAST = "checkpoints/x/last.pt"
NETWORK = "generated_nets/x/epoch_002.py"
_TINY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

    def forward(self, x):
        x = self.stem(x)
        return self.pool(x + self.block(x))
"""
_TRAIN = (
    "train --dataset npz --data-dir images.npz --model tiny.py:Net --name x --epochs 2 --prune-interval 1 --penalty-ratio 0.9 "
    "--round-to 1 --device cpu --optimizer OPTIMIZER --threshold 0.01"
)


def build_originals(folder: Path, canary: Path, *, optimizer: str) -> None:
    """Write the files into a folder, which must be the current one.

    Args:
        folder: where to write.
        canary: the file that foreign code would create.
        optimizer: "sgd" or "adamw".
    """
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (80, 8, 8), dtype=np.uint8), np.arange(80) % 4
    np.savez(folder / "images.npz", x_train=images[:64], y_train=labels[:64], x_test=images[64:], y_test=labels[64:])
    (folder / "tiny.py").write_text(_TINY)
    with contextlib.redirect_stdout(io.StringIO()):
        main(_TRAIN.replace("OPTIMIZER", optimizer).split(), standalone_mode=False)
    state = load_checkpoint(folder / LAST).model
    torch.save(state, folder / "weights.pt")
    with contextlib.suppress(ImportError):
        from safetensors.torch import save_file

        save_file(state, folder / "weights.safetensors")
    (folder / "net.py").write_text((folder / NETWORK).read_text())
    (folder / "settings.toml").write_text('recipe = "digits"\nepochs = 1\nlr = 0.05\nmilestones = [1]\naugment = true\nmodel_args = []\n')
    (folder / "settings.json").write_text('{"epochs": 1, "lr": 0.05, "milestones": [1, 2], "augment": true, "schedule": "cosine"}')
    (folder / "tiny2.py").write_text(_TINY)
    (folder / "tiny.py").write_text(f"open({str(canary)!r}, 'w').close()\n{_TINY}")
