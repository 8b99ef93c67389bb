"""The settings of runs for a report. In: the last checkpoints. Out: plain values by name, and which of them differ. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from prunetrain.config import SETTINGS_WITHOUT_RESULT_EFFECT, TrainConfig
from prunetrain.foreign.opening import open_regular
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.foreign.torch_files import read_values
from prunetrain.paths import RunPaths

_FIRST: Final = ("method", "rate")


def read_settings(run: RunPaths) -> dict[str, Any]:
    """The settings in a run's last checkpoint; empty if it is missing or cannot be read."""
    try:
        with open_regular(run.last) as file:
            content = read_values(file)
    except (OSError, RefusedFileError):
        return {}
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        return {}
    return {item: value for item in TrainConfig.__dataclass_fields__ if _is_plain(value := config.get(item))}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(part, int | float | str) for part in value)
    return isinstance(value, int | float | str)


def differing_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that differ between the runs whose settings are known: method and rate first, the others in `TrainConfig`'s order."""
    known = [of_run for of_run in settings if of_run]
    names = [*_FIRST, *(name for name in TrainConfig.__dataclass_fields__ if name not in (*_FIRST, *SETTINGS_WITHOUT_RESULT_EFFECT))]
    return [name for name in names if len({format_setting(of_run.get(name)) for of_run in known}) > 1]


def format_setting(value: Any) -> str:
    """A setting's value as a flag or config file would spell it; empty if there is none."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_setting, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
