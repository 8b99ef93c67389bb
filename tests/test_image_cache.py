"""The cache of decoded images, and JPEGs decoded at a part of their size: what comes out stays the same."""

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError, DataError, OutputError
from prunetrain.locking import locked
from prunetrain.training.data import image_cache, load_data
from prunetrain.training.data.base import Normalizer, Share, Statistics
from prunetrain.training.data.decoding import Decoding, ImageFiles
from prunetrain.training.data.image_cache import DecodedImages, load_or_cache
from prunetrain.training.environment import Environment

CPU = torch.device("cpu")
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12's word on DataLoader
SIZES = [(100, 80), (90, 130), (300, 280), (70, 70)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of several sizes, classes a and b: 8 for training, 4 for validation."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image(rng, *SIZES[i]).save(root / split / name / f"{i}.jpg", quality=95)
    return root


def image(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth one, as photos are."""
    coarse = rng.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def batches(photos: Path, **more: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two epochs and validation."""
    settings = {"dataset": "folder", "data_dir": str(photos), "image_size": 65, "workers": 0, "batch_size": 3}
    source = load_data(TrainConfig(**settings | more), CPU)
    share = Share(1, 2)
    return [*source.train_batches(0, 3), *source.train_batches(1, 3, start=1, share=share), *source.val_batches(3)]


@FORKS
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_size": 12},
        {"augment": False},
        {"channels_last": True},
        {"image_size": 12, "channels_last": True},
        {"grey": True},
        {"image_size": 12, "grey": True, "channels_last": True},
    ],
    ids=str,
)
def test_batches_are_the_same_with_and_without_a_cache(changes: dict[str, Any], workers: int, photos: Path, tmp_path: Path) -> None:
    plain = batches(photos, **changes)
    for _ in range(2):  # written, then found
        kept = batches(photos, cache=str(tmp_path / "cache"), workers=workers, **changes)
        for (x, y), (other_x, other_y) in zip(plain, kept, strict=True):
            assert torch.equal(x, other_x) and torch.equal(y, other_y)
            assert x.stride() == other_x.stride()
    assert plain[0][0].is_contiguous(memory_format=torch.channels_last if changes.get("channels_last") else torch.contiguous_format)


def files(photos: Path, resized_side: int | None = 12) -> ImageFiles:
    return ImageFiles([str(path) for path in sorted(photos.glob("train/*/*.jpg"))], Decoding(12, resized_side))


def test_no_file_is_decoded_twice(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    assert load_or_cache(files(photos), tmp_path, "train", workers=0, say=lines.append)
    assert len(lines) == 1 and lines[0].startswith("cached the 8 images of ") and lines[0].endswith(": 3.4 kB of pixels")
    monkeypatch.setattr(Image, "open", None)
    images = load_or_cache(files(photos), tmp_path, "train", workers=0, say=lines.append)
    assert isinstance(images, DecodedImages) and len(lines) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [""]  # no lock, nothing half written


def test_other_files_and_other_settings_are_decoded_anew(photos: Path, tmp_path: Path) -> None:
    names = set()
    some = files(photos)
    for changed in (some, files(photos, None), ImageFiles(some.paths, Decoding(13, 13)), ImageFiles(some.paths[1:], some.decoding)):
        load_or_cache(changed, tmp_path, "train", workers=0, say=print)
        names.add(len(list(tmp_path.iterdir())))
    status = os.stat(some.paths[0])
    os.utime(some.paths[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    load_or_cache(some, tmp_path, "train", workers=0, say=print)
    assert names | {len(list(tmp_path.iterdir()))} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("file", ["pixels.bin", "sizes.npy"])
def test_a_damaged_cache_is_written_anew(file: str, photos: Path, tmp_path: Path) -> None:
    first = load_or_cache(files(photos), tmp_path, "train", workers=0, say=print)
    assert first is not None
    (folder,) = tmp_path.iterdir()
    (folder / file).write_bytes((folder / file).read_bytes()[:-100])
    lines: list[str] = []
    again = load_or_cache(files(photos), tmp_path, "train", workers=0, say=lines.append)
    assert again is not None and len(lines) == 1
    assert np.array_equal(again.squares([0, 7]), np.stack([np.array(files(photos)[number]) for number in (0, 7)]))


def test_what_does_not_fit_is_not_cached(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(image_cache, "available_memory", lambda: 4000)
    assert load_or_cache(files(photos), tmp_path, "train", workers=0, say=lines.append) is None
    (line,) = lines
    assert line.startswith("not cached: the 8 images of ") and line.endswith(
        " take 3.4 kB or more decoded, and only 3 kB of memory may be used"
    )
    assert list(tmp_path.iterdir()) == []
    plain = batches(photos)
    for (x, _), (other, _) in zip(plain, batches(photos, cache=str(tmp_path)), strict=True):
        assert torch.equal(x, other)


def test_a_cache_that_another_process_writes_is_waited_for(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "_POLL_SECONDS", 0.01)
    waited = threading.Event()
    original = image_cache.locked

    def busy(path: Path, what: str) -> Any:
        if not waited.is_set():
            waited.set()
            raise image_cache.BusyError("in use")
        return original(path, what)

    monkeypatch.setattr(image_cache, "locked", busy)
    assert load_or_cache(files(photos), tmp_path, "train", workers=0, say=print) is not None
    assert waited.is_set() and original is locked


def test_what_a_killed_process_left_goes(photos: Path, tmp_path: Path) -> None:
    load_or_cache(files(photos), tmp_path, "train", workers=0, say=print)
    (folder,) = tmp_path.iterdir()
    folder.rename(folder.with_suffix(".partial"))
    assert load_or_cache(files(photos), tmp_path, "train", workers=0, say=print) is not None
    assert list(tmp_path.iterdir()) == [folder]


def test_a_process_that_is_not_forked_maps_the_file_itself(photos: Path, tmp_path: Path) -> None:
    images = load_or_cache(files(photos, None), tmp_path, "train", workers=0, say=print)
    assert images is not None
    message = pickle.dumps(images)
    assert len(message) < 2000 < images.pixels.nbytes
    assert np.array_equal(np.array(pickle.loads(message)[2]), np.array(images[2]))


@FORKS
@pytest.mark.parametrize("workers", [0, 1])
def test_errors(workers: int, photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    whole = Path(files(photos).paths[2]).read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing"):
        bad.write_bytes(content)
        for resized_side in (12, None):
            with pytest.raises(DataError, match=r"bad.jpg cannot be read as an image \(.*\): replace or remove it"):
                load_or_cache(ImageFiles([str(bad)], Decoding(12, resized_side)), tmp_path / "cache", "train", workers=workers, say=print)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(OutputError, match=r"bad\.jpg"):
        load_or_cache(files(photos), bad, "train", workers=0, say=print)
    with pytest.raises(ConfigError, match="--cache is for --dataset folder: digits is in memory already"):
        load_data(TrainConfig(cache="x"), CPU)


@FORKS
@pytest.mark.parametrize("workers", [0, 2])
def test_all_unreadable_files_are_named_at_once(workers: int, photos: Path, tmp_path: Path) -> None:
    """Those whose header is damaged, those that end early, and links to nothing; whole files are between them."""
    whole = Path(files(photos).paths[2]).read_bytes()
    paths = [tmp_path / f"{number:02}.jpg" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(whole)
        if number % 3 == 1:
            path.write_bytes(whole[: len(whole) // 2] if number % 2 else b"nothing")
    paths[4].unlink()
    paths[4].symlink_to("nowhere")

    def said(chosen: list[Path]) -> str:
        with pytest.raises(DataError) as caught:
            load_or_cache(
                ImageFiles([str(path) for path in chosen], Decoding(12, None)), tmp_path / "cache", "train", workers=workers, say=print
            )
        return str(caught.value)

    named = ", ".join(str(path) for path in paths[1:31:3])
    assert said(paths) == f"13 files cannot be read as images; replace or remove them: {named} and 3 more"
    assert said(paths[:5]) == f"2 files cannot be read as images; replace or remove them: {paths[1]}, {paths[4]}"
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_link_to_nothing_is_not_left_out_of_what_a_cache_is_known_by(photos: Path, tmp_path: Path) -> None:
    some = files(photos)
    load_or_cache(some, tmp_path / "cache", "train", workers=0, say=print)
    (tmp_path / "link.jpg").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"link\.jpg cannot be read as an image"):
        load_or_cache(
            ImageFiles([*some.paths, str(tmp_path / "link.jpg")], some.decoding), tmp_path / "cache", "train", workers=0, say=print
        )


def test_the_environment_says_what_was_cached(photos: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = TrainConfig(dataset="folder", data_dir=str(photos), image_size=12, workers=0, batch_size=3, cache=str(tmp_path))
    Environment(CPU).load_data(config, lines.append)
    assert [line.split("/")[0] for line in lines] == ["cached the 8 images of ", "cached the 4 images of "]


# Decoding


@pytest.mark.parametrize(("size", "side", "divisor"), [((401, 641), 50, 4), ((399, 640), 50, 2), ((199, 900), 50, 1), ((301, 300), 9, 8)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_jpegs_are_decoded_small(mode: str, size: tuple[int, int], side: int, divisor: int, tmp_path: Path) -> None:
    path, exact = tmp_path / "a.jpg", tmp_path / "b.png"
    image(np.random.default_rng(1), *size).convert(mode).save(path, quality=95)
    with Image.open(path) as file:
        file.convert("RGB").save(exact)
    found = Decoding(side, None).decode(str(path))
    assert isinstance(found, Image.Image) and found.mode == "RGB"
    assert found.size == Decoding(side, None).size(str(path)) == tuple(-(-length // divisor) for length in size)
    small, whole = (pixels(Decoding(side, side).decode(str(file))) for file in (path, exact))
    assert small.shape == whole.shape == (side, side, 3)
    assert np.abs(small - whole).mean() < (1 if divisor > 1 else 1e-9)  # levels of 255


def pixels(image: object) -> npt.NDArray[np.int64]:
    assert isinstance(image, Image.Image)
    return np.array(image).astype(np.int64)


# Normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_images_keep_their_memory_format(channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 5, 4), dtype=torch.uint8)
    normalize = Normalizer(Statistics((0.3, 0.4, 0.5)[:channels], (0.2, 0.3, 0.4)[:channels]), CPU)
    plain, last = normalize(images), normalize(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last) and plain.is_contiguous()
    assert torch.equal(normalize(images[:, :, 1:]), plain[:, :, 1:])
