"""A run remembers what its outputs mean: data whose classes are others, or in another order, is refused, and not scored as it comes."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from datafiles import folder_settings, run_on_cats_and_dogs, write_npz
from runs import invoke, settings

from prunetrain.errors import ConfigError
from prunetrain.library.prune import prune
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.class_names import check_names, names_of
from prunetrain.training.data import load_data
from prunetrain.training.offline_reconfiguration import reconfigure_checkpoint

CPU = torch.device("cpu")
OTHER = (
    " was trained with 'cat' as class 0, but the data has 'dog' there: "
    "name its class folders as they were in training, or use the training data"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return run_on_cats_and_dogs(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(finished: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A copy of that run where commands run, with its data."""
    shutil.copytree(finished.output_dir, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return RunPaths(tmp_path, finished.name)


def rename(old: str, new: str) -> None:
    for split in ("train", "val"):
        Path("images", split, old).rename(Path("images", split, new))


def test_names_are_kept(run: RunPaths) -> None:
    assert load_checkpoint(run.checkpoint(0)).class_names == load_checkpoint(run.last).class_names == ["cat", "dog"]
    done = reconfigure_checkpoint(run.last, {"threshold": 1e9}, 1)
    assert load_checkpoint(done.checkpoint).class_names == ["cat", "dog"]
    pruned = prune(run.last, method="magnitude", rate=0.5, epochs=1, data_dir="images")
    assert load_checkpoint(pruned.run.last).class_names == ["cat", "dog"]


def test_classes_in_another_order_are_refused(run: RunPaths) -> None:
    command = ("train", "--resume", run.last, "--epochs", "2", "--data-dir", "images")
    assert invoke(*command).exit_code == 0
    rename("cat", "zcat")
    result = invoke(*command)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"{OTHER}\n")


def test_classes_that_came_or_went_are_named(run: RunPaths) -> None:
    for split in ("train", "val"):
        shutil.copytree(Path("images", split, "cat"), Path("images", split, "emu"))
    command = ("train", "--resume", run.last, "--epochs", "2", "--data-dir", "images")
    assert invoke(*command).stderr.endswith("of 2 classes, and the data has 3x8x8 of 3; only the data has 'emu'\n")
    rename("dog", "eel")
    assert invoke(*command).stderr.endswith(" of 3; only the data has 'eel', 'emu'; only the network has 'dog'\n")


def test_nothing_is_written_for_other_classes(run: RunPaths) -> None:
    rename("cat", "zcat")
    with pytest.raises(ConfigError, match="trained with 'cat' as class 0, but the data has 'dog' there"):
        prune(run.last, method="magnitude", rate=0.5, epochs=1, data_dir="images", name="y")
    assert not RunPaths(run.output_dir, "y").exists()


def test_numbers_go_with_any_names(run: RunPaths) -> None:
    """Arrays say what number an image has, and not of what name; folders called by numbers have an order of their own."""
    images = torch.zeros(8, 8, 8, 3, dtype=torch.uint8).numpy()
    labels = torch.arange(8).numpy() % 2
    arrays = write_npz(Path("images.npz"), {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels})
    assert invoke("evaluate", run.last, "--dataset", "npz", "--data-dir", arrays).exit_code == 0
    numbered = load_data(settings(Path(arrays), Path(), batch_size=2), CPU)
    check_names(["cat", "dog"], numbered, run.last)
    with pytest.raises(ConfigError, match="with '1' as class 0, but the data has '0' there"):
        check_names(["1", "0"], numbered, run.last)


def test_a_name_that_is_no_text_is_stored_as_one(run: RunPaths) -> None:
    rename("dog", os.fsdecode(b"d\xf6g"))
    data = load_data(settings(Path("images"), Path(), **folder_settings(Path("images"))), CPU)
    assert names_of(data) == ["cat", "d\\udcf6g"]
    check_names(["cat", "d\\udcf6g"], data, run.last)
