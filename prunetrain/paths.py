"""All file names of the project and its runs, in one place; finding runs and claiming their names."""

import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from prunetrain.errors import BusyError, ConfigError, OutputError, nearest
from prunetrain.files import make_folder, output_error, resolve_links
from prunetrain.locking import locked

NETWORKS = "generated_nets"
CHECKPOINTS = "checkpoints"
DENSE = "epoch_000.py"
LAST = "last.pt"
BEST = "best.pt"
METRICS = "metrics.jsonl"

NETWORK_NAME = re.compile(r"epoch_(\d{3,7})\.py")
_CHECKPOINT_NAME = re.compile(r"epoch_(\d{3,7})\.pt")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class RunPaths:
    """The files of one run: `<output_dir>/generated_nets/<name>/` and `<output_dir>/checkpoints/<name>/`.

    Raises:
        ConfigError: if the name is not letters, digits, dots, dashes and underscores.
    """

    output_dir: Path
    name: str

    def __post_init__(self) -> None:
        if not _RUN_NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} cannot name a run: use up to 100 letters, digits, '.', '-' and '_', starting with a letter or digit"
            )

    @property
    def networks(self) -> Path:
        return self.output_dir / NETWORKS / self.name

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / CHECKPOINTS / self.name

    def network(self, epoch: int) -> Path:
        return self.networks / f"epoch_{epoch:03d}.py"

    def checkpoint(self, epoch: int) -> Path:
        return self.checkpoints / f"epoch_{epoch:03d}.pt"

    @property
    def last(self) -> Path:
        return self.checkpoints / LAST

    @property
    def best(self) -> Path:
        return self.checkpoints / BEST

    @property
    def metrics(self) -> Path:
        return self.checkpoints / METRICS

    @property
    def timings(self) -> Path:
        """What `--round-to auto` has chosen."""
        return self.checkpoints / "timings.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files, with `--tensorboard`."""
        return self.checkpoints / "tensorboard"

    def checkpoint_files(self) -> dict[int, Path]:
        """The checkpoints of reconfigurations by epoch, in order."""
        return _by_epoch(self.checkpoints, _CHECKPOINT_NAME)

    def newest_checkpoint(self) -> Path:
        """last.pt; for a run that `reconfigure` wrote, which has none until it is resumed, its only checkpoint."""
        files = self.checkpoint_files()
        return self.last if self.last.exists() or len(files) != 1 or 0 in files else next(iter(files.values()))

    def network_files(self) -> dict[int, Path]:
        """The network files by epoch, in order, ignoring the user's own files beside them."""
        return _by_epoch(self.networks, NETWORK_NAME)

    def newest_network(self) -> Path:
        """The network file of the last reconfiguration."""
        files = self.network_files()
        return files[max(files)] if files else self.network(0)

    def exists(self) -> bool:
        """Whether a run of this name has any files."""
        return self.networks.exists() or self.checkpoints.exists()

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from creating, training or resuming this run inside the context.

        The lock's file lies beside the run's folder, so that the lock can be taken before the run exists.

        Raises:
            BusyError: if another process holds the lock.
            OutputError: if the folder of all checkpoints cannot be written.
        """
        return locked(self.output_dir / CHECKPOINTS / f".{self.name}.lock", f"run {self.name}")


def run_of_checkpoint(checkpoint: Path) -> RunPaths:
    """The run that a checkpoint belongs to: `<output_dir>/checkpoints/<name>/<file>.pt`."""
    folder = resolve_links(checkpoint).parent
    return RunPaths(folder.parent.parent, folder.name)


@contextmanager
def new_run(output_dir: Path, name: str, held: ExitStack | None = None) -> Iterator[RunPaths]:
    """Claim the first of `name`, `name-2`, `name-3`, ... that is free. If writing its first files inside fails, all are removed.

    Args:
        output_dir: where.
        name: the first to try.
        held: the run stays locked until this is exited; by default, only inside the context.

    Raises:
        OutputError: if its folder cannot be made, or if its two folders would not lie side by side.
    """
    with ExitStack() as inside:
        run = next(run for run in _numbered(output_dir, name) if _claim(run, inside if held is None else held))
        try:
            _check_side_by_side(output_dir)
            yield run
        except BaseException:
            for folder in (run.networks, run.checkpoints):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def existing_run(output_dir: Path, name: str) -> RunPaths | None:
    """The run with this name, if there is one."""
    run = RunPaths(output_dir, name) if _RUN_NAME.fullmatch(name) else None
    return run if run and run.networks.is_dir() else None


def find_run(what: str, output_dir: Path) -> RunPaths | None:
    """The run with this name or folder, if there is one."""
    path = Path(what)
    if path.is_dir() and (folder := resolve_links(path)).parent.name in (NETWORKS, CHECKPOINTS):
        return RunPaths(folder.parent.parent, folder.name)
    return None if path.is_file() else existing_run(output_dir, str(path))  # without the slash that completing a folder's name appends


def nearest_runs(what: str, output_dir: Path) -> list[str]:
    """The names of the runs that are spelled most like this one."""
    known = {network.parent.name for network in (output_dir / NETWORKS).glob("*/epoch_*.py")}
    return nearest(what, filter(_RUN_NAME.fullmatch, known))


def checkpoint_of(what: str | Path) -> Path:
    """The newest checkpoint of the run with this name, in the current folder, or with this folder; any other path unchanged."""
    run = find_run(str(what), Path())
    return run.newest_checkpoint() if run else Path(what)


def newest_run(output_dir: Path, name: str) -> RunPaths | None:
    """The last run in the unbroken series `name`, `name-2`, `name-3`, ..."""
    taken = list(takewhile(RunPaths.exists, _numbered(output_dir, name)))
    return taken[-1] if taken else None


def _numbered(output_dir: Path, name: str) -> Iterator[RunPaths]:
    yield RunPaths(output_dir, name)
    for number in count(2):
        yield RunPaths(output_dir, f"{name}-{number}")


def _claim(run: RunPaths, held: ExitStack) -> bool:
    """Lock a name and make the folder of its networks; False if the name is taken, or another process is about to take it."""
    if run.exists():
        return False
    with ExitStack() as lock:
        try:
            lock.enter_context(run.locked())
            make_folder(run.networks)
        except (BusyError, FileExistsError):
            return False
        except OSError as error:
            raise output_error(run.networks, error) from error
        held.enter_context(lock.pop_all())
    return True


def _check_side_by_side(output_dir: Path) -> None:
    """Refuse links that separate a run's two folders, since one is found from the other."""
    folders = [resolve_links(output_dir / name) for name in (NETWORKS, CHECKPOINTS)]
    if folders != [folders[0].parent / name for name in (NETWORKS, CHECKPOINTS)]:
        raise OutputError(
            f"{output_dir} has its {NETWORKS} at {folders[0]} and its {CHECKPOINTS} at {folders[1]}: a run's folders must lie side by "
            "side, under these names, so link the folder that holds both, or give --output-dir"
        )


def _by_epoch(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    found = ((pattern.fullmatch(path.name), path) for path in folder.glob("epoch_*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def templates() -> Path:
    """The folder of the Jinja templates: inside the package if installed, at the top of a checkout otherwise."""
    inside = Path(__file__).parent / "templates"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "templates"
