"""Packaged recipes build, carry the paper's published settings, and damaged files get one line."""

import tomllib
from pathlib import Path

import pytest

from prunetrain import zoo
from prunetrain.config import TrainConfig, build_config
from prunetrain.errors import ConfigError
from prunetrain.training import recipes

PAPER = {
    "cifar10-resnet32": ("resnet32", "cifar10"),
    "cifar10-resnet50": ("resnet50-cifar", "cifar10"),
    "cifar10-vgg16": ("vgg16", "cifar10"),
    "cifar100-resnet32": ("resnet32", "cifar100"),
    "cifar100-resnet50": ("resnet50-cifar", "cifar100"),
    "imagenet-resnet50": ("resnet50", "folder"),
}
OWN = {"cifar10", "cifar100", "digits", "fashion-mnist", "mnist"}


def test_names_are_the_packaged_files() -> None:
    assert recipes.names() == sorted(PAPER | dict.fromkeys(OWN))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_builds_and_says_what_it_is(name: str) -> None:
    settings = recipes.load_recipe(name)
    config = build_config(settings)
    assert config.model == settings["model"]
    assert config.model in zoo.names()
    assert config.dataset == settings["dataset"]
    text = (Path(recipes.__file__).parent / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.splitlines()[1].startswith("# Source: ")


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_have_the_published_settings(name: str) -> None:
    config = build_config(recipes.load_recipe(name))
    assert (config.model, config.dataset) == PAPER[name]
    assert (config.penalty_ratio, config.threshold, config.lr, config.lr_gamma, config.momentum) == (0.2, 1e-4, 0.1, 0.1, 0.9)
    assert (config.criterion, config.lasso_groups, config.lasso_step, config.round_to) == ("union", "slices", "subgradient", "1")
    assert config.target_macs == 0
    schedule = (config.epochs, config.milestones, config.batch_size, config.weight_decay, config.prune_interval)
    if name.startswith("imagenet"):
        assert schedule == (90, (41, 61, 81), 256, 1e-4, 5)
    else:
        assert schedule == (182, (91, 136), 128, 5e-4, 10)


def test_data_sets_have_the_recipe_of_their_name() -> None:
    datasets = TrainConfig.__dataclass_fields__["dataset"].metadata["choices"]
    assert {dataset for dataset in datasets if recipes.default_recipe(dataset)} == OWN
    for dataset in OWN:
        assert recipes.load_recipe(dataset)["dataset"] == dataset


def test_recipe_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("epochs = 3\nmilestones = [1, 2]\n")
    (tmp_path / "mine.json").write_text('{"epochs": 3, "milestones": [1, 2]}')
    for name in ("mine.toml", "mine.json"):  # as Windows names and writes them
        (tmp_path / f"windows-{name}".upper()).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes().replace(b"\n", b"\r\n"))
    for name in ("mine.toml", "mine.json", "WINDOWS-MINE.TOML", "WINDOWS-MINE.JSON"):
        assert recipes.load_recipe(str(tmp_path / name)) == {"epochs": 3, "milestones": [1, 2]}


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown recipe 'cifar10-resnet31': did you mean cifar10-resnet32 or "):
        recipes.load_recipe("cifar10-resnet31")
    with pytest.raises(ConfigError, match=r"^unknown recipe '\?': choose from cifar10, "):
        recipes.load_recipe("?")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"epochs = 3\nlr 0.1\n", r"a.toml: not valid TOML: .*line 2, column 4"),
        ("a.toml", b"epochs = 3\nepochs = 4\n", r"a.toml: not valid TOML: .*line 2"),
        ("a.json", b'{"epochs": 3,\n "lr" 0.1}', r"a.json: not valid JSON: .* \(at line 2, column 7\)"),
        ("a.json", b"", r"a.json: not valid JSON: .* \(at line 1, column 1\)"),
        ("a.json", b"[1, 2]", r"a.json: must hold a table of settings, not a list"),
        ("a.json", b"1" * 5000, r"a.json: a number or a nesting in it is too large to read"),
        ("a.json", b"[" * 60_000, r"a.json: a number or a nesting in it is too large to read"),
        ("a.toml", b"\xff\xfe", r"a.toml: not a text file in UTF-8"),
        ("a.yaml", b"epochs: 3", r"a.yaml: a config file ends in .toml or .json"),
        ("a.toml", None, r"a.toml: no such file or directory"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        recipes.load_config_file(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_folder_in_place_of_a_file_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(ConfigError, match=r"a.toml: is a directory"):
        recipes.load_config_file(tmp_path / "a.toml")


def test_recipes_are_plain_tables_of_literals() -> None:
    for file in Path(recipes.__file__).parent.glob("*.toml"):
        values = tomllib.loads(file.read_text(encoding="utf-8")).values()
        assert all(isinstance(value, str | int | float | list) for value in values)
