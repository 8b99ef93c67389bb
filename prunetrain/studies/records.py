"""Records of the finished parts of a study: a small JSON file each, so that an interrupted study resumes where it was.

In: plain values. Out: files, each complete or absent, and tables of the records as CSV, JSON and Markdown.
"""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from prunetrain.config import TrainConfig, build_config
from prunetrain.errors import ConfigError
from prunetrain.files import write_text

Record: TypeAlias = dict[str, Any]
DENSE: Final = "dense"
"""The `method` in the record of a dense network, with which all others are compared."""


class Records:
    """The records in a folder, by name.

    Args:
        folder: where they are; created with the first file in it.
        settings: those that decide the results. A folder with results of other settings is refused.

    Raises:
        ConfigError: if the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._settings: Record = json.loads(json.dumps(settings))
        if self._settings_file.exists():
            wanted = self._settings
            found = as_now(_read(self._settings_file), wanted)
            differ = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            if differ:
                names = ", ".join(key.replace("_", "-") for key in differ[:3])
                raise ConfigError(f"{folder} holds results with other settings ({names}): name another folder, or remove this one")

    @property
    def _settings_file(self) -> Path:
        return self._folder / "settings.json"

    def write_settings(self) -> None:
        """Write the settings, which bind the folder from now on. Call this before running anything with them.

        Raises:
            OutputError: if they cannot be written.
        """
        if not self._settings_file.exists():
            write_text(self._settings_file, json.dumps(self._settings, indent=1) + "\n")

    def get(self, name: str) -> Record | None:
        """The record with this name, if there is one."""
        path = self._path(name)
        return _read(path) if path.exists() else None

    def put(self, name: str, record: Record) -> None:
        """Write a record atomically.

        Raises:
            OutputError: if it cannot be written.
        """
        write_text(self._path(name), json.dumps(record) + "\n")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.result.json"


def as_now(stored: Record, wanted: Collection[str]) -> Record:
    """Settings that an earlier version stored, as this one stores them.

    Args:
        stored: the settings; those that are no field of `TrainConfig` are left as they are.
        wanted: names; of the fields that `stored` lacks, these get their defaults, as for an earlier version's checkpoint.
    """
    known = TrainConfig.__dataclass_fields__
    try:
        config = build_config({name: value for name, value in stored.items() if name in known})
    except ConfigError:
        return stored
    return stored | {name: value for name, value in plain(config).items() if name in stored or name in wanted}


def plain(config: TrainConfig) -> Record:
    """Settings as JSON gives them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.to_dict().items()}


def _read(path: Path) -> Record:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}): remove it, and run again to redo this part") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a record: remove it, and run again to redo this part")
    return value


def csv_of(records: Sequence[Record]) -> str:
    """Records that all have the keys of the first as CSV with a header; empty without records."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    if records:
        writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Write records as CSV; see `csv_of`.

    Raises:
        OutputError: if it cannot be written.
    """
    write_text(path, csv_of(records))


def write_json(path: Path, records: Sequence[Record]) -> None:
    """Write records as a JSON list; see `write_csv`."""
    write_text(path, json.dumps(list(records), indent=1) + "\n")


def markdown(records: Sequence[Record], columns: Mapping[str, str]) -> str:
    """Records as a Markdown table.

    Args:
        records: the rows.
        columns: for each key the heading, and after a bar the number format: "top-1|.2%".
    """
    headings = {key: heading.partition("|")[::2] for key, heading in columns.items()}
    lines = ["| " + " | ".join(heading for heading, _ in headings.values()) + " |", "| " + " | ".join("---" for _ in headings) + " |"]
    for record in records:
        cells = ("" if record[key] is None else format(record[key], form) for key, (_, form) in headings.items())
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
