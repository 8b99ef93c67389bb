"""Validation images held out of those to train on, and what a network that was trained so is measured on."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datafiles import CPU, error, folder_settings, good_arrays, load, run_on_cats_and_dogs, write_images, write_mnist, write_npz
from runs import Recorder, invoke, settings

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.training.data import load_data
from prunetrain.training.data.base import Statistics
from prunetrain.training.data.folder_scan import scan
from prunetrain.training.data.holding_out import held_out_indices
from prunetrain.training.data.summary import summary
from prunetrain.training.pruned_run import pruning_config
from prunetrain.training.run import start_run


def test_of_each_class_a_share_and_never_all() -> None:
    counts = {0: 1000, 1: 10, 2: 2, 3: 1}
    labels = [label for label, count in counts.items() for _ in range(count)]
    names = [f"{number}.png" for number in range(len(labels))]
    held = held_out_indices(names, labels, 0.25)
    assert held == sorted(set(held))
    assert Counter(labels[number] for number in held) == {0: 250, 1: 3, 2: 1}
    assert Counter(labels[number] for number in held_out_indices(names, labels, 0.001)) == {0: 1, 1: 1, 2: 1}
    assert Counter(labels[number] for number in held_out_indices(names, labels, 0.999)) == {0: 999, 1: 9, 2: 1}


def test_it_is_the_names_that_decide() -> None:
    """Not the order, and what is there besides only at the margin; large shares hold what small ones do."""
    names = [f"cat/{number}.png" for number in range(400)]
    held = {names[number] for number in held_out_indices(names, [0] * 400, 0.2)}
    backwards = names[::-1]
    assert {backwards[number] for number in held_out_indices(backwards, [0] * 400, 0.2)} == held
    more = [*names, *(f"cat/new{number}.png" for number in range(100))]
    later = {more[number] for number in held_out_indices(more, [0] * 500, 0.2)} & set(names)
    assert len(later & held) > 60
    assert later <= held or held <= later
    assert held <= {names[number] for number in held_out_indices(names, [0] * 400, 0.3)}
    assert max(Counter(int(name[4:-4]) // 100 for name in held).values()) < 40  # from all over


def pixels(source: Any, *, val: bool) -> list[bytes]:
    """The images of one half, one by one."""
    batches = source.val_batches(7) if val else source.train_batches(0, 1)
    return sorted(image.numpy().round(3).tobytes() for images, _ in batches for image in images)


@pytest.mark.parametrize("kind", ["digits", "mnist", "npz", "fake", "folder"])
def test_halves_make_up_the_training_images(kind: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dataset": kind, "augment": False, "batch_size": 1}
    match kind:
        case "mnist":
            settings["data_dir"] = str(write_mnist(tmp_path))
        case "npz":
            settings["data_dir"] = write_npz(tmp_path / "a.npz", good_arrays(6, 6, 3))
        case "folder":
            settings |= {"data_dir": str(write_images(tmp_path)), "image_size": 8, "workers": 0}
        case "fake":
            settings["image_size"] = 8
    whole, divided = load(**settings), load(**settings, val_split=0.3)
    assert divided.num_train + divided.num_val == whole.num_train
    assert divided.num_classes == whole.num_classes
    seeds = [load(**settings, val_split=0.3, seed=seed) for seed in (0, 1)] if kind != "fake" else []
    if kind == "npz":  # normalised by the images that are trained on
        train = torch.from_numpy(good_arrays(6, 6, 3)["x_train"]).permute(0, 3, 1, 2)
        assert divided.train_counts == (7, 7, 7, 7)
        x = torch.cat([images for images, _ in divided.train_batches(0, 1)])
        assert x.mean((0, 2, 3)).abs().max() < 1e-6 < abs(Statistics.of(train).mean[0] - x.mean())
    else:
        assert sorted(pixels(divided, val=False) + pixels(divided, val=True)) == pixels(whole, val=False)
    for source in seeds:
        assert pixels(source, val=True) == pixels(divided, val=True)


def test_no_validation_images_are_needed(tmp_path: Path) -> None:
    arrays = {name: array for name, array in good_arrays(6, 6, 3).items() if name.endswith("train")}
    path = write_npz(tmp_path / "a.npz", arrays)
    assert "lacks x_test, y_test: write it with " in (message := error(dataset="npz", data_dir=path))
    assert message.endswith(" or hold out some of x_train with --val-split 0.2")
    config = TrainConfig(dataset="npz", data_dir=path, val_split=0.2, batch_size=8)
    assert summary(config, load_data(config, CPU)) == (f"npz {path}: 32 training and 8 held-out validation images of 3x6x6, 4 classes",)
    images = write_images(tmp_path / "images")
    shutil.rmtree(images / "val")
    message = error(**folder_settings(images))
    assert message.startswith(f"{images} has no folder val: hold out some of the images for validation with --val-split 0.2, or put ")


def test_folders_that_are_named_as_splits_are_no_classes(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    (images / "train").rename(images / "Training")
    (images / "val").rename(images / "test")
    message = error(**folder_settings(images, val_split=0.2))
    assert message == f"{images} has no class folders but Training, test: rename the one with the training images to {images}/train"
    (images / "Training").rename(images / "train")
    assert load(**folder_settings(images, val_split=0.5)).num_train == 6


@pytest.mark.parametrize("name", ["val", "Test"])
def test_a_split_among_class_folders_is_no_class(name: str, tmp_path: Path) -> None:
    """It became one more class, of images of all others."""
    images = write_images(tmp_path / "images")
    (images / "val").rename(images / "train" / name)
    (images / "train").rename(root := tmp_path / "root")
    message = error(**folder_settings(root, val_split=0.2))
    assert message == (
        f"{root}/{name} lies among class folders and holds folders of the same names (cat, dog): "
        f"move the class folders beside it into {root}/train"
    )
    shutil.rmtree(root / name / "cat")
    (root / name / "dog").rename(root / name / "more")
    assert scan(root, 0.2).class_names == tuple(sorted(("cat", "dog", name)))


def test_a_single_image_a_class_leaves_none_to_hold_out(tmp_path: Path) -> None:
    """Such a run used to end behind its first epoch, in a division by no images."""
    refused = "no class has two training images, so --val-split cannot hold any out: add images, or leave it out"
    arrays = {"x_train": np.zeros((2, 8, 8), np.uint8), "y_train": np.arange(2)}
    assert error(dataset="npz", data_dir=write_npz(tmp_path / "a.npz", arrays), val_split=0.5, batch_size=2) == refused
    images = folder_settings(write_images(tmp_path / "images", train=1), batch_size=2, val_split=0.5)
    assert error(**images) == refused
    assert error(**images, cache=str(tmp_path / "cache")) == refused


def test_class_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images wherever the folder lies and however it is named."""
    images = write_images(tmp_path / "images")
    shutil.rmtree(images / "val")
    deep = scan(images, 0.4)
    assert (deep.class_names, len(deep.train.paths), len(deep.val.paths)) == (("cat", "dog"), 8, 4)
    assert Counter(deep.val.labels) == {0: 2, 1: 2}
    assert not set(deep.train.paths) & set(deep.val.paths)
    wanted = [path.removeprefix(f"{images}/train/") for path in deep.val.paths]
    monkeypatch.chdir(images / "train")
    for root in (Path(), images / "train", Path("../train")):
        assert [str(Path(path).resolve().relative_to(images / "train")) for path in scan(root, 0.4).val.paths] == wanted
    shutil.rmtree("dog")
    assert error(**folder_settings(images), val_split=0.4) == f"{images}/train has only the class cat: training needs two classes or more"


def measured(*args: str | Path) -> dict[str, Any]:
    result = invoke("evaluate", "x", *args, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    described: dict[str, Any] = json.loads(result.stdout)
    return described


def test_a_network_is_measured_on_what_was_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And elsewhere on what one says: guessing might take images that it was trained on."""
    monkeypatch.chdir(tmp_path)
    run = run_on_cats_and_dogs(tmp_path, val_split=0.5)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    here = measured()
    assert (here["images"], here["top1"]) == (6, lines[-1]["val_top1"])
    assert here["loss"] == pytest.approx(lines[-1]["val_loss"])
    own = measured("--val-split", "0")  # the images in val/
    assert own["images"] == 6
    assert own["loss"] != here["loss"]
    shutil.copytree("images", "elsewhere")
    refused = invoke("evaluate", "x", "--data-dir", "elsewhere")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "x/last.pt was trained with --val-split 0.5: give it here as well" in refused.stderr
    assert measured("--data-dir", "elsewhere", "--val-split", "0.5") == here
    assert measured("--data-dir", "elsewhere", "--val-split", "0") == own
    shutil.rmtree("elsewhere/train")
    assert measured("--data-dir", "elsewhere", "--val-split", "0") == own


def test_a_larger_share_has_images_that_were_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_on_cats_and_dogs(tmp_path, val_split=0.4)
    refused = invoke("evaluate", "x", "--val-split", "0.5")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "x/last.pt was trained with --val-split 0.4 and has seen images of a larger one" in refused.stderr
    assert measured("--val-split", "0.1")["images"] == 2
    given = {"method": "magnitude", "rate": 0.5}
    with pytest.raises(ConfigError, match=r"last\.pt was trained with --val-split 0\.4 and has seen images of a larger one"):
        pruning_config(run.last, given | {"val_split": 0.5})
    for share in (0.0, 0.3, 0.4):
        assert pruning_config(run.last, given | {"val_split": share}).val_split == share
    assert pruning_config(run.last, given).val_split == 0.4
    assert pruning_config(run.last, given | {"val_split": 0.5, "data_dir": "new"}).val_split == 0.5


def test_a_run_that_held_none_out_has_seen_all_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_on_cats_and_dogs(tmp_path)
    whole = measured("--val-split", "0")
    refused = invoke("evaluate", "x", "--val-split", "0.5")
    assert refused.exit_code == 2
    assert refused.stderr.endswith("x/last.pt was trained with --val-split 0 and has seen images of a larger one: leave it out\n")
    assert measured() == whole


def test_class_folders_alone_have_no_validation_images_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--val-split 0 took all of them for some, those of the training too."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    (tmp_path / "images" / "train").rename("alone")
    config = settings(tmp_path, tmp_path, **folder_settings(Path("alone")), val_split=0.5, epochs=1, name="x")
    start_run(config, Recorder())
    assert measured()["images"] == 6
    for flags in ([], ["--data-dir", str(tmp_path / "alone")]):
        refused = invoke("evaluate", "x", "--val-split", "0", *flags)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "alone has no val/, and its images are those that " in refused.stderr
    shutil.copytree("images/val", "new")
    assert measured("--data-dir", "new", "--val-split", "0")["images"] == 6


def test_arrays_are_measured_on_what_was_held_out_and_on_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = good_arrays(8, 8)
    np.savez("a.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
    flags = "--model lenet-300-100 --dataset npz --data-dir a.npz --val-split 0.25 --epochs 1 --penalty-ratio 0 -b 10 --name x --lr 0.01"
    trained = invoke("train", *flags.split())
    assert trained.exit_code == 0
    assert "npz a.npz: 28 training and 12 held-out validation images of 1x8x8, 4 classes" in trained.output
    assert measured()["images"] == 12
    refused = invoke("evaluate", "x", "--val-split", "0")
    assert (refused.exit_code, "lacks x_test" in refused.stderr) == (2, True)
    np.savez("a.npz", **arrays)  # type: ignore[arg-type]
    assert measured("--val-split", "0")["images"] == 10
