"""Measuring a checkpoint outside of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunetrain.config import TrainConfig, build_config
from prunetrain.errors import ConfigError
from prunetrain.files import resolve_links
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.class_names import are_numbers
from prunetrain.training.confusion import Confusion, GuessCollector, accuracies
from prunetrain.training.data import DataSource, folder, load_data
from prunetrain.training.data.base import Say, ignore_line
from prunetrain.training.data.holding_out import check_unseen
from prunetrain.training.environment import Environment
from prunetrain.training.loop import evaluate
from prunetrain.training.pairs import pair_of
from prunetrain.training.state import load_state
from prunetrain.training.stored_config import stored_config

_GUESSES = 5  # of the top-5 accuracy, which says nothing with as many classes or fewer


@dataclass(frozen=True)
class ClassResult:
    """The results on the images of one class; `accuracy` is None if there are none."""

    name: str
    images: int
    correct: int
    accuracy: float | None


@dataclass(frozen=True)
class CheckpointEvaluation:
    """A network's results on validation images.

    Attributes:
        loss: mean cross-entropy.
        top1: share of images whose class is the first guess.
        top5: share whose class is among the first five; None with five classes or fewer.
        classes: in the order of the outputs.
        confusion: which class is taken for which.
    """

    loss: float
    top1: float
    top5: float | None
    classes: tuple[ClassResult, ...]
    confusion: Confusion

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(one.images for one in self.classes)

    @property
    def balanced_accuracy(self) -> float:
        """The mean accuracy of the classes that have images; each class counts equally."""
        found = [one.accuracy for one in self.classes if one.accuracy is not None]
        return sum(found) / len(found)


def evaluate_checkpoint(path: Path, given: dict[str, Any], say: Say = ignore_line) -> CheckpointEvaluation:
    """Measure the loss and accuracy of a checkpoint on validation images.

    Args:
        path: the checkpoint.
        given: settings that differ from those inside it, such as the data set or the device.
        say: called with lines about the data set that the user should see.

    Raises:
        PruneTrainError: for a checkpoint or data set that cannot be used, or images that the network cannot take.
    """
    unlimited = {"max_batch_size": 0}  # a limit on training, which a batch for evaluation may exceed
    checkpoint = load_checkpoint(path)
    trained = stored_config(path, checkpoint)
    config = build_config(trained.to_dict(), unlimited, given)
    _check_split(config, trained, given, path)
    environment = Environment.of(config)
    data = _load_validation_data(config, trained, checkpoint.class_names, path, environment, say=say)
    state = load_state(pair_of(path, checkpoint), config, data, environment)
    if "batch_size" in given:  # otherwise keep a batch that grew in training
        state.progress = replace(state.progress, batch_size=None)
    state.check_fits(data)
    guesses = GuessCollector(data.num_classes)
    result = evaluate(state, data, guesses)
    confusion = guesses.count(environment.ranks)
    return CheckpointEvaluation(
        result.loss,
        result.top1,
        result.top5 if data.num_classes > _GUESSES else None,
        _class_results(state.class_names, confusion),
        confusion,
    )


def _check_split(config: TrainConfig, trained: TrainConfig, given: Mapping[str, Any], path: Path) -> None:
    """Refuse to measure on images that the network was trained on, and to guess whether a data set contains them."""
    check_unseen(path, trained.val_split, given)
    if not trained.val_split:
        return
    if given.keys() & {"dataset", "data_dir"} and "val_split" not in given:
        raise ConfigError(
            f"{path} was trained with --val-split {trained.val_split:g}: give it here as well if these are the same images, "
            "or --val-split 0 to measure on all validation images of this data set"
        )
    root = Path(config.data_dir)
    same = config.dataset == trained.dataset == "folder" and resolve_links(root) == resolve_links(Path(trained.data_dir))
    if same and not config.val_split and not any((root / split).is_dir() for split in ("train", "val")):
        raise ConfigError(
            f"{root} has no val/, and its images are those that {path} was trained on: "
            "leave out --val-split 0 to measure on the images held out"
        )


def _load_validation_data(
    config: TrainConfig, trained: TrainConfig, classes: Sequence[str], path: Path, environment: Environment, *, say: Say
) -> DataSource:
    """The data to measure on. If the checkpoint knows the names of the class folders, the data folder needs no training images."""
    named = trained.dataset == "folder" or not are_numbers(classes)
    if config.dataset == "folder" and named and not config.val_split:
        return folder.load_for_evaluation(config, classes, path, environment.device, say)
    return load_data(config, environment.device, say)


def _class_results(names: Sequence[str], confusion: Confusion) -> tuple[ClassResult, ...]:
    images, correct = confusion.images, confusion.correct
    return tuple(map(ClassResult, names, images, correct, accuracies(correct, images)))
