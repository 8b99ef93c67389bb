"""The flags of a training run, derived from the fields of `TrainConfig`.

In: what click read from the command line. Out: the settings that were given, and the `TrainConfig` that results from them, the config file
and the recipe: flags override the config file, which overrides the recipe, which overrides the defaults.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from prunetrain.config import TrainConfig, argument_words, build_config, flag_of, parse_arguments, settings_from
from prunetrain.errors import ConfigError
from prunetrain.paths import checkpoint_of
from prunetrain.training import recipes

FROM_CHECKPOINT = "as in the checkpoint"
"""The default, in a help text, of a setting that a checkpoint has."""

_FIELDS = {item.name: item for item in dataclasses.fields(TrainConfig)}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def checkpoint_argument(function: _Function) -> _Function:
    """Add the argument `checkpoint`, which may also name a run."""
    return click.argument("checkpoint", type=click.Path(path_type=Path), callback=resolve_checkpoint)(function)


def resolve_checkpoint(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Let an argument that names a run, or one of its folders, stand for the run's newest checkpoint."""
    return None if value is None else checkpoint_of(value)


def output_dir_option(function: _Function) -> _Function:
    """Add `--output-dir`, where a command that writes no run looks for runs."""
    text = "Folder that holds generated_nets/ and checkpoints/, to find runs by name."
    return click.option("--output-dir", default=".", show_default=True, help=text)(function)


def config_options(*left_out: str) -> Callable[[_Function], _Function]:
    """Add `--recipe`, `--config` and a flag for every field of `TrainConfig` but some; flags that are not given arrive as None."""

    def add(function: _Function) -> _Function:
        for name in reversed([name for name in _FIELDS if name not in left_out]):  # decorators apply from the last to the first
            function = config_option(name)(function)
        function = click.option("--config", help="TOML or JSON file of settings; overrides the recipe, and flags override it.")(function)
        named = ", ".join(recipes.names())
        return click.option(
            "--recipe", help=f"Recipe that overrides the defaults below: {named}, or a file.  [default: the data set's own, if any]"
        )(function)

    return add


def config_option(name: str, *, help: str | None = None, default: str | None = None) -> Callable[[_Function], _Function]:
    """Make the flag of one field; if it is not given, it arrives as None.

    Args:
        name: the field.
        help: the help text, for a command in which the field means less than in training.
        default: the default to show, for a command in which it differs from training's.
    """
    item = _FIELDS[name]
    kind: type = type(item.default)
    flag = flag_of(name)
    named: dict[str, Any] = {"default": None, "help": _help(item, help, default)}
    if kind is bool:
        return click.option(*item.metadata["flags"], f"{flag}/--no-{flag[2:]}", name, **named)
    if item.metadata["bare"]:
        named |= {"is_flag": False, "flag_value": item.metadata["bare"]}
    if item.metadata["choices"]:
        named["type"] = UncheckedChoice(item.metadata["choices"])
    elif item.metadata["repeated"]:
        named |= {"type": str, "multiple": True, "metavar": "NAME=VALUE", "callback": _arguments}
    elif kind is tuple:
        named |= {"type": _whole_numbers, "metavar": "N,N,..."}
    else:
        named["type"] = kind
    return click.option(*item.metadata["flags"], flag, name, **named)


class UncheckedChoice(click.Choice[str]):
    """Shows the allowed words in the help but accepts any: `TrainConfig` refuses a wrong one with the same message as for a file."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value


def _arguments(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...] | None:
    """Normalise the words of a repeated flag to one spelling; None if it was not given."""
    flag = param.opts[0].lstrip("-")
    return argument_words(parse_arguments(words, flag), flag) or None


def _whole_numbers(text: str) -> tuple[int, ...] | str:
    """Read `91,136` as (91, 136); leave anything else to `TrainConfig`, which refuses it."""
    try:
        return tuple(int(number) for number in text.split(",") if text)
    except ValueError:
        return text


def _help(item: dataclasses.Field[Any], help: str | None, default: str | None) -> str:
    """The help text, with what the bare flag means and the default as a user would write it."""
    text: str = help or item.metadata["help"]
    if item.metadata["bare"]:
        text = f"{text.rstrip('.')}; without a value, {item.metadata['bare']}."
    if default is not None:
        return f"{text}  [default: {default}]"
    if item.default in ("", ()):
        return text
    shown = {True: "on", False: "off"}[item.default] if isinstance(item.default, bool) else item.default
    return f"{text}  [default: {shown}]"


def flag_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given as flags, by field name."""
    return {name: params[name] for name in _FIELDS if params.get(name) is not None}


def resolve_config(params: Mapping[str, Any]) -> TrainConfig:
    """Merge defaults, recipe, config file and flags, with later ones overriding earlier ones.

    A config file may name its recipe (`recipe = "cifar10"`). If no recipe is named, the data set's own is used, if it has one.

    Raises:
        ConfigError: for an unknown name, key or value in any of them.
    """
    recipe, file = _recipe_and_file(params)
    flags = flag_settings(params)
    if recipe is None:
        recipe = recipes.default_recipe(flags.get("dataset") or file.get("dataset") or TrainConfig.dataset)
    return build_config(_settings_of(recipe), file, flags)


def explicit_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the settings that the user gave individually: in the config file and as flags.

    Raises:
        ConfigError: for an unknown name, key or value in any of them.
    """
    return _recipe_and_file(params)[1] | flag_settings(params)


def settings_with_recipe(params: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the settings that the user asked for: by naming a recipe, in the config file and as flags.

    Raises:
        ConfigError: for an unknown name, key or value in any of them.
    """
    recipe, file = _recipe_and_file(params)
    return _settings_of(recipe) | file | flag_settings(params)


def _recipe_and_file(params: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The recipe that was named, if any, and the settings of the config file."""
    file: dict[str, Any] = {}
    recipe = params.get("recipe")
    if path := params.get("config"):
        values = recipes.load_config_file(path)
        named = values.pop("recipe", None)
        if not isinstance(named, str | None):
            raise ConfigError(f"{path}: recipe must be a word, not {named!r}")
        file = settings_from(values, str(path))
        recipe = recipe or named
    return recipe, file


def _settings_of(recipe: str | None) -> dict[str, Any]:
    return settings_from(recipes.load_recipe(recipe), f"recipe {recipe}") if recipe else {}
