"""Finds the images of a folder in ImageNet's layout: train/<class>/**/*.jpg and val/<class>/**/*.jpg.

In: a folder. Out: class names and, for each split, paths and labels, sorted, so that every machine numbers them alike. No image is opened.
Names that begin with a dot are passed over.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from prunetrain.errors import DataError
from prunetrain.training.data.base import one_line, some

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Samples:
    """Paths of images and their labels."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class FolderIndex:
    """What a folder holds."""

    class_names: tuple[str, ...]
    train: Samples
    val: Samples


def scan(root: Path) -> FolderIndex:
    """List all images.

    Raises:
        DataError: when the layout is another one, or a class has no images.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: name the one that holds train/ and val/ with --data-dir")
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise DataError(
                f"{root} has no folder {split}: put images into {root}/train/CLASS and {root}/val/CLASS, or pass another --data-dir"
            )
    classes, val_classes = _class_folders(root / "train"), _class_folders(root / "val")
    if len(classes) == 1:
        raise DataError(f"{root}/train has the class {classes[0]} only: training needs two classes or more")
    unknown = [name for name in val_classes if name not in set(classes)]
    if unknown:
        raise DataError(f"{root}/val has classes that {root}/train lacks: {some(unknown)}; give both the same class folders")
    numbers = {name: label for label, name in enumerate(classes)}
    return FolderIndex(classes, _samples(root / "train", classes, numbers), _samples(root / "val", val_classes, numbers))


def _class_folders(split: Path) -> tuple[str, ...]:
    try:
        names = sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{split} cannot be read ({one_line(error)}): make it readable") from error
    if not names:
        raise DataError(f"{split} has no class folders: put the images of each class into a folder of their own, {split}/CLASS")
    return tuple(names)


def _samples(split: Path, classes: tuple[str, ...], numbers: dict[str, int]) -> Samples:
    paths: list[str] = []
    labels: list[int] = []
    for name in classes:
        found = _images(split / name)
        if not found:
            raise DataError(f"{split / name} has no images: add some ({', '.join(EXTENSIONS)}) or remove the folder")
        paths += found
        labels += [numbers[name]] * len(found)
    return Samples(tuple(paths), tuple(labels))


def _images(folder: Path) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
    return sorted(found)
