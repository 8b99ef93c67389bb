"""New images by a trained network: prepared as in validation, the unreadable named, a row an image in every form of output."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datafiles import FORKS, folder_settings, levels, write_images, write_npz
from PIL import Image
from runs import Recorder, invoke, settings

import prunetrain
from prunetrain.commands.predict import _table
from prunetrain.config import TrainConfig
from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.data import load_data
from prunetrain.training.data.npz import DIGITS
from prunetrain.training.data.npz import read as read_arrays
from prunetrain.training.environment import Environment
from prunetrain.training.loop import logits
from prunetrain.training.pairs import read_pair
from prunetrain.training.prediction import Guess, Prediction
from prunetrain.training.run import start_run
from prunetrain.training.state import load_state
from prunetrain.training.trained_network import read_trained_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run on cats and dogs, whose images are larger than what the network takes."""
    folder = tmp_path_factory.mktemp("run")
    data = folder_settings(write_images(folder / "images", size=(30, 24)), image_size=16)
    return start_run(settings(folder, folder, **data, epochs=2, name="x"), Recorder()).run


@pytest.fixture
def here(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where that run is, and commands run."""
    monkeypatch.chdir(run.output_dir)
    return Path("images")


def printed(*args: str | Path) -> str:
    result = invoke("predict", *args)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def probabilities(run: RunPaths) -> torch.Tensor:
    """What the network of a run makes of its validation images, which its own data source prepares."""
    config = TrainConfig(**load_checkpoint(run.last).config)
    data = load_data(config, CPU)
    state = load_state(read_pair(run.last), config, data, Environment(CPU))
    return torch.cat([logits(state, images).softmax(1) for images, _ in data.val_batches(4)])


def shares(found: list[prunetrain.Prediction], names: list[str]) -> torch.Tensor:
    """Predictions of all classes as a table (images, classes)."""
    return torch.tensor([[{guess.name: guess.probability for guess in one.guesses}[name] for name in names] for one in found])


# The same as in validation


@FORKS
@pytest.mark.parametrize("more", [{}, {"batch_size": 2, "workers": 2}, {"channels_last": True, "batch_size": 5}], ids=str)
def test_validation_images_get_what_validation_gives_them(more: dict[str, Any], run: RunPaths, here: Path) -> None:
    found = prunetrain.predict(run.last, here / "val", top=2, **more)
    assert [one.path for one in found] == [
        f"images/val/{name}/{file}" for name in ("cat", "dog") for file in ("0.png", "2.png", "deeper/1.png")
    ]
    torch.testing.assert_close(shares(found, ["cat", "dog"]), probabilities(run), rtol=0, atol=1e-6)
    assert all(one.guesses[0].probability >= one.guesses[1].probability for one in found)


def test_large_images_are_cut_as_in_validation(tmp_path: Path) -> None:
    """Above 64 pixels the shorter side becomes 256/224 of the crop."""
    data = folder_settings(write_images(tmp_path / "images", size=(100, 90)), image_size=70)
    run = start_run(settings(tmp_path, tmp_path, **data, epochs=1, name="x"), Recorder()).run
    found = prunetrain.predict(run.last, tmp_path / "images" / "val", top=2)
    torch.testing.assert_close(shares(found, ["cat", "dog"]), probabilities(run), rtol=0, atol=1e-6)


def test_half_precision(run: RunPaths, here: Path) -> None:
    plain, half = (shares(prunetrain.predict(run.last, here, top=2, amp=amp), ["cat", "dog"]) for amp in ("off", "bfloat16"))
    assert not torch.equal(plain, half)
    torch.testing.assert_close(plain, half, rtol=0, atol=0.05)


def test_by_a_network_of_grey_images(tmp_path: Path) -> None:
    data = folder_settings(write_images(tmp_path / "images", size=(30, 24)), image_size=16)
    run = start_run(settings(tmp_path, tmp_path, **data, grey=True, epochs=1, name="x"), Recorder()).run
    found = prunetrain.predict(run.last, tmp_path / "images" / "val", top=2)
    torch.testing.assert_close(shares(found, ["cat", "dog"]), probabilities(run), rtol=0, atol=1e-5)


# Networks of images that are no files


def test_digits_as_files(tmp_path: Path) -> None:
    """Grey images of the network's size come as they are; larger ones, in colour and oblong, are fitted into it."""
    run = start_run(settings(tmp_path, tmp_path, dataset="digits", data_dir="data", epochs=2, target_macs=0.0, name="x"), Recorder()).run
    pixels = read_arrays(DIGITS)[1].images[:20, 0].numpy()
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "same" / f"{number:02}.png")
        wide = np.zeros((80, 120), np.uint8)
        wide[:, 20:100] = np.kron(image, np.ones((10, 10), np.uint8))
        Image.fromarray(wide).convert("RGB").save(tmp_path / "other" / f"{number:02}.png")
    expected = probabilities(run)[:20]
    for name in ("same", "other"):
        found = prunetrain.predict(run.last, tmp_path / name, top=10)
        torch.testing.assert_close(shares(found, list("0123456789")), expected, rtol=0, atol=1e-5)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """An .npz of oblong images in colour."""
    rng = np.random.default_rng(0)
    pixels = levels(rng, 24, 6, 8, 3) // 3
    labels = np.arange(24) % 3
    return Path(write_npz(tmp_path / "a.npz", {"x_train": pixels, "y_train": labels, "x_test": pixels[:5], "y_test": labels[:5]}))


def test_arrays_are_scaled_as_their_training_images(arrays: Path, tmp_path: Path) -> None:
    run = start_run(settings(arrays, tmp_path, epochs=1, batch_size=8, name="x"), Recorder()).run
    expected = probabilities(run)
    files = []
    for number, image in enumerate(read_arrays(arrays)[1].images):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    torch.testing.assert_close(shares(prunetrain.predict(run.last, files, top=3), ["0", "1", "2"]), expected, rtol=0, atol=1e-5)
    arrays.unlink()  # their statistics are in the checkpoint
    torch.testing.assert_close(shares(prunetrain.predict(run.last, files, top=3), ["0", "1", "2"]), expected, rtol=0, atol=1e-5)


def test_images_of_two_channels_are_no_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = levels(rng, 8, 6, 6, 2), np.arange(8) % 2
    data = write_npz(tmp_path / "a.npz", {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels})
    run = start_run(settings(Path(data), tmp_path, epochs=1, batch_size=4, name="x"), Recorder()).run
    Image.new("RGB", (6, 6)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"takes images of 2 channels, but image files have 1 or 3: use it from Python, on arrays"):
        prunetrain.predict(run.last, tmp_path / "a.png")


# Forms of output


def test_table(run: RunPaths, here: Path) -> None:
    file = here / "val" / "dog" / "2.png"
    (one,) = prunetrain.predict(run.last, file, top=2)
    best, second = one.guesses
    lines = printed("x", file).splitlines()
    assert [line.split() for line in lines] == [["image", "class", "probability"], [str(file), best.name, f"{best.probability:.2%}"]]
    lines = printed(run.last, "--top", "9", file, file).splitlines()
    assert lines[0].split() == ["image", "class", "probability", "class_2", "probability_2"]
    assert lines[1].split() == [str(file), best.name, f"{best.probability:.2%}", second.name, f"{second.probability:.2%}"]
    assert lines[2] == lines[1]
    assert len(set(map(len, lines))) == 1


def test_a_table_of_wide_letters_is_aligned() -> None:
    shown = _table([Prediction("a.png", (Guess("蓝莓", 0.5),)), Prediction("b.png", (Guess("plum", 0.25),))])
    assert shown.splitlines() == ["image  class  probability", "a.png  蓝莓        50.00%", "b.png  plum        25.00%"]


def test_json_and_csv(run: RunPaths, here: Path, tmp_path: Path) -> None:
    found = prunetrain.predict(run.last, here / "val", top=2)
    described = json.loads(printed("x", here / "val", "--top", "2", "--json"))
    assert described == [
        {"image": one.path, "guesses": [{"class": guess.name, "probability": guess.probability} for guess in one.guesses]} for one in found
    ]
    target = tmp_path / "deeper" / "found.csv"
    assert printed("x", here / "val", "-o", target, "--top", "2") == f"{target}: 6 of 6 images\n"
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["image"] for row in rows] == [one.path for one in found]
    for row, one in zip(rows, found, strict=True):
        assert [row["class"], row["class_2"]] == [guess.name for guess in one.guesses]
        assert float(row["probability"]) == pytest.approx(one.guesses[0].probability, rel=1e-5)
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-5)
    before = target.read_bytes()
    result = invoke("predict", "x", here / "val", "-o", target)
    assert (result.exit_code, result.stderr) == (2, f"error: {target} already exists: choose another name, or pass --force\n")
    assert target.read_bytes() == before
    printed("x", here / "val", "-o", target, "--force")
    assert target.read_text().splitlines()[0] == "image,class,probability"


# Files


@FORKS
@pytest.mark.parametrize("workers", ["0", "2"])
def test_unreadable_images_are_named_and_the_others_done(workers: str, run: RunPaths, here: Path, tmp_path: Path) -> None:
    whole = (here / "val" / "cat" / "2.png").read_bytes()
    (tmp_path / "deeper").mkdir()
    for name, content in (("a.png", whole), ("b.png", whole[: len(whole) // 2]), ("deeper/c.jpg", b"no"), ("d.png", whole), ("e.txt", b"")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "f.png").symlink_to("nowhere")
    good = [str(tmp_path / name) for name in ("a.png", "d.png")]
    bad = [str(tmp_path / name) for name in ("b.png", "deeper/c.jpg", "f.png")]
    args = ("predict", "x", tmp_path, "-b", "2", "-j", workers)
    result = invoke(*args)
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["image", *good]
    *lines, last = result.stderr.splitlines()
    assert last == f"{tmp_path}: 1 file passed over: 1 .txt"
    assert [line.partition(" cannot be read as an image (")[0] for line in lines] == [f"error: {path}" for path in bad]
    assert all(line.endswith(")") for line in lines)
    described = json.loads(invoke(*args, "--json").stdout)
    assert [one["image"] for one in described] == [good[0], bad[0], good[1], bad[1], bad[2]]
    assert ["error" in one for one in described] == [False, True, False, True, True]
    result = invoke("predict", "x", *bad[:2])
    assert (result.exit_code, result.stdout) == (1, "")


def test_names_that_are_no_text(run: RunPaths, here: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"d\xf6g.png")
    path.write_bytes((here / "val" / "dog" / "2.png").read_bytes())
    assert "d\\udcf6g.png" in printed("x", tmp_path)
    assert json.loads(printed("x", tmp_path, "--json"))[0]["image"] == str(path)
    printed("x", path, "-o", tmp_path / "found.csv")
    assert os.fsencode(path) in (tmp_path / "found.csv").read_bytes()


@pytest.mark.usefixtures("here")
def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = "images/val/cat/0.png"
    for args, line in (
        (("x",), "missing argument 'IMAGE...'. Try prunetrain predict --help"),
        (("x", image, "nowhere.png"), "nowhere.png is not a file or folder: name images, or folders with images in them"),
        (("x", tmp_path / "empty"), f"{tmp_path}/empty has no images in it (.jpg, "),
        (("nowhere.pt", image), "nowhere.pt: no such checkpoint"),
        (("x", image, "-o", "a.txt"), "a.txt: a file of predictions ends in .csv"),
        (("x", image, "-o", "a.csv", "--json"), "-o writes CSV, and --json prints: give only one of them"),
        (("x", image, "--device", "gpu"), "device 'gpu' is not on this machine: "),
    ):
        result = invoke("predict", *args)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(f"error: {line}")
    with pytest.raises(ConfigError, match="unknown setting 'devise': did you mean device"):
        prunetrain.predict("checkpoints/x/last.pt", image, devise="cpu")
    assert prunetrain.predict("checkpoints/x/last.pt", []) == []


def test_from_python_a_run_goes_by_its_name_as_well(here: Path) -> None:
    found = prunetrain.predict("checkpoints/x/last.pt", here)
    assert found
    assert prunetrain.predict("x", here) == prunetrain.predict("checkpoints/x", here) == found
    with pytest.raises(CheckpointError, match=r"^y is neither a file nor a run here: "):
        prunetrain.predict("y", here)


def test_nothing_moves_the_networks_statistics(run: RunPaths, here: Path) -> None:
    """One image at a time or all together: the same, and the checkpoint's tensors stay."""
    before = {name: tensor.clone() for name, tensor in read_trained_network(run.last).state.items()}
    single, together = (prunetrain.predict(run.last, here, batch_size=size) for size in (1, 100))
    assert [one.guesses[0].name for one in single] == [one.guesses[0].name for one in together]
    after = read_trained_network(run.last).state
    assert all(torch.equal(before[name], after[name]) for name in before)
