"""Every file name of the project and of a run, in one place."""

import re
from dataclasses import dataclass
from pathlib import Path

from prunetrain.errors import ConfigError

NETWORKS = "generated_nets"
CHECKPOINTS = "checkpoints"
LAST = "last.pt"
METRICS = "metrics.jsonl"

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
    def metrics(self) -> Path:
        return self.checkpoints / METRICS

    def last_checkpoint(self) -> Path | None:
        """The checkpoint to go on from: last.pt, or before it exists the newest of the others."""
        numbered = sorted(self.checkpoints.glob("epoch_*.pt"), key=lambda path: (len(path.name), path.name))
        return self.last if self.last.exists() else (numbered[-1] if numbered else None)

    def newest_network(self) -> Path:
        """The network file of the last reconfiguration."""
        return max(self.networks.glob("epoch_*.py"), key=lambda path: (len(path.name), path.name), default=self.network(0))

    def exists(self) -> bool:
        """Whether anything of a run of this name is there."""
        return self.networks.exists() or self.checkpoints.exists()


def run_of_checkpoint(checkpoint: Path) -> RunPaths:
    """The run that a checkpoint lies in: `<output_dir>/checkpoints/<name>/<file>.pt`."""
    folder = checkpoint.resolve().parent
    return RunPaths(folder.parent.parent, folder.name)


def free_run(output_dir: Path, name: str) -> RunPaths:
    """The first of `name`, `name-2`, `name-3`, ... that no earlier run has taken."""
    run = RunPaths(output_dir, name)
    number = 2
    while run.exists():
        run = RunPaths(output_dir, f"{name}-{number}")
        number += 1
    return run


def newest_run(output_dir: Path, name: str) -> RunPaths | None:
    """The last of `name`, `name-2`, `name-3`, ... that has a checkpoint."""
    newest, run, number = None, RunPaths(output_dir, name), 2
    while run.exists():
        newest = run if run.last_checkpoint() else newest
        run = RunPaths(output_dir, f"{name}-{number}")
        number += 1
    return newest


def templates() -> Path:
    """The folder of the Jinja templates: inside an installed package, or at the top of a checkout."""
    inside = Path(__file__).parent / "templates"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "templates"
