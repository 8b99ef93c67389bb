"""The types and ranges of all values in a checkpoint, checked on reading so that no later code meets anything else.

In: the dictionary in the file, with all of its keys. Out: nothing, or a `RefusedFileError` that names the value at fault.
"""

import types
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from prunetrain.foreign.refusal import RefusedFileError, quoted
from prunetrain.methods.training_method import EARLY, KEEP

_LARGEST: Final = 2**63 - 1  # of a count
_MAX_MACS: Final = 10**30  # of a whole training: a ResNet-50 on ImageNet passes 2**63 after 587 epochs
_MAX_EPOCHS: Final = 1_000_000
_MAX_CLASSES: Final = 1_000_000
_LONGEST_NAME: Final = 4_096  # characters of a class name; a folder's has at most 255 bytes, all of which may be escaped
_MAX_RNG_BYTES: Final = 65_536  # of one generator's state; the CPU's has 5,056
_USED_METRICS: Final = ("epoch", "lr", "epoch_seconds", "val_top1", "train_macs_total", "train_images_total")  # read back by a run
_COUNTED: Final = {"train_macs_total": _MAX_MACS, "train_images_total": _LARGEST}


def check_content(content: Mapping[str, Any], progress: type) -> None:
    """Check the values of a checkpoint.

    Args:
        content: the dictionary in the file.
        progress: the class whose fields its `progress` has; their annotations give the types allowed.

    Raises:
        RefusedFileError: for a value of the wrong type or out of range, or parts that do not belong together.
    """
    for name in ("network", "network_sha256"):
        _require(isinstance(content[name], str), f"its {name} is not a string")
    for name in ("config", "scaler"):
        _require(_is_dict_with_str_keys(content[name]), f"its {name} is not a dictionary")
    _check_weights(content["model"])
    _check_progress(content["progress"], get_type_hints(progress))
    for name, value in content["scaler"].items():
        _require(_is_number(value) and isfinite(value), f"its loss scale's {quoted(name)} is not a finite number")
    _check_generators(content["rng"])
    _check_optimizer(content["optimizer"], content["parameters"], content["model"])
    _check_method(content["method"], content["model"])
    _check_class_names(content["class_names"])
    _check_statistics(content["statistics"])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RefusedFileError(message)


def _is_number(value: object, most: int = _LARGEST) -> bool:
    """Whether a value is a number; infinity and NaN count, since a run that diverged has them."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= most)


def _is_dict_with_str_keys(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _check_count(value: object, what: str, most: int = _LARGEST) -> None:
    _require(type(value) is int and 0 <= value <= most, f"{what} is not a whole number from 0 to {most:,}")


def _check_weights(model: object) -> None:
    _require(isinstance(model, dict) and bool(model), "it has no weights")
    assert isinstance(model, dict)
    for name, tensor in model.items():
        _require(isinstance(name, str), "it has a tensor without a name")
        _require(type(tensor) is Tensor and not tensor.requires_grad, f"{quoted(name)} of its weights is not a plain tensor")


def _check_progress(progress: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        if name == "train_macs":
            _check_count(progress[name], "its train_macs", _MAX_MACS)
        else:
            _require(_has_type(progress[name], kind), f"the {name} of its progress has the wrong type")
    _require(progress["epoch"] <= _MAX_EPOCHS, f"its epoch is over {_MAX_EPOCHS:,}")
    strength, running = progress["lasso_strength"], progress["running"]
    _require(strength is None or not strength < 0, "its lasso_strength is negative")
    if progress["step"]:
        _check_count(running.get("images"), "its image count of the running epoch")
        _require(all(name in running for name in ("loss", "correct", "seconds")), "its sums over the running epoch are incomplete")
    _require(len(progress["history"]) <= progress["epoch"], "its history is longer than its epochs")
    for line in progress["history"]:
        _check_line(line)


def _check_line(line: Mapping[str, Any]) -> None:
    for name, value in line.items():
        _require(isinstance(value, int | float | str | None), f"its history has a {quoted(name)} that is not a number or string")
    for name in _USED_METRICS:
        found = _is_number(line.get(name), _COUNTED.get(name, _LARGEST)) and isfinite(line[name])
        _require(found, f"its history has a line whose {name} is missing or not a finite number")
    for name, most in _COUNTED.items():
        _require(1 <= line[name] <= most, f"its history has a line whose {name} is out of range")


def _has_type(value: object, kind: Any) -> bool:
    """Whether a value has the annotated type: whole numbers start at 0, keys are strings, and Any is left to other checks."""
    if kind is Any:
        return True
    if get_origin(kind) in (Union, types.UnionType):
        return any(_has_type(value, part) for part in get_args(kind))
    if get_origin(kind) is dict:
        return _is_dict_with_str_keys(value) and all(_has_type(item, get_args(kind)[1]) for item in value.values())  # type: ignore[attr-defined]
    if get_origin(kind) in (list, tuple):
        return isinstance(value, get_origin(kind)) and all(_has_type(item, get_args(kind)[0]) for item in value)
    if kind is int:
        return type(value) is int and 0 <= value <= _LARGEST
    if kind is float:
        return _is_number(value)
    return type(value) is kind


def _check_generators(rng: object) -> None:
    """Check the states of random generators: tensors of bytes, in lists or dictionaries nested in any way."""
    _require(_is_dict_with_str_keys(rng), "its rng is not a dictionary")
    assert isinstance(rng, dict)
    wanted = torch.get_rng_state().shape
    _require(isinstance(rng.get("cpu"), Tensor) and rng["cpu"].shape == wanted, f"its rng has no state of {wanted[0]:,} bytes for the CPU")
    _require(isinstance(rng.get("cuda"), list), "its rng has no list of states for GPUs")
    waiting: list[object] = list(rng.values())
    while waiting:
        state = waiting.pop()
        if isinstance(state, dict):
            waiting.extend(state.values())
        elif isinstance(state, list | tuple):
            waiting.extend(state)
        elif isinstance(state, Tensor):
            fits = state.dtype == torch.uint8 and state.dim() == 1 and 0 < state.numel() <= _MAX_RNG_BYTES and state.is_contiguous()
            _require(fits, "its rng has a value that is not a generator's state")
        else:
            _require(isinstance(state, int | str | None), "its rng has a value that is not a generator's state")


def _check_optimizer(optimizer: object, parameters: object, model: Mapping[str, Tensor]) -> None:
    """Check that the groups divide the parameters among them, and that the state of each is numbers and tensors of its shape or scalars."""
    _require(isinstance(parameters, list) and isinstance(optimizer, dict), "its optimizer is not readable")
    assert isinstance(parameters, list)
    assert isinstance(optimizer, dict)
    if not optimizer:  # before a run's first step
        _require(not parameters, "its optimizer has parameters but no state")
        return
    _require(all(isinstance(name, str) and name in model for name in parameters), "its optimizer has a parameter that is not a weight")
    _require(len(set(parameters)) == len(parameters), "its optimizer lists a parameter twice")
    groups, state = optimizer.get("param_groups"), optimizer.get("state")
    _require(set(optimizer) == {"state", "param_groups"} and isinstance(state, dict), "its optimizer is not readable")
    _require(isinstance(groups, list) and all(_is_group(group) for group in groups), "its optimizer's groups are not readable")
    assert isinstance(groups, list)
    assert isinstance(state, dict)
    _require(
        [index for group in groups for index in group["params"]] == list(range(len(parameters))),
        "its optimizer's groups do not list its parameters",
    )
    for index, entries in state.items():
        _require(type(index) is int and 0 <= index < len(parameters), "its optimizer has state for a parameter that it does not have")
        _require(_is_dict_with_str_keys(entries), "its optimizer's state is not readable")
        for key, entry in entries.items():
            fits = _is_state_of(entry, model[parameters[index]])
            _require(fits, f"its optimizer's {quoted(key)} does not fit the parameter {quoted(parameters[index])}")


def _is_group(group: object) -> bool:
    if not _is_dict_with_str_keys(group):
        return False
    assert isinstance(group, dict)
    indices = group.get("params")
    return isinstance(indices, list) and all(type(index) is int for index in indices)


def _is_state_of(entry: object, parameter: Tensor) -> bool:
    if isinstance(entry, Tensor):
        same = entry.shape == parameter.shape and entry.dtype.is_floating_point
        return (same or entry.dim() == 0) and not entry.requires_grad
    return entry is None or isinstance(entry, bool) or _is_number(entry)


def _check_method(method: object, model: Mapping[str, Tensor]) -> None:
    """Check a method's state: tensors, each of the shape of the weight of the same name, and numbers."""
    _require(isinstance(method, dict) and set(method) == {"tensors", "numbers"}, "its method is not readable")
    assert isinstance(method, dict)
    _require(_is_dict_with_str_keys(method["tensors"]), "its method's tensors are not a dictionary")
    for kind, tensors in method["tensors"].items():
        _require(_is_dict_with_str_keys(tensors), f"its method's {quoted(kind)} is not a dictionary")
        _require(kind != EARLY or tensors.keys() == model.keys(), "its method's early weights are not those of its network")
        for name, tensor in tensors.items():
            fits = type(tensor) is Tensor and name in model and tensor.shape == model[name].shape and not tensor.requires_grad
            _require(fits, f"its method's {quoted(kind)} of {quoted(name)} does not fit a weight")
            wanted = torch.bool if kind == KEEP else model[name].dtype
            _require(tensor.dtype == wanted, f"its method's {quoted(kind)} of {quoted(name)} has the wrong dtype")
    _require(_is_dict_with_str_keys(method["numbers"]), "its method's numbers are not a dictionary")
    for name, number in method["numbers"].items():
        _require(_is_number(number) and isfinite(number) and number >= 0, f"its method's {quoted(name)} is not a number of at least 0")


def _check_statistics(statistics: object) -> None:
    """Check that there are a mean and a standard deviation for each channel."""
    message = "its statistics are not a mean and a std for each channel"
    _require(isinstance(statistics, dict) and statistics.keys() == {"mean", "std"}, message)
    assert isinstance(statistics, dict)
    mean, std = statistics["mean"], statistics["std"]
    _require(isinstance(mean, list) and isinstance(std, list) and 0 < len(mean) == len(std), message)
    _require(all(type(number) is float and isfinite(number) for number in mean + std) and all(number > 0 for number in std), message)


def _check_class_names(names: object) -> None:
    _require(isinstance(names, list) and 0 < len(names) <= _MAX_CLASSES, "its class_names are not a list of names")
    assert isinstance(names, list)
    fits = all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names)
    _require(fits, f"its class_names have one that is not a string of up to {_LONGEST_NAME:,} characters")
