"""Where a run resumes after a crash: its newest checkpoint that is whole together with its network file.

In: the folders of a run, as left by a process that ended at any instant. Out: the checkpoint to resume from, and folders with only what an
uninterrupted run would have at that point.
"""

from collections.abc import Callable, Collection
from pathlib import Path

from prunetrain.errors import CheckpointError, NetworkFileError, PruneTrainError
from prunetrain.files import copy_file, remove_leftovers
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import Progress
from prunetrain.training.pairs import read_pair

_OR_START_ANEW = "or start a new run with another --name"


def find_newest_checkpoint(run: RunPaths, say: Callable[[str], object], first: int = 0) -> Path | None:
    """Find the checkpoint with the most progress, of those that load and whose network file is there, unchanged, and takes their weights.

    Args:
        run: a run of which some files exist.
        say: called with the reason why each newer checkpoint was skipped.
        first: epoch of the run's first checkpoint; for a run that prunes another's checkpoint, the epoch of that one.

    Returns:
        The checkpoint; None if the run ended before its first one was written, so that nothing is lost by starting it again.

    Raises:
        CheckpointError: if there are checkpoints, but none is whole.
        NetworkFileError: if the dense network's file, which every checkpoint needs, is missing or damaged.
    """
    numbered = run.checkpoint_files()
    if not (numbered or run.last.exists() or run.metrics.exists() or any(epoch > first for epoch in run.network_files())):
        return None
    _check_dense(run)
    newest, place = None, (-1, 0)
    for epoch, path in ((None, run.last), *sorted(numbered.items(), reverse=True)):
        if epoch is not None and epoch <= place[0]:
            break
        progress = _progress_if_whole(path, say) if path.exists() else None
        if progress and (progress.epoch, progress.step) > place:
            newest, place = path, (progress.epoch, progress.step)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints} has no whole checkpoint to resume from: restore one, {_OR_START_ANEW}")
    return newest


def _progress_if_whole(path: Path, say: Callable[[str], object]) -> Progress | None:
    """A checkpoint's progress, if it and its network file are whole."""
    try:
        pair = read_pair(path)
        pair.build()  # to check that the weights fit
    except PruneTrainError as error:
        say(f"skipped {path.name}: {str(error).removeprefix(f'{path}: ')}")
        return None
    return pair.checkpoint.progress


def _check_dense(run: RunPaths) -> None:
    try:
        read_graph(run.network(0))
    except NetworkFileError as error:
        raise NetworkFileError(
            f"{error}; it is the dense network, and every checkpoint of the run needs it: restore it, {_OR_START_ANEW}"
        ) from None


def roll_back_to(run: RunPaths, checkpoint: Path, epoch: int, say: Callable[[str], object]) -> None:
    """Make a checkpoint of a run its newest: remove what was written after it.

    Args:
        run: the run, locked.
        checkpoint: one of its checkpoints, known to be whole.
        epoch: the checkpoint's epoch.
        say: called with each file that was removed.

    Raises:
        OutputError: if last.pt cannot be written.
    """
    if checkpoint.name != run.last.name:
        copy_file(checkpoint, run.last)
    for files in (run.checkpoint_files(), run.network_files()):
        later = [path for number, path in files.items() if number > epoch]
        for path in reversed(later):
            path.unlink(missing_ok=True)
            say(f"removed {path.name}, which came after {checkpoint.name}")
    for folder in (run.networks, run.checkpoints):
        remove_leftovers(folder)


def remove_old_checkpoints(run: RunPaths, count: int, wanted: Collection[int]) -> None:
    """Remove all but the newest `count` checkpoints of reconfigurations; 0 keeps all. last.pt and the network files stay.

    Call this only when a newer checkpoint is on disk.

    Args:
        run: the run.
        count: number of checkpoints to keep.
        wanted: epochs whose checkpoints are kept as well.
    """
    files = [path for epoch, path in run.checkpoint_files().items() if epoch not in wanted]
    for path in files[:-count] if count else ():
        path.unlink(missing_ok=True)


def remove_unstarted_run(run: RunPaths, first: int = 0) -> None:
    """Remove what a process killed while creating a run left, if `find_newest_checkpoint` found no checkpoint. Other files stay."""
    for folder in (run.networks, run.checkpoints):
        if folder.is_dir():
            remove_leftovers(folder)
    for epoch in (0, first):
        run.network(epoch).unlink(missing_ok=True)
    for folder in (run.networks, run.checkpoints):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
