"""Measuring a checkpoint: class by class, and on folders that have validation images alone."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datafiles import folder_settings, levels, run_on_cats_and_dogs, write_images, write_npz
from PIL import Image
from runs import Recorder, invoke, settings

from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.confusion import Confusion, GuessCollector, accuracies
from prunetrain.training.data import load_data
from prunetrain.training.distribution import Ranks
from prunetrain.training.environment import Environment
from prunetrain.training.evaluation import CheckpointEvaluation, ClassResult, evaluate_checkpoint
from prunetrain.training.loop import logits
from prunetrain.training.pairs import read_pair
from prunetrain.training.run import resume_run, start_run
from prunetrain.training.state import load_state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return run_on_cats_and_dogs(tmp_path_factory.mktemp("run"))


@pytest.fixture
def images(finished: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images of a copy of that run, which is where commands run."""
    shutil.copytree(finished.output_dir, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("images")


HERE = ("--data-dir", "images")


def found(*args: str | Path) -> dict[str, Any]:
    result = invoke("evaluate", "x", *(args or HERE), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    described: dict[str, Any] = json.loads(result.stdout)
    return described


def refusal(*args: str | Path) -> str:
    result = invoke("evaluate", "x", *(args or HERE))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    return result.stderr.removeprefix("error: ").rstrip("\n")


# What is counted


def test_confusion_by_hand() -> None:
    guesses = GuessCollector(3)
    for guessed, labels in (([0, 0, 1], [0, 1, 1]), ([], []), ([1, 1], [1, 0])):
        guesses(torch.tensor(guessed, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64))
    counted = guesses.count(Ranks())
    assert counted.matrix() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert (counted.images, counted.correct) == ([2, 3, 0], [1, 2, 0])
    assert accuracies(counted.correct, counted.images) == [1 / 2, 2 / 3, None]
    measured = CheckpointEvaluation(1.0, 0.6, None, tuple(ClassResult("", 0, 0, share) for share in (1 / 2, 2 / 3, None)), counted)
    assert measured.balanced_accuracy == pytest.approx(7 / 12)


def test_of_nothing_nothing_is_counted() -> None:
    counted = GuessCollector(2).count(Ranks())
    assert (counted.matrix(), counted.images, counted.correct) == ([[0, 0], [0, 0]], [0, 0], [0, 0])


def test_thousands_of_classes() -> None:
    """Counting takes room for the pairs that occur, not for all that could."""
    classes = 100_000
    labels = torch.arange(300_000) % classes
    counted = Confusion.of(labels * classes + torch.where(labels < 70_000, labels, 1), classes)
    assert len(counted.pairs) == classes
    assert (sum(counted.images), sum(counted.correct)) == (300_000, 210_000)
    small = Confusion.of(torch.tensor([0, 4000 * 4000 - 1, 4000 * 4000 - 1]), 4000).matrix()
    assert (len(small), small[0][0], small[3999][3999], sum(map(sum, small))) == (4000, 1, 2, 3)


@pytest.mark.parametrize("classes", [5, 6])
def test_counts_are_those_of_the_networks_guesses(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of classes with many images and with few; top-5 is measured where it is not certain."""
    rng = np.random.default_rng(0)
    labels = np.minimum(rng.geometric(0.4, 300) - 1, classes - 1)
    pixels = levels(rng, 300, 8, 8) // 2
    for image, label in zip(pixels, labels, strict=True):
        image[label] += 120
    split = {"x_train": pixels[:200], "y_train": labels[:200], "x_test": pixels[200:], "y_test": labels[200:]}
    data = Path(write_npz(tmp_path / "images.npz", split))
    config = settings(data, tmp_path, name="x", epochs=2)
    run = start_run(config, Recorder()).run
    monkeypatch.chdir(tmp_path)
    described = found("--device", "cpu")
    source = load_data(config, CPU)
    state = load_state(read_pair(run.last), config, source, Environment(CPU))
    (batch,) = source.val_batches(100)
    outputs = logits(state, batch[0])
    guesses, truth = outputs.argmax(1).tolist(), batch[1].tolist()
    pairs = Counter(zip(truth, guesses, strict=True))
    assert described["confusion"] == [[pairs[true, guessed] for guessed in range(classes)] for true in range(classes)]
    assert described["images"] == sum(one["images"] for one in described["classes"]) == 100
    assert described["top1"] == sum(one["correct"] for one in described["classes"]) / 100
    shares = [one["correct"] / one["images"] for one in described["classes"]]
    assert [one["accuracy"] for one in described["classes"]] == shares
    assert described["balanced_accuracy"] == pytest.approx(sum(shares) / classes)
    assert abs(described["balanced_accuracy"] - described["top1"]) > 0.01
    hits = (outputs.topk(5).indices == batch[1][:, None]).any(1).double().mean()
    assert described["top5"] == (float(hits) if classes > 5 else None)
    assert ("top-5" in invoke("evaluate", "x").stdout) == (classes > 5)


def test_per_class(images: Path) -> None:
    """A line a class, in the order of the outputs."""
    described = found()
    lines = invoke("evaluate", "x", *HERE, "--per-class").stdout.splitlines()
    assert re.fullmatch(r"loss [\d.]+, top-1 [\d.]+%, balanced accuracy [\d.]+%", lines[0])
    assert lines[1].split() == ["class", "images", "right", "accuracy"]
    expected = [[one["name"], "3", str(one["correct"]), f"{one['correct'] / 3:.2%}"] for one in described["classes"]]
    assert [line.split() for line in lines[2:]] == expected
    assert [row[0] for row in expected] == ["cat", "dog"]


# Folders without training images


def test_val_alone_and_class_folders_alone(images: Path) -> None:
    whole = found()
    shutil.rmtree(images / "train")
    assert found() == whole  # a folder with val/ in it
    assert found("--data-dir", images / "val") == whole
    assert found("--data-dir", images / "val", "-j", "0", "-b", "500") == whole


def test_a_class_without_a_folder_or_images_has_none(images: Path) -> None:
    whole = found()
    shutil.rmtree(images / "val" / "cat")
    for _ in range(2):
        described = found()
        assert described["images"] == 3
        assert described["classes"][0] == {"name": "cat", "images": 0, "correct": 0, "accuracy": None}
        assert described["classes"][1] == whole["classes"][1]
        assert described["confusion"] == [[0, 0], whole["confusion"][1]]
        assert described["balanced_accuracy"] == described["top1"] == whole["classes"][1]["accuracy"]
        (images / "val" / "cat").mkdir(exist_ok=True)
    lines = invoke("evaluate", "x", *HERE, "--per-class").stdout.splitlines()
    assert lines[0].endswith("% of 1 of 2 classes")
    assert lines[2].split() == ["cat", "0", "0"]


def test_names_decide_and_not_their_order(images: Path) -> None:
    """The class folders of training may be fewer, more or others: what is measured on is val/."""
    whole = found()
    (images / "train" / "ant").mkdir()
    assert found() == whole


def test_unknown_classes_are_named(images: Path) -> None:
    for name in ("zebra", "emu"):
        (images / "val" / name).mkdir()
    advice = "name them as in training (cat, dog), or remove them"
    unknown = "checkpoints/x/last.pt does not know: emu, zebra"
    assert refusal("--data-dir", images) == f"images/val has class folders that {unknown}; {advice}"
    assert refusal("--data-dir", images / "val") == f"images/val has class folders that {unknown}; {advice}"


def test_folders_that_have_nothing_to_measure_on(images: Path) -> None:
    shutil.rmtree(images / "val")
    assert refusal("--data-dir", images) == "images has train/ but no val/: give --data-dir images/train to evaluate on the images in it"
    assert found("--data-dir", images / "train")["images"] == 12
    assert refusal("--data-dir", "no") == f"no (in {Path.cwd()}) is not a folder: give --data-dir one that holds val/CLASS or CLASS folders"
    assert refusal("--data-dir", images / "train" / "cat" / "deeper").startswith("images/train/cat/deeper has no class folders: put ")
    (Path("empty") / "cat").mkdir(parents=True)
    assert refusal("--data-dir", "empty").startswith("empty has no images in its class folders: add some (.jpg, ")


def test_a_class_may_be_called_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images")
    for split in ("train", "val"):
        (images / split / "dog").rename(images / split / "val")
    start_run(settings(tmp_path, tmp_path, **folder_settings(images), epochs=1, name="x"), Recorder())
    monkeypatch.chdir(tmp_path)
    whole = found()
    assert whole["images"] == 6
    assert found("--data-dir", images / "val") == whole
    (images / "val").rename(tmp_path / "alone")
    assert found("--data-dir", "alone") == whole


def test_a_name_that_is_no_text_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images")
    for split in ("train", "val"):
        (images / split / "dog").rename(images / split / os.fsdecode(b"d\xf6g"))
    start_run(settings(tmp_path, tmp_path, **folder_settings(images), epochs=1, name="x"), Recorder())
    monkeypatch.chdir(tmp_path)
    assert [(one["name"], one["images"]) for one in found()["classes"]] == [("cat", 3), ("d\\udcf6g", 3)]


def test_numbers_of_arrays_are_no_names_of_folders(tmp_path: Path) -> None:
    """A network of arrays is measured on a folder as before: by position, which takes the classes of training."""
    pixels = levels(np.random.default_rng(0), 8, 8, 8, 3)
    labels = np.arange(8) % 2
    data = Path(write_npz(tmp_path / "images.npz", {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels}))
    run = start_run(settings(data, tmp_path, epochs=1, batch_size=2, image_size=8, name="x"), Recorder()).run
    images = write_images(tmp_path / "images")
    measured = evaluate_checkpoint(run.last, {"dataset": "folder", "data_dir": str(images)})
    assert [(one.name, one.images) for one in measured.classes] == [("0", 3), ("1", 3)]


def test_other_arrays_are_scaled_as_those_of_the_training(tmp_path: Path) -> None:
    """Not by what is beside them to train on: darker training images there change nothing."""
    rng = np.random.default_rng(0)
    pixels, labels = levels(rng, 40, 8, 8), np.arange(40) % 4
    path = Path(write_npz(tmp_path / "a.npz", {"x_train": pixels, "y_train": labels, "x_test": pixels[:20], "y_test": labels[:20]}))
    run = start_run(settings(path, tmp_path, epochs=1, batch_size=8, name="x"), Recorder()).run
    whole = evaluate_checkpoint(run.last, {})
    other = write_npz(tmp_path / "b.npz", {"x_train": pixels // 4, "y_train": labels, "x_test": pixels[:20], "y_test": labels[:20]})
    there = evaluate_checkpoint(run.last, {"data_dir": other})
    assert (there.loss, there.classes) == (whole.loss, whole.classes)
    os.replace(other, path)
    assert resume_run(run.last, {"epochs": 1}, Recorder()).val_top1 == whole.top1
    assert load_checkpoint(run.last).statistics == load_checkpoint(run.checkpoint(0)).statistics


def test_one_unreadable_image_is_named(images: Path) -> None:
    (images / "val" / "dog" / "9.png").write_bytes(b"nothing")
    assert refusal().startswith("images/val/dog/9.png cannot be read as an image (")
    Image.new("RGB", (8, 8)).save(images / "val" / "dog" / "9.png")
    assert found()["images"] == 7
