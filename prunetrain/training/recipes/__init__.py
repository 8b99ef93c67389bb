"""Recipes and config files: settings for a data set, those published in the paper, or the user's own.

In: the name of a packaged recipe (the TOML files beside this module), or the path of a TOML or JSON file. Out: a plain dictionary, for
`build_config`, which checks its keys and values.
"""

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from prunetrain.errors import ConfigError, system_reason, unknown_name
from prunetrain.foreign.opening import read_text
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.foreign.toml_json import MAX_BYTES, read_json, read_toml

CONFIG_SUFFIXES = (".toml", ".json")


def names() -> list[str]:
    """The packaged recipes, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in resources.files(__name__).iterdir() if entry.name.endswith(".toml"))


def default_recipe(dataset: str) -> str | None:
    """The recipe for a data set when none is asked for: the one with its name, if any."""
    return dataset if dataset in names() else None


def load_recipe(name_or_path: str) -> dict[str, Any]:
    """Load a packaged recipe by name, or the user's own by path.

    Raises:
        ConfigError: if there is no such recipe (with the nearest names), or the file cannot be used.
    """
    if name_or_path in names():
        return tomllib.loads((resources.files(__name__) / f"{name_or_path}.toml").read_text(encoding="utf-8"))
    if Path(name_or_path).suffix.lower() in CONFIG_SUFFIXES:
        return load_config_file(name_or_path)
    raise ConfigError(unknown_name("recipe", name_or_path, names()))


def load_config_file(path: str | Path) -> dict[str, Any]:
    """Load settings from a TOML or JSON file, by its suffix.

    Raises:
        ConfigError: if the file is missing, is neither TOML nor JSON, is damaged (with the line), or holds no table of settings.
    """
    path = Path(path)
    if path.suffix.lower() not in CONFIG_SUFFIXES:
        raise ConfigError(f"{path}: a config file ends in {' or '.join(CONFIG_SUFFIXES)}")
    try:
        text = read_text(path, MAX_BYTES).removeprefix("\ufeff")  # the mark that Windows' editors begin a file with
        settings = read_toml(text) if path.suffix.lower() == ".toml" else read_json(text)
    except OSError as error:
        raise ConfigError(f"{path}: {system_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error.msg} (at line {error.lineno}, column {error.colno})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except RefusedFileError as refused:
        raise ConfigError(f"{path}: {refused}") from refused
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: must hold a table of settings, not a {type(settings).__name__}")
    return settings
