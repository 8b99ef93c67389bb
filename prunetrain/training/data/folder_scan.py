"""Finding the images of a folder in ImageNet's layout: train/<class>/**/*.jpg and val/<class>/**/*.jpg.

If images are held out for validation, or the network's classes are known, one of the two or <class>/** is enough.

In: a folder. Out: class names and, for each split, paths and labels, sorted, so that every machine numbers them alike. No image is opened.
Names that begin with a dot are skipped.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunetrain.errors import DataError, abbreviate_names
from prunetrain.training.data.base import escape_non_utf8, one_line
from prunetrain.training.data.holding_out import held_out_indices

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Samples:
    """Paths of images and their labels."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def select(self, numbers: Iterable[int]) -> "Samples":
        """The samples with these numbers."""
        chosen = list(numbers)
        return Samples(tuple(self.paths[i] for i in chosen), tuple(self.labels[i] for i in chosen))


@dataclass(frozen=True)
class FolderIndex:
    """The classes and images of a folder."""

    class_names: tuple[str, ...]
    train: Samples
    val: Samples


def scan(root: Path, val_split: float = 0.0) -> FolderIndex:
    """List all images.

    Args:
        root: the folder.
        val_split: share of the images to hold out for validation, of those in train/ if it exists, else of all; 0: use val/.

    Raises:
        DataError: when the layout is different, or a class has no images.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give --data-dir the folder that holds train/ and val/")
    if val_split:
        return _scan_and_hold_out(root / "train" if (root / "train").is_dir() else root, val_split)
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise DataError(
                f"{root} has no folder {split}: put images into {root}/train/CLASS and {root}/val/CLASS, pass another --data-dir, "
                "or hold out some of the images for validation with --val-split 0.2"
            )
    classes, val_classes = _class_folders(root / "train"), _class_folders(root / "val")
    numbers = _label_by_class(root / "train", classes)
    unknown = [name for name in val_classes if name not in numbers]
    if unknown:
        raise DataError(f"{root}/val has classes that {root}/train lacks: {abbreviate_names(unknown)}; give both the same class folders")
    return FolderIndex(classes, _samples(root / "train", classes, numbers), _samples(root / "val", val_classes, numbers))


def _scan_and_hold_out(folder: Path, val_split: float) -> FolderIndex:
    """The images of a folder of class folders, some of them held out."""
    classes = _class_folders(folder)
    every = _samples(folder, classes, _label_by_class(folder, classes))
    beyond = len(str(folder / "_")) - 1
    held = set(held_out_indices((path[beyond:].replace(os.sep, "/") for path in every.paths), every.labels, val_split))
    train, val = (every.select(number for number in range(len(every.paths)) if (number in held) == out) for out in (False, True))
    return FolderIndex(classes, train, val)


def scan_for_evaluation(root: Path, classes: Sequence[str], what: Path) -> FolderIndex:
    """List the images to evaluate a network on, in root/val/CLASS or root/CLASS; a class without a folder has none.

    Args:
        root: the folder.
        classes: the network's classes, in the order of its outputs.
        what: the network's name in messages.

    Returns:
        An index with the same images as training and validation half, since nothing is trained on them.

    Raises:
        DataError: when there are no images, or a folder is not one of the network's classes.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give --data-dir one that holds val/CLASS or CLASS folders")
    val = root / "val"
    folder = val if val.is_dir() and ("val" not in classes or (val / "val").is_dir()) else root
    numbers = {name: label for label, name in enumerate(classes)}
    found = _class_folders(folder)
    unknown = [name for name in found if escape_non_utf8(name) not in numbers]
    if unknown:
        if folder == root and "train" in unknown:
            raise DataError(f"{root} has train/ but no val/: give --data-dir {root / 'train'} to evaluate on the images in it")
        raise DataError(
            f"{folder} has class folders that {what} does not know: {abbreviate_names(unknown)}; "
            f"name them as in training ({abbreviate_names(classes)}), or remove them"
        )
    paths = {name: images_in(folder / name) for name in found}
    if not any(paths.values()):
        raise DataError(f"{folder} has no images in its class folders: add some ({', '.join(EXTENSIONS)})")
    labels = tuple(numbers[escape_non_utf8(name)] for name in found for _ in paths[name])
    samples = Samples(tuple(path for name in found for path in paths[name]), labels)
    return FolderIndex(tuple(classes), samples, samples)


def _label_by_class(folder: Path, classes: Sequence[str]) -> dict[str, int]:
    """The label of each training class."""
    if len(classes) == 1:
        raise DataError(f"{folder} has only the class {classes[0]}: training needs two classes or more")
    return {name: label for label, name in enumerate(classes)}


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
        found = images_in(split / name)
        if not found:
            raise DataError(f"{split / name} has no images: add some ({', '.join(EXTENSIONS)}) or remove the folder")
        paths += found
        labels += [numbers[name]] * len(found)
    return Samples(tuple(paths), tuple(labels))


def find_images(named: Sequence[Path]) -> list[str]:
    """List the given image files and the images in the given folders and their subfolders, in the given order, sorted in each folder.

    Raises:
        DataError: for a path that is neither a file nor a folder, and for folders without images.
    """
    found = []
    for path in named:
        images = images_in(path) if path.is_dir() else [str(path)] if path.is_file() else None
        if images is None:
            raise DataError(f"{path} is not a file or folder: name images, or folders with images in them")
        if not images:
            raise DataError(f"{path} has no images in it ({', '.join(EXTENSIONS)}): name another folder")
        found += images
    return found


def images_in(folder: Path) -> list[str]:
    """All image files in a folder and its subfolders, sorted."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
    return sorted(found)
