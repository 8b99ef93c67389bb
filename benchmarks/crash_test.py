"""Crash test: kill -9 a training run again and again, resume it each time, and compare its result with that of an undisturbed run.

    python benchmarks/crash_test.py --kills 100 --seed 0

Half of the kills come after a random time. The other half wait until the process is in a randomly chosen phase (writing a checkpoint,
writing a network file, between the two, ...) and come up to 5 ms later. Every process is the command line, started anew with
`--resume auto`. Prints where the kills hit, and exits with 1 if the result of any run differs by a bit from that of the undisturbed one.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path

from crash_child import Page, Phase, train
from crash_comparison import differences

from prunetrain.paths import RunPaths

# A small network, six cuts that all remove something, and a checkpoint about every 0.1 seconds.
FLAGS = (
    "--model resnet20 --dataset digits --epochs 6 --milestones 4 --penalty-ratio 0.94 --target-macs 0 --round-to 1 "
    "--checkpoint-minutes 0.002 --device cpu --name x"
).split()
AIMED = (Phase.CHECKPOINT, Phase.NETWORK_FILE, Phase.BETWEEN, Phase.RECONFIGURATION, Phase.VALIDATION, Phase.METRICS)
LATER = 0.005  # most seconds from the beginning of a phase to the kill aimed at it
POLL = 0.0001  # seconds


@dataclass
class Report:
    """The events so far: kills by phase, starts by how they ended, lines about skipped files, and differences by run."""

    kills: Counter[Phase] = field(default_factory=Counter)
    runs: int = 0
    starts: int = 0
    skipped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Kills by phase, and the totals, as Markdown."""
        rows = [f"| {phase.words} | {self.kills[phase]} |" for phase in Phase if self.kills[phase]]
        totals = [
            f"{self.kills.total()} kills of {self.runs} runs, {self.starts} starts; {len(self.skipped)} damaged files skipped",
            *sorted(set(self.skipped)),
            *self.failures,
            f"all runs ended in the same bits as the undisturbed one: {'no' if self.failures else 'yes'}",
        ]
        return "\n".join(["| where the kill hit | kills |", "| --- | --- |", *rows, "", *totals])


class CrashTest:
    """Runs in a folder.

    Args:
        folder: for everything.
        flags: of the runs.
        context: how processes start; `forkserver` loads torch only once.
        seed: of the moments of the kills.
    """

    def __init__(self, folder: Path, flags: list[str], context: BaseContext, seed: int) -> None:
        self._folder = folder
        self._flags = flags
        self._context = context
        self._random = random.Random(seed)
        self._page_file = folder / "phase"
        self.report = Report()

    def left_alone(self) -> float:
        """Make the run to compare with; returns its seconds.

        Raises:
            RuntimeError: if it fails.
        """
        start = time.monotonic()
        process = self._start("alone")
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"the undisturbed run ended with {process.exitcode}: {self._output('alone').read_text()}")
        return time.monotonic() - start

    def kill(self, kills: int, seconds: float) -> None:
        """Start runs, kill and resume them until `kills` is reached, and let the last one finish.

        Args:
            kills: number of kills.
            seconds: duration of a run; no kill waits longer.
        """
        while self.report.kills.total() < kills:
            self.report.runs += 1
            name = f"run{self.report.runs}"
            while not self._finish_or_die(name, seconds if self.report.kills.total() < kills else None):
                pass
            found = differences(self._run(name), self._run("alone"))
            self.report.failures += [f"{name} differs: {what}" for what in found]
            text = self._output(name).read_text()
            self.report.skipped += [line for line in text.splitlines() if line.startswith("skipped")]

    def _finish_or_die(self, name: str, seconds: float | None) -> bool:
        """Start or resume a run and kill it, unless it ends before; with None, let it run. Return whether it has ended."""
        process = self._start(name)
        self.report.starts += 1
        if seconds is not None:
            self._wait(process, seconds)
            process.kill()
        process.join()
        if process.exitcode == -9:
            self.report.kills[Page(self._page_file).phase] += 1
            return False
        if process.exitcode != 0:
            raise RuntimeError(f"{name} ended with {process.exitcode}: {self._output(name).read_text()}")
        return True

    def _wait(self, process: multiprocessing.process.BaseProcess, seconds: float) -> None:
        """Wait for the moment of a kill, or the end of the process."""
        page = Page(self._page_file)
        if self._random.random() < 0.5:
            process.join(self._random.uniform(0, seconds))
            return
        target, later, skip = self._random.choice(AIMED), self._random.uniform(0, LATER), self._random.randrange(4)
        end, before = time.monotonic() + seconds, Phase.START
        while process.is_alive() and time.monotonic() < end:
            now = page.phase
            if now is target and before is not target:
                skip -= 1
                if skip < 0:
                    time.sleep(later)
                    return
            before = now
            time.sleep(POLL)

    def _start(self, name: str) -> multiprocessing.process.BaseProcess:
        Page(self._page_file).phase = Phase.START
        arguments = ["train", *self._flags, "--output-dir", str(self._folder / name), "--resume", "auto"]
        process = self._context.Process(target=train, args=(arguments, self._page_file, self._output(name)))  # type: ignore[attr-defined]
        process.start()
        assert isinstance(process, multiprocessing.process.BaseProcess)
        return process

    def _output(self, name: str) -> Path:
        return self._folder / f"{name}.txt"

    def _run(self, name: str) -> RunPaths:
        return RunPaths(self._folder / name, "x")


def main() -> int:
    """Run the test with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        test = CrashTest(Path(folder), FLAGS, multiprocessing.get_context("spawn"), arguments.seed)
        seconds = test.left_alone()
        start = time.monotonic()
        test.kill(arguments.kills, seconds)
        print(test.report.table())
        print(f"{time.monotonic() - start:.0f} s; an undisturbed run takes {seconds:.1f} s")
    return 1 if test.report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
