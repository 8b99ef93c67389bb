"""Checkpoints: the only reader and writer of `.pt` files.

A checkpoint is a plain dictionary of tensors and literals, loaded with `weights_only=True`. It belongs to a network file, which it
names (file name only, in the run's own folder) and whose sha256 it holds; the two are always read together.
"""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunetrain.errors import CheckpointError, NetworkFileError
from prunetrain.files import write_atomically
from prunetrain.graph.load import read_source, sha256_of
from prunetrain.paths import NETWORK_NAME, run_of_checkpoint

FORMAT = 2
_MARK = "prunetrain checkpoint"


@dataclass(frozen=True)
class Progress:
    """Where a run stands, as literals.

    `epoch` epochs and `step` steps of the next one are done. `running` holds the sums over these steps. `lasso_strength` is lambda,
    None before the first batch; `fading` names the channels on their way out, by their ids in the present network. `batch_size` is the
    present one, None as long as it is that of the settings. `history` has a line of metrics an epoch, `train_macs` and `train_images`
    what was trained so far.
    """

    epoch: int = 0
    step: int = 0
    running: dict[str, float] = field(default_factory=dict)
    lasso_strength: float | None = None
    fading: list[int] = field(default_factory=list)
    batch_size: int | None = None
    train_macs: int = 0
    train_images: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on, beside its network file.

    `model` is a state dict; `optimizer` and `scaler` are theirs; `parameters` names the optimizer's parameters in order;
    `rng` holds the generators' states; `config` the run's settings.
    """

    network: str
    network_sha256: str
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    parameters: list[str]
    scaler: dict[str, Any]
    rng: dict[str, Any]
    config: dict[str, Any]
    progress: Progress


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    content = {"mark": _MARK, "format": FORMAT} | {item.name: getattr(checkpoint, item.name) for item in fields(Checkpoint)}
    content["progress"] = asdict(checkpoint.progress)
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: if there is none, or it is damaged, or not prunetrain's.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a checkpoint in it, such as {path / 'last.pt'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of some foreign files before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, IndexError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint of prunetrain ({type(error).__name__})") from None
    return _checked(path, content)


def _checked(path: Path, content: object) -> Checkpoint:
    if not isinstance(content, Mapping) or content.get("mark") != _MARK:
        raise CheckpointError(f"{path}: not a checkpoint of prunetrain")
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {content.get('format')}, and this version reads {FORMAT}; use the version that wrote it")
    wanted = {item.name: item.type for item in fields(Checkpoint)}
    missing = sorted(wanted.keys() - content.keys())
    if missing:
        raise CheckpointError(f"{path}: damaged, without {', '.join(missing)}")
    progress = content["progress"]
    known = {item.name for item in fields(Progress)}
    if not isinstance(progress, dict) or set(progress) != known or not isinstance(content["model"], Mapping):
        raise CheckpointError(f"{path}: damaged, its progress or weights are not readable")
    if not isinstance(content["network"], str) or not NETWORK_NAME.fullmatch(content["network"]):
        raise CheckpointError(f"{path}: names {content['network']!r} as its network file; it should be like epoch_010.py")
    return Checkpoint(**{name: content[name] for name in wanted if name != "progress"}, progress=Progress(**progress))


def read_network_of(path: Path, checkpoint: Checkpoint) -> tuple[Path, str]:
    """The network file of a checkpoint: its path and text.

    Raises:
        NetworkFileError: if it is missing, or not the file that the checkpoint was written with.
    """
    network = run_of_checkpoint(path).networks / checkpoint.network
    source = read_source(network)
    if sha256_of(source) != checkpoint.network_sha256:
        raise NetworkFileError(
            f"{network} is not the file that {path} was written with (its sha256 differs): restore it, or resume from another checkpoint"
        )
    return network, source


def rng_state() -> dict[str, Any]:
    """The states of torch's generators, on the CPU and on every GPU in use."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
