"""What is known of finished pieces of a study: a small JSON file each, so that an interrupted study goes on where it was.

In: plain values. Out: files that are whole or not there, and tables of them as CSV, JSON and Markdown.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from prunetrain.errors import ConfigError
from prunetrain.files import write_text

Record: TypeAlias = dict[str, Any]
DENSE: Final = "dense"
"""The method of a record of a dense network, which all others are compared with."""


class Records:
    """The records in a folder, by name.

    Args:
        folder: where they are; made with the first file in it.
        settings: what decides all results. A folder of other settings is refused.

    Raises:
        ConfigError: if the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._settings: Record = json.loads(json.dumps(settings))
        if self._settings_file.exists():
            found, wanted = _read(self._settings_file), self._settings
            differ = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            if differ:
                names = ", ".join(key.replace("_", "-") for key in differ[:3])
                raise ConfigError(f"{folder} holds results of other settings ({names}): name another folder, or remove it")

    @property
    def _settings_file(self) -> Path:
        return self._folder / "settings.json"

    def begin(self) -> None:
        """Write the settings, which the folder is bound to from now on: to be called before anything is run by them.

        Raises:
            OutputError: if they cannot be written.
        """
        if not self._settings_file.exists():
            write_text(self._settings_file, json.dumps(self._settings, indent=1) + "\n")

    def get(self, name: str) -> Record | None:
        """A record, if it is there."""
        path = self._path(name)
        return _read(path) if path.exists() else None

    def put(self, name: str, record: Record) -> None:
        """Write a record, whole or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        write_text(self._path(name), json.dumps(record) + "\n")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.result.json"


def _read(path: Path) -> Record:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}): remove it, and its part is done again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is no record: remove it, and its part is done again")
    return value


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Write records, all with the keys of the first, as a table.

    Raises:
        OutputError: if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(path, text.getvalue())


def write_json(path: Path, records: Sequence[Record]) -> None:
    """Write records as a list; see `write_csv`."""
    write_text(path, json.dumps(list(records), indent=1) + "\n")


def markdown(records: Sequence[Record], columns: Mapping[str, str]) -> str:
    """Records as a Markdown table.

    Args:
        records: the rows.
        columns: by key, the heading, and behind a bar how numbers are written: "top-1|.2%".
    """
    headings = {key: heading.partition("|")[::2] for key, heading in columns.items()}
    lines = ["| " + " | ".join(heading for heading, _ in headings.values()) + " |", "| " + " | ".join("---" for _ in headings) + " |"]
    for record in records:
        cells = ("" if record[key] is None else format(record[key], form) for key, (_, form) in headings.items())
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
