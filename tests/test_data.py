"""Data sets: what comes out of each, that an epoch is a function of its number, and what is said about unusable files."""

import hashlib
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from datafiles import CPU, assert_same, error, folder_settings, good_arrays, levels, load, write_images, write_mnist, write_npz
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError, abbreviate_names
from prunetrain.foreign.refusal import one_line
from prunetrain.training.data import DATASETS, DataSource, fake, load_data, memory
from prunetrain.training.data.base import Share, Statistics, epoch_generator
from prunetrain.training.data.npz import DIGITS, DIGITS_STATISTICS
from prunetrain.training.data.public import PUBLIC_SETS

# Every source keeps the contract of DataSource


@pytest.fixture(params=["digits", "mnist", "npz", "fake", "folder-small", "folder-large", "folder-grey"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    match request.param:
        case "digits":
            return {"dataset": "digits"}
        case "mnist":
            return {"dataset": "mnist", "data_dir": str(write_mnist(tmp_path)), "batch_size": 3}
        case "npz":
            return {"dataset": "npz", "data_dir": write_npz(tmp_path / "a.npz", good_arrays(16, 16, 3)), "batch_size": 3}
        case "fake":
            return {"dataset": "fake", "image_size": 16, "batch_size": 100}
        case "folder-small":
            return {"dataset": "folder", "data_dir": str(write_images(tmp_path)), "image_size": 8, "workers": 0, "batch_size": 5}
        case "folder-grey":
            return {
                "dataset": "folder",
                "data_dir": str(write_images(tmp_path)),
                "grey": True,
                "image_size": 8,
                "workers": 0,
                "batch_size": 5,
            }
        case _:
            return {"dataset": "folder", "data_dir": str(write_images(tmp_path)), "image_size": 65, "workers": 0, "batch_size": 5}


def test_batches_have_the_promised_shapes(settings: dict[str, Any]) -> None:
    source = load(**settings)
    size = TrainConfig(**settings).batch_size
    assert len(source.class_names) == source.num_classes >= 2
    assert all(isinstance(name, str) for name in source.class_names)
    assert len(source.train_counts) == len(source.val_counts) == source.num_classes
    assert (sum(source.train_counts), sum(source.val_counts)) == (source.num_train, source.num_val)
    batches = list(source.train_batches(0, size))
    assert len(batches) == source.steps_per_epoch(size) == source.num_train // size
    for x, y in batches:
        assert x.shape == (size, *source.input_shape)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert 0 <= y.min() <= y.max() < source.num_classes
    val = list(source.val_batches(4))
    assert [len(y) for _, y in val] == [4] * (source.num_val // 4) + [source.num_val % 4] * bool(source.num_val % 4)
    assert all(x.shape[1:] == source.input_shape and x.dtype == torch.float32 for x, _ in val)


def test_start_gives_what_an_unbroken_epoch_gives(settings: dict[str, Any]) -> None:
    size = TrainConfig(**settings).batch_size
    whole = list(load(**settings).train_batches(3, size))
    assert_same(whole[1:], list(load(**settings).train_batches(3, size, start=1)))
    assert list(load(**settings).train_batches(3, size, start=len(whole))) == []


def test_epochs_and_seeds_differ_and_global_randomness_is_untouched(settings: dict[str, Any]) -> None:
    size = TrainConfig(**settings).batch_size
    before = torch.get_rng_state()
    source = load(**settings)
    x, _ = next(source.train_batches(0, size))
    assert not torch.equal(x, next(source.train_batches(1, size))[0])
    assert not torch.equal(x, next(load(**settings, seed=1).train_batches(0, size))[0])
    list(source.val_batches(size))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_without_augmentation_holds_every_image_once(settings: dict[str, Any]) -> None:
    source = load(**settings, augment=False)
    epochs = [torch.cat([x for x, _ in source.train_batches(epoch, 1)]) for epoch in (0, 1)]
    keys = [sorted(hashlib.sha256(x.numpy().tobytes()).digest() for x in epoch) for epoch in epochs]
    assert len(set(keys[0])) == len(keys[0]) == source.num_train
    assert keys[0] == keys[1]
    assert not torch.equal(*epochs)


def test_augmentation_changes_training_images_only(settings: dict[str, Any]) -> None:
    plain, augmented = load(**settings, augment=False), load(**settings)
    (x, y), (moved, same_y) = (next(source.train_batches(0, 5)) for source in (plain, augmented))
    assert torch.equal(y, same_y)
    assert not torch.equal(x, moved)
    assert_same(list(plain.val_batches(7)), list(augmented.val_batches(7)))


def test_a_batch_larger_than_the_data_set_is_refused(tmp_path: Path) -> None:
    message = error(dataset="digits", batch_size=1438)
    assert message == "digits has 1,437 training images, too few for a batch of 1,438: pass --batch-size 1437 or less"
    assert load(dataset="digits", batch_size=1437).steps_per_epoch(1437) == 1


def test_names_agree_with_the_settings() -> None:
    choices = TrainConfig.__dataclass_fields__["dataset"].metadata["choices"]
    assert DATASETS == choices


def test_an_unknown_name_is_a_config_error() -> None:
    config = TrainConfig()
    object.__setattr__(config, "dataset", "digit")
    with pytest.raises(ConfigError, match="unknown dataset 'digit': did you mean digits"):
        load_data(config, CPU)


# Augmentation


def same_but_mirrored(source: DataSource, image: Tensor) -> tuple[bool, bool]:
    """Whether the image, and whether its mirror image, comes out unmoved in any of 300 epochs."""
    seen = [next(source.train_batches(epoch, 1))[0][0] for epoch in range(300)]
    return any(torch.equal(x, image) for x in seen), any(torch.equal(x, image.flip(2)) for x in seen)


@pytest.mark.parametrize(("channels", "flips"), [(1, False), (3, True), (4, False)])
def test_npz_mirrors_rgb_images_only(channels: int, flips: bool, tmp_path: Path) -> None:
    image = levels(np.random.default_rng(3), 8, 8, channels)
    arrays = {"x_train": np.stack([image, image]), "y_train": np.array([0, 1]), "x_test": image[None], "y_test": np.array([0])}
    source = load(dataset="npz", data_dir=write_npz(tmp_path / "a.npz", arrays), batch_size=1)
    assert same_but_mirrored(source, next(source.val_batches(1))[0][0]) == (True, flips)


def test_digits_are_never_mirrored() -> None:
    assert [name for name, public in PUBLIC_SETS.items() if public.augmentation.flip] == ["fashion-mnist", "cifar10", "cifar100"]
    source = load(dataset="digits")
    whole = [torch.cat([x for x, _ in load(dataset="digits", augment=augment).train_batches(0, 1437)]) for augment in (False, True)]
    black = -torch.tensor(DIGITS_STATISTICS.mean[0] / DIGITS_STATISTICS.std[0])
    padded = F.pad(whole[0], (1, 1, 1, 1), value=black.item())
    windows = torch.stack([padded[:, :, top : top + 8, left : left + 8] for top in range(3) for left in range(3)])
    assert torch.isclose(windows, whole[1], atol=1e-6).flatten(2).all(2).any(0).all()
    assert source.input_shape == (1, 8, 8)


@pytest.mark.parametrize("kind", ["memory", "folder-small", "folder-large"])
def test_equal_images_move_differently_within_a_batch_and_across_batches(kind: str, tmp_path: Path) -> None:
    image = levels(np.random.default_rng(7), 32, 32, 3)
    if kind == "memory":
        arrays = {"x_train": np.stack([image] * 20), "y_train": np.arange(20) % 2, "x_test": image[None], "y_test": np.array([0])}
        source = load(dataset="npz", data_dir=write_npz(tmp_path / "a.npz", arrays), batch_size=10)
    else:
        write_images(tmp_path, train=10)
        for path in tmp_path.glob("train/**/*.png"):
            Image.fromarray(image).save(path)
        source = load(**folder_settings(tmp_path, image_size=65 if kind == "folder-large" else 32))
    first, second = (x for x, _ in source.train_batches(0, 10))
    assert len({x.numpy().tobytes() for x in first}) > 5
    assert not torch.equal(first, second)


# Normalisation


@pytest.mark.parametrize("dataset", ["digits", "fake"])
def test_training_images_have_mean_0_and_deviation_1(dataset: str) -> None:
    source = load(dataset=dataset, augment=False, image_size=16)
    x = torch.cat([x for x, _ in source.train_batches(0, 1)])
    assert x.mean(dim=(0, 2, 3)).abs().max() < 5e-3
    assert (x.std(dim=(0, 2, 3)) - 1).abs().max() < 5e-3


def test_statistics_equal_numpys() -> None:
    images = levels(np.random.default_rng(4), 2500, 3, 4, 5) // np.array([1, 2, 3], dtype=np.uint8).reshape(3, 1, 1)
    statistics = Statistics.of(torch.from_numpy(images))
    np.testing.assert_allclose(statistics.mean, images.mean(axis=(0, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(statistics.std, images.std(axis=(0, 2, 3)) / 255, rtol=1e-12)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("share", [Share(), Share(1, 3)])
def test_how_many_images_are_moved_at_once_does_not_matter(share: Share, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "MAX_TRAIN", 200)
    source = load(dataset="fake", image_size=16, batch_size=16, channels_last=channels_last)
    found = {}
    for batches in (1, 5, 100):
        monkeypatch.setattr(memory, "_BYTES_AT_ONCE", batches * 3 * 16 * 16 * 16)
        found[batches] = [list(source.train_batches(2, 16, start=start, share=share)) for start in (0, 4, 12)]
    assert [len(epoch) for epoch in found[1]] == [12, 8, 0]
    for several in (5, 100):
        for one, other in zip(found[1], found[several], strict=True):
            for (images, labels), (same, theirs) in zip(one, other, strict=True):
                assert torch.equal(images, same) and torch.equal(labels, theirs)
                assert images.stride() == same.stride()


def test_npz_is_normalised_by_its_own_training_images(tmp_path: Path) -> None:
    arrays = good_arrays(6, 5, 2)
    arrays["x_train"][..., 1] = 7  # one level only: no division by zero
    source = load(dataset="npz", data_dir=write_npz(tmp_path / "a.npz", arrays), augment=False, batch_size=40)
    x, y = next(source.train_batches(0, 40))
    np.testing.assert_allclose(x[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(x[:, 0].std(correction=0), 1, rtol=1e-6)
    assert x[:, 1].abs().max() < 1e-6
    pixels = torch.from_numpy(arrays["x_train"][..., 0] / 255.0)
    expected = (pixels - pixels.mean()) / pixels.std(correction=0)
    order = [int((expected - image[0]).abs().amax((1, 2)).argmin()) for image in x]
    assert sorted(order) == list(range(40))
    torch.testing.assert_close(x[:, 0], expected[order].float(), rtol=1e-5, atol=1e-5)
    assert y.tolist() == arrays["y_train"][order].tolist()


# Digits


def test_digits_are_the_published_ones_split_by_class() -> None:
    with np.load(DIGITS) as file:
        arrays = {name: file[name] for name in file.files}
    assert {name: array.shape for name, array in arrays.items()} == {
        "x_train": (1437, 8, 8),
        "y_train": (1437,),
        "x_test": (360, 8, 8),
        "y_test": (360,),
    }
    both = np.bincount(np.concatenate([arrays["y_train"], arrays["y_test"]]))
    assert both.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(np.bincount(arrays["y_test"]) - both * 360 / 1797).max() < 1
    first_zero = [0, 0, 5, 13, 9, 1, 0, 0]  # the first row of load_digits().images[0], levels 0..16
    assert np.round(arrays["x_train"][0, 0] / 255 * 16).astype(int).tolist() == first_zero
    split = b"".join(arrays[name].tobytes() for name in ("x_train", "y_train", "x_test", "y_test"))
    assert hashlib.sha256(split).hexdigest() == "296f3e973c09d485c4d32bfb666fceab9f9baee45dddb6acacb8d15e1b103261"
    assert DIGITS.with_name("digits.LICENSE.md").read_text().count("Creative Commons Attribution 4.0") == 1


# MNIST and CIFAR


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_files_are_read(name: str, folder: str, tmp_path: Path) -> None:
    source = load(dataset=name, data_dir=str(write_mnist(tmp_path, folder)), batch_size=2)
    assert (source.num_train, source.num_val, source.input_shape) == (20, 10, (1, 28, 28))
    assert source.class_names[7] == {"mnist": "7", "fashion-mnist": "Sneaker"}[name]
    raw = (tmp_path / folder / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    pixels = torch.tensor(list(raw)).view(10, 1, 28, 28) / 255
    mean, std = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}[name]
    x, y = next(source.val_batches(10))
    torch.testing.assert_close(x, (pixels - mean) / std)
    assert y.tolist() == list(range(10))


CIFAR_FILES = {  # folder, files, and what the last of them holds
    "cifar10": ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"], "label_names"),
    "cifar100": ("cifar-100-python", ["train", "test", "meta"], "fine_label_names"),
}


@pytest.mark.parametrize("name", CIFAR_FILES)
def test_cifar_files_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, files, names = CIFAR_FILES[name]
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)  # these are not the published files
    (tmp_path / folder).mkdir()
    pixels = levels(np.random.default_rng(8), 4, 3072)  # a row is an image: red, green, blue
    images = {"data": pixels, "labels" if name == "cifar10" else "fine_labels": [3, 1, 0, 2]}
    for file in files:
        entry = {names: ["ant", "bee", "cat", "dog"]} if "meta" in file else images
        (tmp_path / folder / file).write_bytes(pickle.dumps(entry))
    source = load(dataset=name, data_dir=str(tmp_path), batch_size=2)
    assert (source.num_train, source.num_val, source.input_shape) == (4 * (len(files) - 2), 4, (3, 32, 32))
    assert source.class_names == ("ant", "bee", "cat", "dog")
    x, y = next(source.val_batches(4))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in vars(PUBLIC_SETS[name].statistics).values())
    torch.testing.assert_close(x * std + mean, torch.from_numpy(pixels.reshape(4, 3, 32, 32)) / 255)
    assert y.tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_an_absent_data_set_is_named(name: str, tmp_path: Path) -> None:
    message = error(dataset=name, data_dir=str(tmp_path))
    assert message == f"{name} is not under {tmp_path}: pass --download, or give its folder with --data-dir"


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_failed_download_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("no route\nto host")

    for module in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", fail)
    message = error(dataset=name, data_dir=str(tmp_path), download=True)
    assert message.startswith(f"{name} cannot be downloaded to {tmp_path} (")
    assert "no route to host" in message
    assert "check the connection" in message


def test_download_of_what_is_there_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torchvision.datasets.mnist, "download_and_extract_archive")  # any download would fail
    assert load(dataset="mnist", data_dir=str(write_mnist(tmp_path)), download=True, batch_size=2).num_train == 20


def cut_images(raw: Path) -> None:
    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])


def cut_labels(raw: Path) -> None:
    (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 3) + bytes(3))


def spoil_labels(raw: Path) -> None:
    (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 20) + bytes([10] * 20))


def remove_labels(raw: Path) -> None:
    (raw / "train-labels-idx1-ubyte").unlink()


@pytest.mark.parametrize("damage", [cut_images, cut_labels, spoil_labels, remove_labels])
def test_damaged_mnist_is_one_line(damage: Any, tmp_path: Path) -> None:
    raw = write_mnist(tmp_path) / "MNIST" / "raw"
    damage(raw)
    message = error(dataset="mnist", data_dir=str(tmp_path))
    assert message.startswith(f"{raw} is incomplete or damaged (")
    assert message.endswith("): delete it and pass --download")


def test_damaged_cifar_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"nonsense")
    message = error(dataset="cifar10", data_dir=str(tmp_path))
    assert message.startswith(f"{folder} is incomplete or damaged (")


# npz


@pytest.mark.parametrize(
    ("shape", "input_shape"), [((6, 5), (1, 6, 5)), ((6, 5, 1), (1, 6, 5)), ((6, 5, 3), (3, 6, 5)), ((3, 3, 3), (3, 3, 3))]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i4"])
def test_npz_shapes_and_labels(shape: tuple[int, ...], input_shape: tuple[int, ...], dtype: Any, tmp_path: Path) -> None:
    arrays = good_arrays(*shape)
    arrays["y_train"], arrays["y_test"] = arrays["y_train"].astype(dtype), arrays["y_test"].astype(dtype)
    source = load(dataset="npz", data_dir=write_npz(tmp_path / "a.npz", arrays))
    assert (source.input_shape, source.num_classes, source.class_names) == (input_shape, 4, ("0", "1", "2", "3"))
    x, y = next(source.val_batches(10))
    assert y.tolist() == arrays["y_test"].tolist()
    first = torch.from_numpy(arrays["x_test"].reshape(10, *shape[:2], -1)[0]).permute(2, 0, 1)
    assert torch.equal(x[0].flatten(1).argsort(stable=True), first.flatten(1).argsort(stable=True))


def changed(name: str, value: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return good_arrays(6, 5, 3) | {name: value}


U8 = np.uint8
WRONG_ARRAYS = {
    "float pixels": (changed("x_train", np.zeros((40, 6, 5, 3), np.float32)), "x_train is float32: store pixels as uint8, 0 to 255"),
    "flat": (changed("x_train", np.zeros((40, 90), U8)), "x_train has the shape (40, 90): give it the shape (N, H, W) or (N, H, W, C)"),
    "volumes": (changed("x_test", np.zeros((10, 6, 5, 3, 1), U8)), "x_test has the shape (10, 6, 5, 3, 1)"),
    "many channels": (changed("x_train", np.zeros((40, 6, 5, 17), U8)), "x_train has the shape (40, 6, 5, 17)"),
    "channels first": (changed("x_train", np.zeros((40, 3, 8, 8), U8)), "x_train has its channels first, in the shape (40, 3, 8, 8)"),
    "no images": (changed("x_train", np.zeros((0, 6, 5, 3), U8)), "x_train holds no pixels, its shape is (0, 6, 5, 3)"),
    "no test images": (changed("x_test", np.zeros((0, 6, 5, 3), U8)), "x_test holds no pixels"),
    "no pixels": (changed("x_train", np.zeros((40, 0, 5, 3), U8)), "x_train holds no pixels"),
    "few labels": (changed("y_train", np.zeros(39, int)), "y_train has 39 labels for 40 images: give one label per image"),
    "float labels": (changed("y_train", np.zeros(40)), "y_train is float64: store labels as whole numbers from 0"),
    "yes and no": (changed("y_test", np.zeros(10, bool)), "y_test is bool: store labels as whole numbers"),
    "column": (changed("y_train", np.zeros((40, 1), int)), "y_train has the shape (40, 1): give it the shape (N,)"),
    "negative": (changed("y_train", np.arange(40) % 4 - 1), "y_train holds the label -1: number the classes from 0"),
    "negative test": (changed("y_test", np.full(10, -2)), "y_test holds the label -2"),
    "one class": (changed("y_train", np.zeros(40, int)), "y_train holds only the label 0: training needs two classes or more"),
    "gap": (
        changed("y_train", np.arange(40) % 2 * 10**12),
        "y_train goes up to 1000000000000 but never holds 1: number its classes 0 to 1",
    ),
    "foreign label": (changed("y_test", np.full(10, 4)), "y_test holds the label 4, y_train only 0 to 3"),
    "two sizes": (changed("x_test", np.zeros((10, 6, 6, 3), U8)), "images of x_train are (6, 5, 3), of x_test (6, 6, 3)"),
    "objects": (
        changed("y_test", np.array([None] * 10)),
        " cannot be read as .npz (y_test holds Python objects, which are not read): write it with ",
    ),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_npz_errors_say_what_is_wrong(case: str, tmp_path: Path) -> None:
    arrays, expected = WRONG_ARRAYS[case]
    message = error(dataset="npz", data_dir=write_npz(tmp_path / "a.npz", arrays))
    assert message.startswith(f"{tmp_path / 'a.npz'}")
    assert expected in message


def test_unreadable_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert error(dataset="npz", data_dir=str(path)) == f"{path} does not exist: give --data-dir an .npz file"
    assert error(dataset="npz", data_dir=str(tmp_path)) == f"{tmp_path} is a folder: give --data-dir the .npz file in it"
    path.write_bytes(b"")
    assert error(dataset="npz", data_dir=str(path)).startswith(
        f"{path} cannot be read as .npz (it is not a zip file): write it with numpy.savez("
    )
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert "a.npy cannot be read as .npz (it is not a zip file, or its end is missing)" in error(
        dataset="npz", data_dir=str(tmp_path / "a.npy")
    )
    write_npz(path, {"x_train": np.zeros(3), "y_test": np.zeros(3)})
    assert f"{path} lacks y_train, x_test: write it with" in error(dataset="npz", data_dir=str(path))
    write_npz(path, good_arrays(32, 32, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as .npz (it is not a zip file, or its end is missing)" in error(dataset="npz", data_dir=str(path))
    path.write_bytes(whole[:5000] + bytes(1000) + whole[6000:])
    assert f"{path} cannot be read as .npz (x_train: Bad CRC-32" in error(dataset="npz", data_dir=str(path))


# fake, and wording


@pytest.mark.parametrize(("side", "classes", "count"), [(1, 10, 1024), (32, 10, 1024), (64, 10, 85), (65, 1000, 82), (100, 1000, 64)])
def test_fake_sizes(side: int, classes: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "MAX_BYTES", 2**22 if side == 32 else 2**20)
    source = load(dataset="fake", image_size=side)
    assert (source.input_shape, source.num_classes) == ((3, side, side), classes)
    assert (source.num_train, source.num_val) == (count, count // 4)


def test_wording() -> None:
    assert abbreviate_names(["a", "b", "c"]) == "a, b, c"
    assert abbreviate_names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 999))) == 200


def test_neighbouring_epochs_and_seeds_share_no_numbers() -> None:
    def draws() -> Iterator[tuple[int, ...]]:
        for seed in range(3):
            for epoch in range(3):
                yield tuple(torch.randint(0, 2**31, (4,), generator=epoch_generator(seed, epoch)).tolist())

    assert len(set(draws())) == 9
