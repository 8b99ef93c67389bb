"""Every command of README and docs is right, and those that can be cheap are run, on a small network and few images.

A command that is new in a document is checked without a line here: its flags and arguments are parsed, its files and extras looked up.
It is run as well if its name is in `CHEAP`.
"""

import argparse
import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import pytest
from click.shell_completion import BashComplete
from documented import DOCUMENTS, PROGRAMS, TOP, Shown, blocks, commands, python_blocks
from PIL import Image
from runs import invoke, write_images

import prunetrain
from prunetrain.commands import COMMANDS, main
from prunetrain.commands.options import resolve_config
from prunetrain.config import build_config, flag_of
from prunetrain.extras import EXTRAS
from prunetrain.training.run import CHANGEABLE

SHOWN = [shown for path in DOCUMENTS for shown in commands(path)]
OURS = [shown for shown in SHOWN if shown.words[0] == "prunetrain" and len(shown.words) > 1]


def those_of(program: str) -> list[Shown]:
    return [shown for shown in SHOWN if shown.words[0] == program]


def names(shown: Sequence[Shown]) -> list[str]:
    return [f"{one.document}:{one.line}" for one in shown]


def test_commands_are_found() -> None:
    assert len(those_of("prunetrain")) > 20
    assert {"make", "pip", "python", "eval"} <= {shown.words[0] for shown in SHOWN}
    assert [str(shown) for shown in SHOWN if shown.words[0] not in PROGRAMS] == []


def test_every_command_is_documented() -> None:
    assert set(COMMANDS) <= {shown.words[1] for shown in OURS}


# Checked: every command.


@pytest.mark.parametrize("shown", OURS, ids=names(OURS))
def test_flags_and_arguments(shown: Shown) -> None:
    name, *args = shown.words[1:]
    if name.startswith("-"):
        main.make_context("prunetrain", [name, *args], resilient_parsing=True)
        return
    assert name in COMMANDS, shown
    command = main.get_command(click.Context(main), name)
    assert command
    known = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    assert {word.partition("=")[0] for word in args if word.startswith("-") and word != "-"} <= known | {"--help"}, shown
    if not shown.inline:
        context = command.make_context(name, args)
        if name == "train":
            resolve_config(context.params)


@pytest.mark.parametrize("shown", those_of("make"), ids=names(those_of("make")))
def test_targets(shown: Shown) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (TOP / "Makefile").read_text(), re.MULTILINE)
    assert phony
    targets = [word for word in shown.words[1:] if "=" not in word]
    assert targets
    assert set(targets) <= set(phony[1].split())


@pytest.mark.parametrize("shown", those_of("pip"), ids=names(those_of("pip")))
def test_extras(shown: Shown) -> None:
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert shown.words[1] == "install"
    for listed in re.findall(r"\[([a-z,]+)\]", shown.text):  # in the comment as well
        assert set(listed.split(",")) <= set(extras)


def test_every_optional_package_is_in_its_extra() -> None:
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    del extras["dev"]
    assert {package(line): extra for extra, lines in extras.items() for line in lines} == EXTRAS


def package(requirement: str) -> str:
    return requirement.partition(">")[0]


def test_benchmarks_take_these_flags() -> None:
    """All in one process, each up to the place where it has read its command line."""
    calls = [shown.words[1:] for shown in those_of("python")]
    assert [call for call in calls if not (TOP / call[0]).is_file()] == []
    program = f"import sys; sys.path[:0] = [{str(TOP / 'tests')!r}]; import test_docs; test_docs.parse_command_lines({calls!r})"
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    missing = json.loads(done.stdout)
    assert set(missing) <= {"torch_pruning"}, missing
    passed_on = [call[call.index("--") + 1 :] for call in calls if "--" in call]
    train = main.get_command(click.Context(main), "train")
    assert train
    assert passed_on
    for flags in passed_on:
        resolve_config(train.make_context("train", flags).params)


class Parsed(Exception):
    """Raised in place of a program's work."""


def parse_command_lines(calls: list[list[str]]) -> None:
    """Run scripts until their arguments are parsed; print as JSON which modules were missing."""
    import runpy

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        parse(self, *args, **kwargs)  # type: ignore[arg-type]
        raise Parsed

    argparse.ArgumentParser.parse_args = parse_and_stop  # type: ignore[assignment, method-assign]
    for module in ("runs", "test_docs"):
        sys.modules.pop(module, None)
    missing = []
    for script, *args in calls:
        sys.path[0] = str((TOP / script).parent)
        sys.argv = [script, *args]
        try:
            runpy.run_path(str(TOP / script), run_name="__main__")
        except Parsed:
            continue
        except ModuleNotFoundError as error:
            missing.append(error.name)
            continue
        raise AssertionError(f"{script} read no command line")
    print(json.dumps(missing))


@pytest.mark.parametrize("block", [block for path in DOCUMENTS for block in python_blocks(path)])
def test_python_uses_public_names(block: str) -> None:
    code = inspect.cleandoc(block)
    used = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "prunetrain"}
    assert used <= set(prunetrain.__all__)


def test_settings_are_settings() -> None:
    files = [tomllib.loads(block) for path in DOCUMENTS for block in blocks(path, "toml")]
    assert files
    for values in files:
        build_config(values)


def test_settings_that_may_change_on_resume() -> None:
    text = (TOP / "docs" / "reliability.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"These may be given anew: (.*?)\. Any other", text, re.DOTALL)
    assert sorted(re.findall(r"`(--[a-z-]+)`", listed)) == sorted(map(flag_of, CHANGEABLE))


# Run: what is cheap.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of LeNet-300-100 on few images, `run`, whose network shrank after epochs 2 and 4."""
    folder = tmp_path_factory.mktemp("docs").resolve()
    write_images(folder / "images.npz")
    Image.new("L", (20, 20), 200).save(folder / "photo.png")
    args = "train --model lenet-300-100 --epochs 4 --prune-interval 2 --penalty-ratio 0.94 --round-to 1 --name run".split()
    result = invoke(*args, *SMALL_DATA, "--data-dir", folder / "images.npz", "--output-dir", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    for name, epoch in (("A.py", 0), ("B.py", 4)):
        shutil.copy(folder / "generated_nets" / "run" / f"epoch_{epoch:03}.py", folder / name)
    return folder


SMALL_DATA = ("--dataset", "npz", "--device", "cpu", "-b", "32")
OF_ANOTHER_NETWORK = (
    "--model",
    "--model-arg",
    "--weights",
    "--dataset",
    "--data-dir",
    "--cache",
    "--image-size",
    "--recipe",
    "--epochs",
    "-b",
    "--batch-size",
)


def small_training(args: list[str], place: Path) -> list[str]:
    """The same flags, another network, other data, one epoch; of a method, one before and one after each pruning."""
    kept, epochs = without(args, OF_ANOTHER_NETWORK), 1
    if "--prune-at" in args:
        rounds = args[args.index("--rounds") + 1] if "--rounds" in args else "1"
        kept, epochs = [*without(kept, ("--prune-at",)), "--prune-at", "1"], 1 + int(rounds)
    model = "resnet20" if {"fpgm", "filters"} & set(args) else "lenet-300-100"  # which has no filters
    return [*kept, *SMALL_DATA, "--data-dir", str(place / "images.npz"), "--model", model, "--epochs", str(epochs)]


def same_files(args: list[str], place: Path) -> list[str]:
    """Files of runs as the run here has them: for any network but the first, the last. Runs of other names are copies of the one here."""
    found = []
    for word in args:
        match = re.fullmatch(r"(generated_nets|checkpoints)/([\w.-]+)(/.*)?", word)
        run = match[2] if match else word
        if match or (re.fullmatch(r"[\w-]+", word) and not found):
            copy_run(place, run)
        if re.fullmatch(r"\w+\.py", word) and not (place / word).exists():  # what a command before this one in the document writes
            shutil.copy(place / "B.py", place / word)
        found.append(re.sub(r"epoch_(?!000)\d+", "epoch_004", word))
    return found


def copy_run(place: Path, name: str) -> None:
    for kind in ("generated_nets", "checkpoints"):
        if not (place / kind / name).exists():
            shutil.copytree(place / kind / "run", place / kind / name)


def small_network(args: list[str], place: Path) -> list[str]:
    """Flatten another network."""
    return ["lenet-300-100", *without(args[1:], ("--weights",)), "--input-shape", "1x8x8", "--force"]


def small_image(args: list[str], place: Path) -> list[str]:
    """Classify one image, which is here."""
    run, *rest = same_files(args, place)
    return [run, *(str(place / "photo.png") if word.endswith(".png") else word for word in rest)]


def light_format(args: list[str], place: Path) -> list[str]:
    """Export to the format that takes no time; test_export.py has the others."""
    args = [re.sub(r"\.(onnx|pt2)$", ".safetensors", word) for word in same_files(without(args, ("--format",)), place)]
    return [*args, "--force"]


CHEAP: dict[str, Callable[[list[str], Path], list[str]]] = {
    "train": small_training,
    "inspect": same_files,
    "report": same_files,
    "evaluate": same_files,
    "predict": small_image,
    "reconfigure": same_files,
    "flatten": small_network,
    "export": light_format,
}
"""How a command's arguments are changed so that it is done at once."""

SEVERAL_PROCESSES = {"--gpus", "--nproc"}
RUNNABLE = [shown for shown in OURS if shown.words[1] in CHEAP and not shown.inline and not SEVERAL_PROCESSES & set(shown.words)]


@pytest.mark.parametrize("shown", RUNNABLE, ids=names(RUNNABLE))
def test_it_runs(shown: Shown, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("prunetrain.report.page.CHARTS", ())
    monkeypatch.setattr("prunetrain.report.charts.CHARTS", ())
    name, *args = shown.words[1:]
    if name == "report":
        pytest.importorskip("matplotlib", reason="matplotlib, the extra `plot`, is not installed")
    result = invoke(name, *CHEAP[name](without(args, ("--download", "--grey"), value=False), place))
    assert (result.exit_code, result.stderr) == (0, ""), shown
    assert result.stdout


def test_the_example_that_classifies_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what `prunetrain predict` says of each image, one at a time."""
    (example,) = [block for block in python_blocks(TOP / "README.md") if "class_names" in block]
    monkeypatch.chdir(tmp_path)
    assert (
        invoke(*"train --epochs 3 --penalty-ratio 0 --target-macs 0 --no-augment --device cpu --name resnet20-digits".split()).exit_code
        == 0
    )
    example = example.replace("epoch_040.py", "epoch_000.py").replace("epoch_040.pt", "last.pt")
    digits = np.load(TOP / "prunetrain" / "training" / "data" / "digits.npz")["x_test"]
    said = []
    for number in range(12):
        Image.fromarray(digits[number]).resize((20, 20)).save(f"{number:02}.png")
        shutil.copy(f"{number:02}.png", "photo.png")
        exec(example, {})
        said.append(capsys.readouterr().out.strip())
    assert len(set(said)) > 3
    found = prunetrain.predict("checkpoints/resnet20-digits/last.pt", [f"{number:02}.png" for number in range(12)])
    assert said == [one.guesses[0].name for one in found]


def without(args: list[str], flags: tuple[str, ...], *, value: bool = True) -> list[str]:
    """Arguments without some flags, and their values."""
    kept, skip = [], False
    for word in args:
        if skip:
            skip = False
        elif word in flags:
            skip = value
        else:
            kept.append(word)
    return kept


def test_completion_of_the_shell() -> None:
    (shown,) = those_of("eval")
    assert shown.text == 'eval "$(_PRUNETRAIN_COMPLETE=bash_source prunetrain)"'
    environment = {**os.environ, "_PRUNETRAIN_COMPLETE": "bash_source"}
    program = "from prunetrain.commands import main; main(prog_name='prunetrain')"
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, env=environment, capture_output=True, text=True, check=False)
    assert "complete -o nosort -F _prunetrain_completion prunetrain" in done.stdout
    shell = BashComplete(main, {}, "prunetrain", "_PRUNETRAIN_COMPLETE")

    def completed(*args: str) -> list[str]:
        return [item.value for item in shell.get_completions(list(args[:-1]), args[-1])]

    assert completed("in") == ["inspect"]
    assert completed("train", "--penalty") == ["--penalty-ratio"]
    assert completed("train", "--dataset", "cifar") == ["cifar10", "cifar100"]
