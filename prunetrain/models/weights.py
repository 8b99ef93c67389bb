"""`--weights`: load a state dict into a network, as far as it fits.

In: a module; a file by torch.save or safetensors, or tensors. Out: the module with their values, and a report of what did not fit.
Tensors are matched by the network's own names, then by names with `_` for `.`, as network files have them: `layer1.0.conv1.weight`
is `layer1_0_conv1.weight`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunetrain.errors import ConfigError, system_reason
from prunetrain.extras import require
from prunetrain.foreign.refusal import RefusedFileError, printable
from prunetrain.foreign.safetensors_files import check_safetensors
from prunetrain.models.torch_files import load_torch_file

_SAFETENSORS = ".safetensors"
_NESTED_KEYS = ("state_dict", "model", "model_state_dict")  # keys under which checkpoints of training scripts have the weights
_WRAPPERS = ("module.", "_orig_mod.")  # before every name of a network saved inside DistributedDataParallel or torch.compile
_COUNTER = "num_batches_tracked"  # of BatchNorm; irrelevant to whether weights fit
_SHOWN = 5  # names per line


@dataclass(frozen=True)
class Mismatch:
    """A tensor that has another shape in the network than in the file."""

    name: str
    here: tuple[int, ...]
    saved: tuple[int, ...]

    def __str__(self) -> str:
        here, saved = ("x".join(map(str, shape)) or "a number" for shape in (self.here, self.saved))
        return f"{self.name} (saved as {saved}, here {here})"


@dataclass(frozen=True)
class LoadReport:
    """What was loaded, by the network's names; and what is missing from the file, unexpected in it (by its names), or of another shape."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]

    def lines(self, source: str = "the file") -> list[str]:
        """Return a few lines for the user, or one if everything fits; `source` is where the weights come from."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        lines = [f"weights: {len(self.loaded)} of the network's {total} tensors are in {source}"]
        for what, names in (
            ("not saved, newly initialised", self.missing),
            ("of another shape, newly initialised", tuple(map(str, self.mismatched))),
            ("not in the network, left out", self.unexpected),
        ):
            if names:
                lines.append(f"  {what}: {_listed(names)}")
        return lines


def load_weights(model: nn.Module, path: Path) -> LoadReport:
    """Copy the tensors of a file into a network, in place and in the network's own types. Tensors without a match stay as they are.

    Args:
        model: any module; its parameters and persistent buffers are filled.
        path: a state dict by torch.save, also inside a dictionary or under a wrapper's names, or a .safetensors file.

    Raises:
        ConfigError: if the file is missing or holds no weights, or if none of them fits.
    """
    return copy_weights(model, read_weights(path), str(path))


def copy_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy tensors into a network, as `load_weights` does with those of a file; errors name `source` as their origin.

    Raises:
        ConfigError: if none of them fits.
    """
    wanted = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    tensors = _unwrapped(tensors, wanted)
    matched = _matched(wanted, tensors)
    used = {name for name, _ in matched.values()}
    mismatched = tuple(
        Mismatch(name, tuple(wanted[name].shape), tuple(tensor.shape))
        for name, (_, tensor) in matched.items()
        if tensor.shape != wanted[name].shape
    )
    without = {item.name for item in mismatched}
    fitting = {name: tensor for name, (_, tensor) in matched.items() if name not in without}
    report = LoadReport(
        loaded=tuple(name for name in wanted if name in fitting and not name.endswith(_COUNTER)),
        missing=tuple(name for name in wanted if name not in matched and not name.endswith(_COUNTER)),
        unexpected=tuple(name for name in tensors if name not in used and not name.endswith(_COUNTER)),
        mismatched=mismatched,
    )
    if not report.loaded:
        raise ConfigError(f"{source}: no weights of this network: {_difference(report)}")
    with torch.no_grad():
        for name, tensor in fitting.items():
            wanted[name].copy_(tensor)
    return report


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, on the CPU.

    Raises:
        ConfigError: if the file is missing, damaged or not a file of weights, or the package that reads it is not installed.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {'is a folder: name a file of weights in it' if path.is_dir() else 'no such file of weights'}")
    content = _safetensors(path) if path.suffix == _SAFETENSORS else _torch_file(path)
    for key in _NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ConfigError(f"{path}: holds no state dict: write one with torch.save(model.state_dict(), FILE)")
    return tensors


def _torch_file(path: Path) -> Any:
    try:
        return load_torch_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: {system_reason(error)}") from None
    except RefusedFileError as refused:
        raise ConfigError(f"{path}: damaged, or not a file of weights ({refused}): write torch.save(model.state_dict(), FILE)") from None


def _safetensors(path: Path) -> Any:
    load_file = require("safetensors.torch", str(path)).load_file
    try:
        check_safetensors(path)
        return load_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: {system_reason(error)}") from None
    except RefusedFileError as refused:
        raise ConfigError(f"{path}: damaged, or not a file of weights ({refused})") from None
    except Exception as error:  # it has an error class of its own
        raise ConfigError(f"{path}: damaged, or not a file of weights ({type(error).__name__})") from None


def _unwrapped(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers put before all names."""
    tensors = dict(tensors)
    known = list(wanted)
    while prefix := next((word for word in _WRAPPERS if all(name.startswith(word) for name in tensors)), ""):
        if any(name.startswith(prefix) for name in known):
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _matched(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Map each of the network's names that the file has to the file's name and the tensor."""
    matched = {name: (name, tensors[name]) for name in wanted if name in tensors}
    ours, theirs = (_by_flat_name(name for name in names if name not in matched) for names in (wanted, tensors))
    for flat, name in ours.items():
        if flat in theirs:
            matched[name] = (theirs[flat], tensors[theirs[flat]])
    return matched


def _by_flat_name(names: Iterable[str]) -> dict[str, str]:
    """Names by their spelling in a network file; names that collide there are left out."""
    flat = {name: _flat(name) for name in names}
    times = Counter(flat.values())
    return {short: name for name, short in flat.items() if times[short] == 1}


def _flat(name: str) -> str:
    name = name.replace(".", "_")
    return name if name[:1].isalpha() else f"layer_{name}"  # as network files name the layers of an nn.Sequential


def _difference(report: LoadReport) -> str:
    if report.mismatched:
        return f"all have other shapes, such as {report.mismatched[0]}"
    names = ", ".join(report.unexpected[:2]) or "only counters"
    return f"it has {names}, but the network has {', '.join(report.missing[:2])}"


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(printable, names[:_SHOWN])) + (f" and {more} more, {len(names)} in all" if more > 0 else "")
