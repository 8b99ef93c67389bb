"""The command line's frame: flags follow TrainConfig, settings merge in order, mistakes get one line and exit code 2."""

import dataclasses
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

from prunetrain import commands
from prunetrain.commands.options import config_option, config_options, flag_settings, resolve_config
from prunetrain.config import TrainConfig, flag_of, parse_arguments
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.method_settings import METHOD_SETTINGS
from prunetrain.training import recipes

FLAGS = """
--amp --augment --aux-weight --batch-size --cache --channels-last --checkpoint-minutes --class-weights --compile --config --criterion
--data-dir --dataset --device --download --dynamic-batch --epochs --grey --image-size --importance --keep --keep-best --label-smoothing
--lasso-groups --lasso-interval --lasso-step --layer-rate --lr --lr-gamma --max-batch-size --method --method-interval --milestones --model
--model-arg --momentum --name --nesterov --no-augment --no-channels-last --no-download --no-dynamic-batch --no-grey --no-keep-best
--no-nesterov --no-slice --no-sync-batch-norm --norm-share --optimizer --output-dir --penalty-ratio --prune-at --prune-interval --rate
--recipe --residual --retrain --rewind-epoch --rho --rho-factor --rho-max --round-to --rounds --save-epochs --schedule --scope --seed
--slice --streams --structure --sync-batch-norm --target-by --target-macs --threshold --val-split --warmup-epochs --weight-decay --weights
--workers -b -j
""".split()
TOP = Path(__file__).parent.parent
FIELDS = dataclasses.fields(TrainConfig)


@click.command()
@config_options()
def settings(**params: Any) -> None:
    """Print nothing; tests look at what `read` returns."""


def read(*args: str) -> dict[str, Any]:
    """Return what click makes of arguments."""
    return settings.make_context("settings", list(args)).params


def test_flags_are_frozen() -> None:
    flags = {flag for param in settings.params for flag in (*param.opts, *param.secondary_opts)}
    assert sorted(flags) == FLAGS


def test_options_follow_the_fields() -> None:
    options = {param.name: param for param in settings.params}
    assert list(options) == ["recipe", "config", *(item.name for item in FIELDS)]
    for item in FIELDS:
        option = options[item.name]
        assert isinstance(option, click.Option)
        assert option.default is None
        assert option.opts[-1] == flag_of(item.name)
        assert option.help is not None
        if isinstance(item.default, bool):
            assert option.help.endswith(f"[default: {'on' if item.default else 'off'}]")
        elif item.default in ("", ()):
            assert "[default" not in option.help
        else:
            assert option.help.endswith(f"[default: {item.default}]")


def test_only_what_was_given_counts() -> None:
    assert flag_settings(read()) == {}
    params = read("-b", "8", "--lr", "0.5", "--no-augment", "--compile", "--milestones", "91,136", "--round-to", "8")
    assert flag_settings(params) == {
        "batch_size": 8,
        "lr": 0.5,
        "augment": False,
        "compile": "default",
        "milestones": (91, 136),
        "round_to": "8",
    }
    assert flag_settings({"epochs": 0, "nesterov": False, "other": 3}) == {"epochs": 0, "nesterov": False}


@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.name)
def test_flag_and_config_key_mean_the_same(item: "dataclasses.Field[Any]", tmp_path: Path) -> None:
    kind = type(item.default)
    value = {bool: not item.default, int: 70, float: 0.25, tuple: (5, 6), str: "3"}[kind]
    value = 2.0 if item.name == "rho_factor" else value
    if item.metadata["choices"]:
        value = next(word for word in item.metadata["choices"] if word != item.default)
    flag, key = flag_of(item.name), item.name.replace("_", "-")
    if kind is bool:
        args = [flag if value else f"--no-{flag[2:]}"]
    elif item.name == "layer_rates":
        value = ("fc=0.5",)
        args = [flag, "fc=0.5"]
    elif item.metadata["repeated"]:
        value = ("width=2", "act='relu'")
        args = [flag, "width=2", flag, "act=relu"]
    else:
        args = [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    file = tmp_path / "mine.toml"
    written = list(value) if isinstance(value, tuple) else value
    file.write_text(f"{key} = {str(written).lower() if kind is bool else repr(written)}\n")
    needed = []
    if item.name in ("rate", "prune_at", *METHOD_SETTINGS):
        needed = ["--method", "filter-l2", "--epochs", "70"] + (["--prune-at", "10"] if item.name in ("retrain", "rewind_epoch") else [])
    by_flag, by_file = resolve_config(read(*needed, *args)), resolve_config(read(*needed, "--config", str(file)))
    assert getattr(by_flag, item.name) == value
    assert by_flag == by_file


@pytest.mark.parametrize(
    ("args", "amp"),
    [
        ([], None),
        (["--amp"], "bfloat16"),
        (["--amp", "--epochs", "3"], "bfloat16"),
        (["--amp", "float16"], "float16"),
        (["--amp=off"], "off"),
    ],
)
def test_bare_amp_means_bfloat16(args: list[str], amp: str | None) -> None:
    assert read(*args)["amp"] == amp


def test_arguments_of_the_network_are_a_repeated_flag_a_list_or_a_table(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    by_flag = resolve_config(
        read("--model-arg", "width=0.5", "--model-arg", "act=relu", "--model-arg", "sizes=[1, 2]", "--model-arg", "a===")
    )
    assert by_flag.model_args == ("width=0.5", "act='relu'", "sizes=[1, 2]", "a='=='")
    assert parse_arguments(by_flag.model_args) == {"width": 0.5, "act": "relu", "sizes": [1, 2], "a": "=="}
    file.write_text("model-args = ['width=0.5', 'act=relu', 'sizes=[1, 2]', 'a===']\n")
    assert resolve_config(read("--config", str(file))) == by_flag
    file.write_text("[model-args]\nwidth = 0.5\nact = 'relu'\nsizes = [1, 2]\na = '=='\n")
    assert resolve_config(read("--config", str(file))) == by_flag
    assert resolve_config(read("--config", str(file), "--epochs", "3")).model_args == by_flag.model_args
    assert resolve_config(read("--config", str(file), "--model-arg", "x=1")).model_args == ("x=1",)
    file.write_text("[model-args]\ndigits = '3'\n")  # a string stays one
    assert parse_arguments(resolve_config(read("--config", str(file))).model_args) == {"digits": "3"}


def test_one_option_can_be_taken_alone() -> None:
    @click.command()
    @config_option("threshold")
    def cut(threshold: float | None) -> None:
        assert threshold == 0.5

    assert CliRunner().invoke(cut, ["--threshold", "0.5"]).exit_code == 0


def test_precedence(tmp_path: Path) -> None:
    recipe, file = tmp_path / "recipe.toml", tmp_path / "config.json"
    recipe.write_text("epochs = 2\nlr = 0.2\nseed = 2\n")
    file.write_text('{"lr": 0.3, "seed": 3}')
    config = resolve_config(read("--recipe", str(recipe), "--config", str(file), "--seed", "4"))
    assert (config.epochs, config.lr, config.seed, config.momentum) == (2, 0.3, 4, TrainConfig.momentum)


def test_data_set_brings_its_recipe_unless_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    mnist, paper = recipes.load_recipe("mnist"), recipes.load_recipe("cifar10-resnet32")
    assert resolve_config({}) == resolve_config(read("--recipe", "digits"))
    assert resolve_config(read("--dataset", "mnist")).model == mnist["model"]
    file.write_text('dataset = "mnist"\n')
    assert resolve_config(read("--config", str(file))).model == mnist["model"]
    assert resolve_config(read("--config", str(file), "--dataset", "fake")) == TrainConfig(dataset="fake")
    file.write_text('recipe = "cifar10-resnet32"\nepochs = 3\n')
    config = resolve_config(read("--config", str(file)))
    assert (config.model, config.dataset, config.epochs, config.batch_size) == ("resnet32", "cifar10", 3, paper["batch-size"])
    assert resolve_config(read("--config", str(file), "--recipe", "mnist")).model == mnist["model"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", r"config.toml: unknown setting 'epoch': did you mean epochs"),
        ("epochs = 'three'", r"config.toml: epochs must be a whole number, not 'three'"),
        ("[training]\nepochs = 3", r"config.toml: unknown setting 'training'"),
        ("recipe = 3", r"config.toml: recipe must be a word, not 3"),
        ("recipe = 'mnits'", r"unknown recipe 'mnits': did you mean mnist"),
        ("model-args = 'width=2'", r"config.toml: model-args must be a table, or a list of name=value words, not 'width=2'"),
        ("model-args = [2]", r"config.toml: model-args must be a table, or a list of name=value words, not \(2,\)"),
        ("model-args = ['width']", r"config.toml: model-arg must be NAME=VALUE, such as width=2, not 'width'"),
        ("model-args = ['a=1', 'a=2']", r"config.toml: model-arg a is given twice"),
        ("[model-args]\nday = 2025-01-01", r"config.toml: model-args: day must be a number, string, list or table, not datetime"),
        ("[model-args]\n'a b' = 1", r"config.toml: model-arg must be NAME=VALUE, such as width=2, not 'a b=1'"),
        ("seed = -1", r"seed must be from 0 to 4294967295, not -1"),
    ],
)
def test_bad_config_files_get_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        resolve_config(read("--config", str(file)))
    assert "\n" not in str(error.value)


def test_bad_recipe_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("recipe = 'mnist'")
    with pytest.raises(ConfigError, match=r"^recipe .*mine.toml: unknown setting 'recipe'"):
        resolve_config(read("--recipe", str(file)))


Invoke = Callable[..., Result]
NO_MEMORY = "out of memory: use a smaller --batch-size or a smaller network"


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a LazyGroup with one command, `work`, which merges its settings and then runs `action`."""

    def run(*args: str, action: Callable[[], None] = lambda: None) -> Result:
        @click.command()
        @config_options()
        def command(**params: Any) -> None:
            resolve_config(params)
            action()

        module = ModuleType("fakes.work")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fakes", ModuleType("fakes"))
        monkeypatch.setitem(sys.modules, "fakes.work", module)
        group = commands.LazyGroup("prunetrain", summaries={"work": "Do the work.", "absent": "Not importable."}, package="fakes")
        return CliRunner().invoke(group, args)

    return run


def raise_(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_group_runs_its_command(invoke: Invoke) -> None:
    seen = []
    result = invoke("work", "--epochs", "3", action=lambda: seen.append("ran"))
    assert (result.exit_code, result.stderr, seen) == (0, "", ["ran"])


def test_group_help_lists_commands_without_importing_them(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "work    Do the work." in result.stdout
    assert "absent  Not importable." in result.stdout


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["wrok"], "unknown command 'wrok': did you mean work? Try prunetrain --help"),
        (["xyz"], "unknown command 'xyz': choose from absent, work. Try prunetrain --help"),
        (["--hepl"], "unknown option '--hepl': did you mean --help? Try prunetrain --help"),
        (["work", "--epohcs", "3"], "unknown option '--epohcs': did you mean --epochs? Try prunetrain work --help"),
        (["work", "--epoch", "3"], "unknown option '--epoch': did you mean --epochs? Try prunetrain work --help"),
        (["work", "-z"], "unknown option '-z'. Try prunetrain work --help"),
        (["work", "more"], "got unexpected extra argument (more). Try prunetrain work --help"),
        (["work", "--epochs", "five"], "invalid value for '--epochs': 'five' is not a valid integer. Try prunetrain work --help"),
        (["work", "--model-arg", "width"], "model-arg must be NAME=VALUE, such as width=2, not 'width'"),
        (["work", "--model-arg", "2=3"], "model-arg must be NAME=VALUE, such as width=2, not '2=3'"),
        (["work", "--model-arg", "a=1", "--model-arg", "a=2"], "model-arg a is given twice"),
        (["work", "--model-arg", "a=1e999"], "model-args: a must be a number, string, list or table, not inf"),
        (["work", "--milestones", "3,a"], "milestones must be a list of whole numbers, not '3,a'"),
        (["work", "--criterion", "unoin"], "unknown criterion 'unoin': did you mean union?"),
        (["work", "--dataset", "cifar11"], "unknown dataset 'cifar11': did you mean cifar10 or cifar100?"),
        (["work", "--recipe", "digit"], "unknown recipe 'digit': did you mean digits?"),
        (["work", "--epochs", "0"], "epochs must be from 1 to 1000000, not 0"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(invoke: Invoke, args: list[str], line: str) -> None:
    result = invoke(*args)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {line}\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CheckpointError("last.pt is damaged:\n  use another"), "last.pt is damaged: use another"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pt"), "a.pt: the disk is full; free some space and run again"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "runs: permission denied"),
        (OSError("cannot reach the server"), "cannot reach the server"),
        (click.ClickException("No."), "no."),
        (MemoryError(), NO_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory\ntrace"), f"{NO_MEMORY} (DefaultCPUAllocator: can't allocate memory)"),
        (torch.OutOfMemoryError("CUDA out of memory."), f"{NO_MEMORY} (CUDA out of memory.)"),
        (torch.AcceleratorError("CUDA error: out of memory"), f"{NO_MEMORY} (CUDA error: out of memory)"),
        (RuntimeError("GET was unable to find an engine"), f"{NO_MEMORY} (GET was unable to find an engine)"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            f"{NO_MEMORY} (CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`)",
        ),
    ],
)
def test_errors_of_a_command_get_one_line_and_exit_code_2(invoke: Invoke, error: Exception, line: str) -> None:
    result = invoke("work", action=raise_(error))
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {line}\n")


def test_ctrl_c_exits_with_130(invoke: Invoke) -> None:
    result = invoke("work", action=raise_(KeyboardInterrupt()))
    assert (result.exit_code, result.stderr.strip()) == (130, "")


@pytest.mark.parametrize("error", [ZeroDivisionError(), torch.AcceleratorError("CUDA error: an illegal memory access was encountered")])
def test_defects_keep_their_traceback(invoke: Invoke, error: Exception) -> None:
    result = invoke("work", action=raise_(error))
    assert result.exception is error


def test_main_without_arguments_shows_help() -> None:
    result = CliRunner().invoke(commands.main)
    assert result.exit_code == 0
    for name, summary in commands.COMMANDS.items():
        assert f"{name} " in result.stdout
        assert summary in result.stdout


def test_version_names_the_distributions() -> None:
    result = CliRunner().invoke(commands.main, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("prunetrain ")
    assert ", torch " in result.stdout


def test_help_imports_nothing_slow() -> None:
    code = """
import sys
from prunetrain.commands import main
main(["--help"], standalone_mode=False)
assert not {"torch", "numpy", "rich", "jinja2", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=TOP, check=True, capture_output=True)
