"""Processes that decode images. In: a data set, and the numbers of the images of each batch. Out: the batches, in order, as they come."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from prunetrain.training.cores import cores
from prunetrain.training.data.worker_signals import held_back, leave_signals_to_parent

_BESIDE_A_CPU = 2  # which trains on the same cores
_BESIDE_A_GPU = range(2, 13)
_AHEAD = 4  # batches that each worker has ready for a GPU, which waits for none; torch's default is 2


def decoders(asked: int, device: torch.device) -> int:
    """How many processes decode images for one that trains.

    Args:
        asked: `--workers`; -1 to decide here.
        device: where it trains. For a GPU each process of this machine takes its share of the cores, less the one that it needs itself.
    """
    if asked >= 0:
        return asked
    if device.type == "cpu":
        return _BESIDE_A_CPU
    free = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1
    return min(max(free, _BESIDE_A_GPU[0]), _BESIDE_A_GPU[-1])


def in_workers(
    images: Dataset[Any], batches: Iterable[Sequence[Any]], collate: Callable[[list[Any]], Any], *, workers: int, pinned: bool = False
) -> Iterator[Any]:
    """Every batch as `collate` makes it of its images.

    Args:
        images: by what `batches` have; picklable.
        batches: what to take together.
        collate: makes a batch, in the worker.
        workers: how many processes; with none this one does it.
        pinned: whether batches are to lie in memory that a GPU copies from.
    """
    loader = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=_AHEAD if workers and pinned else None,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=pinned,
        generator=torch.Generator(),  # the loader would draw from torch's global state otherwise
    )
    with held_back():
        made = iter(loader)
    yield from made
