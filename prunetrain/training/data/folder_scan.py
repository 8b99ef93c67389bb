"""Finding the images of a folder in ImageNet's layout: train/<class>/**/*.jpg and val/<class>/**/*.jpg.

If images are held out for validation, or the network's classes are known, one of the two or <class>/** is enough.

In: a folder. Out: class names and, for each split, paths and labels, sorted, so that every machine numbers them alike. No image is opened.
Names that begin with a dot are skipped, and so are files whose ending is not that of an image; these are counted.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from prunetrain.errors import DataError, abbreviate_names
from prunetrain.files import resolve_links
from prunetrain.foreign.refusal import one_line, printable
from prunetrain.training.data.base import escape_non_utf8, named_missing
from prunetrain.training.data.holding_out import held_out_indices

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}  # meant as splits; the likeliest first
_SPLIT_FOLDERS = tuple(name for names in _SPLIT_NAMES.values() for name in names)
_SHOWN = 5  # kinds of files that a message names
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # that Windows writes into folders of images


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
    """The classes and images of a folder, and how many other files there are, by ending."""

    class_names: tuple[str, ...]
    train: Samples
    val: Samples
    others: Mapping[str, int]


def scan(root: Path, val_split: float = 0.0) -> FolderIndex:
    """List all images.

    Args:
        root: the folder.
        val_split: share of the images to hold out for validation, of those in train/ if it exists, else of all; 0: use val/.

    Raises:
        DataError: when the layout is different, or a class has no images.
    """
    if not root.is_dir():
        raise DataError(f"{named_missing(root)} is not a folder: give --data-dir the folder that holds train/ and val/")
    if val_split:
        apart = (root / "train").is_dir()
        if not apart:
            _refuse_split_beside_classes(root)
        return _scan_and_hold_out(root / "train" if apart else root, val_split)
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise DataError(f"{root} has no folder {split}: {_advice(root, split)}")
    classes, val_classes = _class_folders(root / "train"), _class_folders(root / "val")
    numbers = _label_by_class(root / "train", classes)
    unknown = [name for name in val_classes if name not in numbers]
    if unknown:
        raise DataError(f"{root}/val has classes that {root}/train lacks: {abbreviate_names(unknown)}; give both the same class folders")
    (train, beside_train), (val, beside_val) = (
        _samples(root / split, names, numbers) for split, names in (("train", classes), ("val", val_classes))
    )
    return FolderIndex(classes, train, val, beside_train + beside_val)


def _scan_and_hold_out(folder: Path, val_split: float) -> FolderIndex:
    """The images of a folder of class folders, some of them held out."""
    classes = _class_folders(folder)
    if all(name.lower() in _SPLIT_FOLDERS for name in classes):
        raise DataError(
            f"{folder} has no class folders but {abbreviate_names(classes)}: rename the one with the training images to {folder / 'train'}"
        )
    every, others = _samples(folder, classes, _label_by_class(folder, classes))
    beyond = len(str(folder / "_")) - 1
    held = set(held_out_indices((path[beyond:].replace(os.sep, "/") for path in every.paths), every.labels, val_split))
    train, val = (every.select(number for number in range(len(every.paths)) if (number in held) == out) for out in (False, True))
    return FolderIndex(classes, train, val, others)


def _refuse_split_beside_classes(root: Path) -> None:
    """Refuse a folder such as val/ among class folders that holds the same classes: it would become a class of images of all others."""
    classes = _class_folders(root)
    for name in classes:
        within = _folders_in(root / name) if name.lower() in _SPLIT_FOLDERS else ()
        if same := sorted({*within} & {*classes} - {name}):
            raise DataError(
                f"{root / name} lies among class folders and holds folders of the same names ({abbreviate_names(same)}): "
                f"move the class folders beside it into {root / 'train'}"
            )


def _advice(root: Path, missing: str) -> str:
    """What to do about a folder that lacks `train` or `val`."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    above = root.parent if root.name not in ("", "..") else resolve_links(root).parent
    near = [path for path in (above, *folders) if (path / "train").is_dir() and (path / "val").is_dir()]
    if near:
        return f"did you mean --data-dir {near[0]}?"
    hold_out = "hold out some of the images for validation with --val-split 0.2"
    usual = _SPLIT_NAMES[missing]
    named = sorted((path for path in folders if path.name.lower() in usual), key=lambda path: usual.index(path.name.lower()))
    if named:
        return f"rename {named[0]} to {root / missing}" + (f", or {hold_out}" if missing == "val" else "")
    places = f"put images into {root}/train/CLASS and {root}/val/CLASS"
    return f"{hold_out}, or {places}" if folders else f"{places}, or pass another --data-dir"


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
        raise DataError(f"{named_missing(root)} is not a folder: give --data-dir one that holds val/CLASS or CLASS folders")
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
    files = {name: files_in(folder / name) for name in found}
    others = sum((beside for _, beside in files.values()), _beside_classes(folder))
    if not any(images for images, _ in files.values()):
        raise DataError(f"{folder} has no images in its class folders{_only(others)}: add some ({', '.join(EXTENSIONS)})")
    labels = tuple(numbers[escape_non_utf8(name)] for name, (images, _) in files.items() for _ in images)
    samples = Samples(tuple(path for images, _ in files.values() for path in images), labels)
    return FolderIndex(tuple(classes), samples, samples, others)


def _label_by_class(folder: Path, classes: Sequence[str]) -> dict[str, int]:
    """The label of each training class."""
    if len(classes) == 1:
        raise DataError(f"{folder} has only the class {classes[0]}: training needs two classes or more")
    return {name: label for label, name in enumerate(classes)}


def _class_folders(split: Path) -> tuple[str, ...]:
    names = _folders_in(split)
    if not names:
        raise DataError(f"{split} has no class folders: put the images of each class into a folder of their own, {split}/CLASS")
    return names


def _folders_in(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    try:
        return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")))
    except OSError as error:
        _refuse(error)


def _samples(split: Path, classes: tuple[str, ...], numbers: dict[str, int]) -> tuple[Samples, Counter[str]]:
    """The images of some classes, and the number of other files by ending."""
    paths: list[str] = []
    labels: list[int] = []
    others = _beside_classes(split)
    for name in classes:
        found, beside = files_in(split / name)
        if not found:
            raise DataError(f"{split / name} has no images{_only(beside)}: add some ({', '.join(EXTENSIONS)}) or remove the folder")
        paths += found
        labels += [numbers[name]] * len(found)
        others += beside
    return Samples(tuple(paths), tuple(labels)), others


def find_images(named: Sequence[Path]) -> list[str]:
    """List the given image files and the images in the given folders and their subfolders, in the given order, sorted in each folder.

    Raises:
        DataError: for a path that is neither a file nor a folder, and for folders without images.
    """
    found: list[str] = []
    for path in named:
        if not path.is_dir():
            if not path.is_file():
                raise DataError(f"{path} is not a file or folder: name images, or folders with images in them")
            found.append(str(path))
            continue
        images, others = files_in(path)
        if not images:
            raise DataError(f"{path} has no images in it ({', '.join(EXTENSIONS)}){_only(others)}: name another folder")
        found += images
    return found


def files_in(folder: Path) -> tuple[list[str], Counter[str]]:
    """All image files in a folder and its subfolders, sorted; and the number of all others by ending, without those of the system."""
    images: list[str] = []
    others = Counter[str]()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(Path(parent, name), folder)]
        for name in files:
            if _is_image(name):
                images.append(os.path.join(parent, name))
            elif not name.startswith(".") and name.lower() not in _SYSTEM_FILES:
                others[os.path.splitext(name)[1].lower() or "without an ending"] += 1
    return sorted(images), others


def _refuse(error: OSError) -> NoReturn:
    """Refuse a folder that cannot be listed, whose images would be missing without a word."""
    raise DataError(f"{error.filename} cannot be read ({one_line(error)}): make it readable") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _beside_classes(split: Path) -> Counter[str]:
    """The images that lie outside of the class folders, and so belong to no class."""
    return Counter("outside of a class folder" for entry in os.scandir(split) if _is_image(entry.name) and entry.is_file())


def _leads_back(path: Path, root: Path) -> bool:
    """Whether a folder found under `root` is a link to one that it lies in, whose images would be found again and again."""
    if not path.is_symlink():
        return False
    way = [resolve_links(above) for above in (path.parent, *path.parent.parents) if above.is_relative_to(root)]
    return any(above.is_relative_to(resolve_links(path)) for above in way)


def passed_over(where: str | Path, others: Mapping[str, int]) -> str:
    """The line on files in a folder that are not read."""
    count = sum(others.values())
    files = f"{count:,} file{'s' if count > 1 else ''}"
    return printable(escape_non_utf8(f"{where}: {files} passed over: {_endings(others)}"))


def _only(others: Mapping[str, int]) -> str:
    """How the message on a folder without images continues if other files lie in it."""
    return f", only files that are not read as images ({_endings(others)})" if others else ""


def _endings(others: Mapping[str, int]) -> str:
    """Numbers of files by ending, the most frequent first: "12 .heic, 1 .svg, 1 without an ending"."""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return abbreviate_names([f"{count:,} {ending}" for ending, count in ranked], _SHOWN)
