"""Where a run goes on after a crash: its newest checkpoint that is whole together with its network file.

In: the folders of a run as a process left them that ended at any instant. Out: the checkpoint to go on from, and folders in which nothing
is left that a run which was never interrupted would not have at that point.
"""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from prunetrain.errors import CheckpointError, NetworkFileError, PruneTrainError
from prunetrain.files import remove_leftovers, write_atomically
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import Progress
from prunetrain.training.pairs import read_pair

_OTHERWISE = "or start a new run with another --name"


def newest_whole(run: RunPaths, say: Callable[[str], object], first: int = 0) -> Path | None:
    """The checkpoint with the most progress of those that load, and whose network file is there, is theirs and takes their weights.

    Args:
        run: one of which something is there.
        say: is told of every newer checkpoint why it was skipped.
        first: epoch of the run's first checkpoint; of one that prunes another's, that of the other's.

    Returns:
        The checkpoint; None if the run ended before its first one was written, so that nothing is lost by starting it again.

    Raises:
        CheckpointError: if there were checkpoints, and none is whole.
        NetworkFileError: if the dense network's file is damaged, without which none can be used.
    """
    numbered = run.checkpoint_files()
    if not (numbered or run.last.exists() or run.metrics.exists() or any(epoch > first for epoch in run.network_files())):
        return None
    _check_dense(run)
    newest, place = None, (-1, 0)
    for epoch, path in ((None, run.last), *sorted(numbered.items(), reverse=True)):
        if epoch is not None and epoch <= place[0]:
            break
        progress = _progress_of_whole(path, say) if path.exists() else None
        if progress and (progress.epoch, progress.step) > place:
            newest, place = path, (progress.epoch, progress.step)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints} has no whole checkpoint to go on from: restore one, {_OTHERWISE}")
    return newest


def _progress_of_whole(path: Path, say: Callable[[str], object]) -> Progress | None:
    """How far a checkpoint is, if it and its network file are whole."""
    try:
        pair = read_pair(path)
        pair.build()  # to see that the weights fit
    except PruneTrainError as error:
        say(f"skipped {path.name}: {str(error).removeprefix(f'{path}: ')}")
        return None
    return pair.checkpoint.progress


def _check_dense(run: RunPaths) -> None:
    try:
        read_graph(run.network(0))
    except NetworkFileError as error:
        raise NetworkFileError(
            f"{error}; it is the dense network, and every checkpoint of the run needs it: restore it, {_OTHERWISE}"
        ) from None


def make_newest(run: RunPaths, checkpoint: Path, epoch: int, say: Callable[[str], object]) -> None:
    """Make a checkpoint of a run its newest: what was written after it goes.

    Args:
        run: the run, locked.
        checkpoint: one of its checkpoints, known to be whole.
        epoch: of the checkpoint.
        say: is told what went.

    Raises:
        OutputError: if last.pt cannot be written.
    """
    if checkpoint.name != run.last.name:
        with checkpoint.open("rb") as source:
            write_atomically(run.last, lambda target: shutil.copyfileobj(source, target))
    for files in (run.checkpoint_files(), run.network_files()):
        later = [path for number, path in files.items() if number > epoch]
        for path in reversed(later):
            path.unlink(missing_ok=True)
            say(f"removed {path.name}, which came after {checkpoint.name}")
    for folder in (run.networks, run.checkpoints):
        remove_leftovers(folder)


def keep_newest(run: RunPaths, count: int, wanted: Collection[int]) -> None:
    """Remove all but the newest so many checkpoints of reconfigurations; 0 keeps all. last.pt and the network files stay.

    To be called when a newer checkpoint is on the disk.

    Args:
        run: the run.
        count: how many stay.
        wanted: epochs whose checkpoints stay beside these.
    """
    files = [path for epoch, path in run.checkpoint_files().items() if epoch not in wanted]
    for path in files[:-count] if count else ():
        path.unlink(missing_ok=True)


def discard_unborn(run: RunPaths, first: int = 0) -> None:
    """Remove what a process left that was killed while it created a run, for which `newest_whole` found nothing. Other files stay."""
    for folder in (run.networks, run.checkpoints):
        if folder.is_dir():
            remove_leftovers(folder)
    for epoch in (0, first):
        run.network(epoch).unlink(missing_ok=True)
    for folder in (run.networks, run.checkpoints):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
