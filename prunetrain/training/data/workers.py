"""Processes that decode images. In: a data set, and the indices of the images of each batch. Out: the batches, in order."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from prunetrain.training.cores import cores
from prunetrain.training.data.worker_signals import block_signals, leave_signals_to_parent

_WORKERS_WITH_CPU = 2  # workers when training on a CPU, on the same cores
_WORKERS_WITH_GPU = range(2, 13)
_PREFETCHED_BATCHES = 4  # batches that each worker prefetches for a GPU, so that it need not wait; torch's default is 2


def decoder_count(asked: int, device: torch.device) -> int:
    """The number of image-decoding processes for each training process.

    Args:
        asked: `--workers`; -1 to decide here.
        device: where it trains. For a GPU, each training process takes its share of this machine's cores, less one for itself.
    """
    if asked >= 0:
        return asked
    if device.type == "cpu":
        return _WORKERS_WITH_CPU
    free = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1
    return min(max(free, _WORKERS_WITH_GPU[0]), _WORKERS_WITH_GPU[-1])


def load_in_workers(
    images: Dataset[Any], batches: Iterable[Sequence[Any]], collate: Callable[[list[Any]], Any], *, workers: int, pinned: bool = False
) -> Iterator[Any]:
    """Yield every batch, collated from its images.

    Args:
        images: the images, indexed by the keys in `batches`; picklable.
        batches: the keys of each batch.
        collate: makes a batch, in the worker.
        workers: how many processes; with 0, this one does the work.
        pinned: whether to put batches into pinned memory, for copies to a GPU.
    """
    loader = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=_PREFETCHED_BATCHES if workers and pinned else None,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=pinned,
        generator=torch.Generator(),  # otherwise the loader would draw from torch's global state
    )
    with block_signals():
        made = iter(loader)
    yield from made
