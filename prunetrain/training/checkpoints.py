"""Checkpoints: the only reader and writer of `.pt` files.

A checkpoint is a plain dictionary of tensors and literals, loaded with `weights_only=True`. It belongs to a network file, which it
names (file name only, in the run's own folder) and whose sha256 it holds; the two are always read together.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from prunetrain.errors import CheckpointError, NetworkFileError, suggest, system_reason
from prunetrain.files import resolve_links, write_atomically
from prunetrain.foreign.refusal import RefusedFileError, quoted
from prunetrain.graph.load import read_source, sha256_of
from prunetrain.methods.training_method import MethodState
from prunetrain.models.torch_files import load_torch_file
from prunetrain.paths import CHECKPOINTS, LAST, NETWORK_NAME, NETWORKS, nearest_runs, run_of_checkpoint
from prunetrain.training.checkpoint_content import check_content

FORMAT = 3
COPY_BOTH: Final = f"copy {NETWORKS}/RUN beside {CHECKPOINTS}/RUN as well"
_MARK = "prunetrain checkpoint"


@dataclass(frozen=True)
class Progress:
    """A run's progress, as literals.

    `epoch` epochs and `step` steps of the next one are done. `running` holds the sums over these steps; the sum of losses is worker 0's in
    `loss`, worker 1's in `loss_1` and so on. `lasso_strength` is lambda, None before the first batch. `fading` lists the channels that are
    being faded out, by their ids in the present network. `batch_size` is the choice of `--dynamic-batch`, None while the settings' batch
    size holds. `history` has one line of metrics per epoch; `train_macs` and `train_images` are totals over the training so far.
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
    """Everything a run needs to resume, apart from its network file.

    `model`, `optimizer` and `scaler` are state dicts; `parameters` names the optimizer's parameters in order;
    `rng` holds the generators' states, those of the workers after the first under `others`; `config` the run's settings; `method` the
    state of the method that acts in training (`training/run_method.py`); `class_names` the data's classes, in the order of the network's
    outputs; `statistics` the `mean` and `std` of each channel by which pixels in [0, 1] are normalised.
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
    method: MethodState
    class_names: list[str]
    statistics: dict[str, list[float]]


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
        CheckpointError: if it is missing or damaged, or not a checkpoint of prunetrain.
    """
    if not path.exists():
        raise _missing_checkpoint_error(path)
    if path.is_dir():
        raise _folder_error(path)
    if path.suffix == ".py":
        raise CheckpointError(f"{path} is a network file: name {_checkpoint_beside(path)}")
    try:
        content = load_torch_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {system_reason(error)}") from None
    except RefusedFileError as refused:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint of prunetrain ({refused})") from None
    return _checked(path, content)


def _checkpoint_beside(network: Path) -> str:
    """How a message names the checkpoint that belongs to a network file."""
    file = resolve_links(network)
    checkpoint = file.parent.parent.parent / CHECKPOINTS / file.parent.name / file.with_suffix(".pt").name
    found = file.parent.parent.name == NETWORKS and checkpoint.exists()
    return f"its checkpoint, {checkpoint}" if found else f"a checkpoint of its run, such as {CHECKPOINTS}/RUN/last.pt"


def _folder_error(folder: Path) -> CheckpointError:
    found = sorted(folder.glob("*.pt"))
    last = folder / LAST
    if found:
        return CheckpointError(f"{folder} is a folder: name a checkpoint in it, such as {last if last in found else found[-1]}")
    return CheckpointError(f"{folder} is a folder without checkpoints: name a run or a .pt file")


def _missing_checkpoint_error(path: Path) -> CheckpointError:
    network = run_of_checkpoint(path).networks / path.with_suffix(".py").name
    if path.parent.is_dir() and NETWORK_NAME.fullmatch(network.name) and network.exists():
        return CheckpointError(f"{path}: removed because of --keep; only its network file {network} is left")
    if not path.suffix:
        advice = suggest(nearest_runs(str(path), Path()), "name a .pt file, or go to the folder that has the run's checkpoints/")
        return CheckpointError(f"{path} is neither a file nor a run here: {advice}")
    return CheckpointError(f"{path}: no such checkpoint")


def _checked(path: Path, content: object) -> Checkpoint:
    if not isinstance(content, Mapping) or content.get("mark") != _MARK:
        raise CheckpointError(f"{path}: not a checkpoint of prunetrain")
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {quoted(content.get('format'))}, but this version reads {FORMAT}: use the version that wrote it"
        )
    wanted = {item.name: item.type for item in fields(Checkpoint)}
    missing = sorted(wanted.keys() - content.keys())
    if missing:
        raise CheckpointError(f"{path}: damaged, it lacks {', '.join(missing)}")
    progress = content["progress"]
    known = {item.name for item in fields(Progress)}
    if not isinstance(progress, dict) or set(progress) != known or not isinstance(content["model"], Mapping):
        raise CheckpointError(f"{path}: damaged, its progress or weights are not readable")
    if not isinstance(content["network"], str) or not NETWORK_NAME.fullmatch(content["network"]):
        raise CheckpointError(f"{path}: names {quoted(content['network'])} as its network file; expected a name like epoch_010.py")
    try:
        check_content(content, Progress)
    except RefusedFileError as refused:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint of prunetrain ({refused})") from None
    return Checkpoint(**{name: content[name] for name in wanted if name != "progress"}, progress=Progress(**progress))


def read_network_of(path: Path, checkpoint: Checkpoint) -> tuple[Path, str]:
    """The network file of a checkpoint: its path and text.

    Raises:
        CheckpointError: if the run's folders are links to other folders, where the run would then write.
        NetworkFileError: if it is missing, or not the file that the checkpoint was written with.
    """
    _check_links(path)
    network = run_of_checkpoint(path).networks / checkpoint.network
    if not network.exists():
        raise NetworkFileError(f"{network}: no such network file, and {path} needs it: {COPY_BOTH}")
    source = read_source(network)
    if sha256_of(source) != checkpoint.network_sha256:
        raise NetworkFileError(
            f"{network} is not the file that {path} was written with (its sha256 differs): restore it, or resume from another checkpoint"
        )
    return network, source


def _check_links(path: Path) -> None:
    """Refuse links that lead out of a run: all of it must lie in its own two folders.

    A link to a checkpoint from anywhere else is fine, and stands for that checkpoint.
    """
    run = run_of_checkpoint(path)
    here = path.absolute()
    folders = [run.checkpoints, run.networks]
    if here.parent.parent.name == CHECKPOINTS:
        folders.append(here.parent)
        if resolve_links(here.parent) != resolve_links(here).parent:
            raise CheckpointError(f"{path} is a link into another folder: name the checkpoint that it links to")
    for folder in folders:
        if folder.is_symlink():
            raise CheckpointError(f"{folder} is a link to another folder: a run's two folders must be its own")


def rng_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators: the CPU's and, if the device is a GPU, that GPU's."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []}


def restore_rng(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0], device)
