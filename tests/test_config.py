"""TrainConfig: what it accepts, and the one line it answers to what it does not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prunetrain import synonyms
from prunetrain.config import TrainConfig, build_config, settings_from
from prunetrain.errors import ConfigError


def test_defaults_are_valid_and_merge_to_themselves() -> None:
    assert build_config() == TrainConfig()


def test_to_dict_goes_back_into_the_same_config() -> None:
    config = TrainConfig(milestones=(3, 9), round_to="8", nesterov=True)
    assert build_config(config.to_dict()) == config


def test_later_layers_win() -> None:
    config = build_config({"epochs": 3, "lr": 0.2}, {"epochs": 5}, {"batch-size": 8})
    assert (config.epochs, config.lr, config.batch_size) == (5, 0.2, 8)


def test_keys_take_dashes_or_underscores_and_lists_become_tuples() -> None:
    config = build_config({"prune-interval": 2, "weight_decay": 0.0, "milestones": [4, 8]})
    assert (config.prune_interval, config.weight_decay, config.milestones) == (2, 0.0, (4, 8))


def test_whole_numbers_pass_for_floats_and_for_round_to() -> None:
    config = build_config({"lr": 1, "round-to": 16})
    assert (config.lr, config.round_to, config.granularity) == (1, "16", 16)
    assert TrainConfig().granularity is None


def test_paths_may_begin_with_the_home_folder_and_be_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    made = build_config({"data-dir": "~/pics", "output_dir": Path("runs"), "model": "~/net.py:Net", "name": "~"})
    assert (made.data_dir, made.output_dir, made.model, made.name) == ("/home/me/pics", "runs", "/home/me/net.py:Net", "~")


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lasso_group": "coupled"}, "unknown setting 'lasso_group': did you mean lasso-groups"),
        ({"epoch": 3}, "unknown setting 'epoch': did you mean epochs"),
        ({"learning_rate": 3}, "unknown setting 'learning_rate': did you mean lr?"),
        ({"Pruning-Rate": 3}, "unknown setting 'Pruning-Rate': did you mean rate?"),
        ({"resume": "auto"}, "resume is not a setting but says how a run is started: give it as a flag, --resume"),
        ({"max-restarts": 3}, "max-restarts is not a setting but says how a run is started: give it as a flag, --max-restarts"),
        ({"xyz": 3}, "unknown setting 'xyz': choose from amp, augment, aux-weight, batch-size, "),
        ({"batch-size": 3, "batch_size": 4}, "batch-size is given twice, with a dash and with an underscore"),
        ({"dataset": "cifar11"}, "unknown dataset 'cifar11': did you mean cifar10 or cifar100?"),
        ({"lasso-step": "proxmal"}, "unknown lasso-step 'proxmal': did you mean proximal?"),
        ({"amp": True}, "amp must be one of off, bfloat16, float16, not True"),
        ({"epochs": "5"}, "epochs must be a whole number, not '5'"),
        ({"epochs": 5.0}, "epochs must be a whole number, not 5.0"),
        ({"epochs": True}, "epochs must be a whole number, not True"),
        ({"lr": "fast"}, "lr must be a number, not 'fast'"),
        ({"lr": False}, "lr must be a number, not False"),
        ({"compile": 1}, "compile must be one of off, default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs, not 1"),
        ({"model": ["resnet20"]}, "model must be a word, not ('resnet20',)"),
        ({"milestones": 5}, "milestones must be a list of whole numbers, not 5"),
        ({"milestones": [1.5]}, "milestones must be a list of whole numbers, not (1.5,)"),
        ({"milestones": [True]}, "milestones must be a list of whole numbers, not (True,)"),
        ({"milestones": [9, 3]}, "milestones must be epochs from 1, each later than the one before, not 9,3"),
        ({"milestones": [3, 3]}, "milestones must be epochs from 1, each later than the one before, not 3,3"),
        ({"milestones": [0]}, "milestones must be epochs from 1, each later than the one before, not 0"),
        ({"epochs": 0}, "epochs must be from 1 to 1000000, not 0"),
        ({"batch-size": 0}, "batch-size must be from 1 to 10000000, not 0"),
        ({"max-batch-size": -1}, "max-batch-size must be from 0 to 10000000, not -1"),
        ({"batch-size": 64, "max-batch-size": 32}, "max-batch-size 32 is below the initial batch size, 64"),
        ({"dynamic-batch": "yes"}, "dynamic-batch must be true or false, not 'yes'"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295, not 4294967296"),
        ({"seed": 10**400}, "seed must be from 0 to 4294967295, not 1000"),
        ({"lr": -0.1}, "lr must be a finite number of at least 0, not -0.1"),
        ({"lr": float("nan")}, "lr must be a finite number of at least 0, not nan"),
        ({"weight-decay": float("inf")}, "weight-decay must be a finite number of at least 0, not inf"),
        ({"momentum": 1.0}, "momentum must be a finite number of at least 0 and below 1, not 1.0"),
        ({"penalty-ratio": 1}, "penalty-ratio must be a finite number of at least 0 and below 1, not 1"),
        ({"lr-gamma": 1.5}, "lr-gamma must be from 0 to 1, not 1.5"),
        ({"round-to": "0"}, "round-to must be auto or a whole number from 1, not '0'"),
        ({"round-to": "many"}, "round-to must be auto or a whole number from 1, not 'many'"),
        ({"round-to": True}, "round-to must be a word, not True"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov needs --optimizer sgd and a momentum above 0"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs --optimizer sgd and a momentum above 0"),
    ],
)
def test_bad_settings_get_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_config(values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("highest", [{"lr-gamma": 1}, {"workers": 1024}, {"seed": 2**32 - 1}, {"penalty-ratio": 0}, {"threshold": 0}])
def test_ends_of_ranges_are_allowed(highest: dict[str, Any]) -> None:
    build_config(highest)


def test_source_of_bad_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^mine\.toml: epochs must be a whole number"):
        settings_from({"epochs": "5"}, "mine.toml")


def test_settings_that_only_another_layer_makes_valid_pass_alone() -> None:
    assert settings_from({"nesterov": True, "momentum": 0.0}) == {"nesterov": True, "momentum": 0.0}
    assert build_config({"nesterov": True, "momentum": 0.0}, {"momentum": 0.5}).nesterov


def test_synonyms_are_of_settings_and_are_none_themselves() -> None:
    settings = {item.name.replace("_", "-") for item in dataclasses.fields(TrainConfig)}
    assert synonyms._SYNONYMS.keys() <= settings
    words = [word.replace("_", "-") for group in synonyms._SYNONYMS.values() for word in group]
    assert len(set(words)) == len(words)
    assert not settings & set(words)
    assert synonyms.synonym_of("Learning-Rate") == "lr"
    assert synonyms.synonym_of("lr") is None
