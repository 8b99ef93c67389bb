"""`prunetrain.predict`: classifies new images with a trained network.

In: a checkpoint and image files. Out: the most probable classes of each, in the order of the files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunetrain.config import TrainConfig, build_config, settings_from
from prunetrain.errors import ConfigError
from prunetrain.graph.memory import check_results_fit
from prunetrain.paths import checkpoint_of
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.data.base import Statistics
from prunetrain.training.data.folder_scan import find_images
from prunetrain.training.data.new_images import NewImages, preparation_of
from prunetrain.training.data.workers import decoder_count
from prunetrain.training.environment import choose_device
from prunetrain.training.outputs import logits_of
from prunetrain.training.pairs import pair_of
from prunetrain.training.precision import autocast
from prunetrain.training.stored_config import stored_config
from prunetrain.training.trained_network import TrainedNetwork

_SETTINGS = {"device", "amp", "channels_last", "batch_size", "workers"}


@dataclass(frozen=True)
class Guess:
    """A class, and the probability that the network gives it: the softmax of its logit, in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The guesses for an image, the most probable class first. If it cannot be read, there are none, and `error` says why."""

    path: str
    guesses: tuple[Guess, ...] = ()
    error: str = ""


def predict(checkpoint: str | Path, images: str | Path | Iterable[str | Path], *, top: int = 1, **settings: Any) -> list[Prediction]:
    """Classify images: `prunetrain.predict("resnet18-folder", "photos")[0].guesses[0].name`.

    Args:
        checkpoint: a run's checkpoint file; or the name of a run in the current folder, which stands for its last.pt.
        images: image files, and folders, which stand for all image files in them; prepared as in the run's validation.
        top: number of guesses per image.
        settings: fields of `TrainConfig` that differ from the checkpoint's: device, amp, channels_last, batch_size, workers.

    Raises:
        PruneTrainError: for a checkpoint or settings that cannot be used, and for images that do not exist. An image that cannot be read
            gives a prediction with an error.
    """
    if not isinstance(top, int) or top < 1:
        raise ConfigError(f"top must be a whole number from 1, not {top!r}")
    given = settings_from(settings)
    if foreign := sorted(given.keys() - _SETTINGS):
        raise ConfigError(f"{foreign[0]} has no effect on a prediction: leave it out")
    path = checkpoint_of(checkpoint)
    named = [images] if isinstance(images, str | Path) else images
    paths = find_images([Path(image) for image in named])
    loaded = load_checkpoint(path)
    config = build_config(stored_config(path, loaded).to_dict(), {"max_batch_size": 0}, given)
    device = choose_device(config)
    pair = pair_of(path, loaded)
    pair.check_data()
    preparation = preparation_of(config, pair.graph.input_shape, pair.network)
    files = NewImages(paths, preparation, Statistics.from_dict(loaded.statistics), device)
    config = replace(config, batch_size=max(1, min(config.batch_size, len(paths))))
    if device.type == "cpu":
        check_results_fit(pair.graph, str(pair.network), config.batch_size)
    model = TrainedNetwork(pair.network, pair.source, pair.graph, path, loaded.model).build().to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    found = dict(_classified(model, files, config, loaded.class_names, top))
    return [found[number] for number in range(len(paths))]


@torch.inference_mode()
def _classified(
    model: nn.Module, files: NewImages, config: TrainConfig, names: Sequence[str], top: int
) -> Iterator[tuple[int, Prediction]]:
    """Yield each image's number and its prediction."""
    workers = decoder_count(config.workers, files.device)
    for numbers, images, unreadable in files.batches(config.batch_size, workers=workers, channels_last=config.channels_last):
        yield from ((number, Prediction(image.path, error=image.reason)) for number, image in unreadable)
        if images is None:
            continue
        with autocast(images.device, config.amp):
            outputs = logits_of(model(images))
        probabilities, classes = outputs.float().softmax(1).topk(min(top, len(names)))
        for number, shares, best in zip(numbers, probabilities.tolist(), classes.tolist(), strict=True):
            yield number, Prediction(files.paths[number], tuple(Guess(names[k], share) for k, share in zip(best, shares, strict=True)))
