"""`prunetrain.train`: a run from Python, as the command line makes it."""

import re
from pathlib import Path
from typing import Any

import pytest
from runs import Recorder, arguments, assert_same_run, invoke, settings

import prunetrain
from prunetrain.errors import ConfigError
from prunetrain.training.checkpoints import load_checkpoint


def test_it_is_the_run_of_the_command_line(images: Path, tmp_path: Path) -> None:
    config = settings(images, tmp_path / "command", name="x")
    assert invoke(*arguments(config)).exit_code == 0
    changed = {key: value for key, value in config.to_dict().items() if value != getattr(type(config), key)}
    recorder = Recorder()
    outcome = prunetrain.train(observer=recorder, **changed | {"output_dir": str(tmp_path / "python")})
    assert outcome.finished
    assert len(recorder.metrics) == config.epochs
    assert_same_run(outcome.run, type(outcome.run)(tmp_path / "command", "x"))


def test_it_goes_on(images: Path, tmp_path: Path) -> None:
    given = settings(images, tmp_path / "parts").to_dict()
    whole = prunetrain.train(**given | {"output_dir": str(tmp_path / "whole")})
    stopped = prunetrain.train(observer=Recorder((2, 3)), **given)
    assert not stopped.finished
    assert_same_run(prunetrain.train(resume=True, **given).run, whole.run)
    recorder = Recorder()
    assert prunetrain.train(observer=recorder, **given | {"epochs": 1}).run.name == f"{whole.run.name}-2"  # a new one
    assert recorder.messages[0] == f"run {whole.run.name} exists already: this one is {whole.run.name}-2"


@pytest.mark.parametrize("resume", ["some-run", "auto", None, 1])
def test_resume_is_yes_or_no(tmp_path: Path, resume: Any) -> None:
    """A run's name, as `--resume` takes it, is true and would start a run of another name."""
    message = f"^resume must be True or False, not {resume!r}: to resume a run, give its name as name, and resume=True$"
    with pytest.raises(ConfigError, match=message):
        prunetrain.train(resume=resume, model="lenet-300-100", epochs=1, output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        prunetrain.prune(tmp_path / "last.pt", method="magnitude", rate=0.5, resume=resume)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "^no rate to prune at: say how much to remove"),
        ({"rate": 0.5, "epochs": -1}, "^epochs must be a whole number from 0, not -1$"),
        ({"rate": 0.5, "epochs": "2"}, "^epochs must be a whole number from 0, not '2'$"),
        ({"rate": 0.5, "during": 1.5}, "^during must be a whole number from 0, not 1.5$"),
    ],
)
def test_how_much_to_prune_and_how_long(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prunetrain.prune(tmp_path / "last.pt", method="magnitude", **asked)


def test_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('model = "lenet-300-100"\nepochs = 1\nround-to = 1\n')
    named = prunetrain.train(recipe=str(recipe), output_dir=str(tmp_path), batch_size=64)
    own = prunetrain.train(model="lenet-300-100", epochs=1, output_dir=str(tmp_path))
    found = [load_checkpoint(outcome.run.last).config for outcome in (named, own)]
    assert [(config["target_macs"], config["batch_size"]) for config in found] == [(0.5, 64), (0.15, 32)]  # digits have a recipe


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data_dir": "my_images"}, r"^--data-dir has no effect with --dataset digits: did you mean --dataset folder or npz\?$"),
        ({"image_size": 32}, r"^--image-size has no effect with --dataset digits: did you mean --dataset folder or fake\?$"),
        ({"download": True}, r"^--download has no effect with --dataset digits"),
        ({"target_macs": 0.5, "penalty_ratio": 0.0}, r"^--penalty-ratio 0 trains without pruning and never reaches --target-macs"),
        (
            {"method": "fpgm", "rate": 0.3, "epochs": 2, "prune_at": 1, "scope": "global"},
            r"^--scope has no effect with --method fpgm, only with admm, magnitude, random-weights: leave it out$",
        ),
        ({"method": "magnitude"}, r"^magnitude removes nothing at rate 0: say how much with --rate$"),
    ],
    ids=str,
)
def test_what_would_be_passed_over_is_refused(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prunetrain.train(output_dir=str(tmp_path), **asked)
    flags = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))]
    result = invoke("train", "--output-dir", tmp_path, *flags)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert re.match(message, result.stderr.removeprefix("error: ").strip())
    assert not list(tmp_path.rglob("*.*"))


def test_what_a_config_file_asks_for_is_asked_for_too(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "mine.toml"
    config.write_text('data-dir = "my_images"\n')
    message = "--data-dir has no effect with --dataset digits: did you mean --dataset folder or npz?\n"
    result = invoke("train", "--config", config, "--output-dir", tmp_path / "runs")
    assert (result.exit_code, result.stderr) == (2, f"error: {message}")
    result = invoke("sweep", tmp_path / "configs")
    assert (result.exit_code, result.stderr) == (1, f"error: mine.toml: {message}")
    assert not list(tmp_path.rglob("epoch_*"))


def test_a_recipe_may_say_what_does_nothing(tmp_path: Path) -> None:
    """The digits' target, for one, where a dense network is asked for."""
    outcome = prunetrain.train(recipe="digits", model="lenet-300-100", epochs=1, penalty_ratio=0.0, output_dir=str(tmp_path))
    assert outcome.finished


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'epoch': did you mean epochs"):
        prunetrain.train(epoch=3, output_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
