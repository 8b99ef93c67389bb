"""Fuzzing: thousands of damaged or malicious files, each given to a real command, which must do no more than refuse it.

    python benchmarks/fuzz.py --count 5000 --seed 0                # prints a table; exits with 1 if anything is wrong
    python benchmarks/fuzz.py --seed 0 --only checkpoint-pickle:17   # one case again, with its whole output

Each case damages one file of a small real run (checkpoint, network file, settings, data, weights, metrics) and runs a command on it. The
command must succeed, or exit with code 2, one line on stderr and nothing changed. Everything else is a violation: a traceback, a file made
by foreign code, a program started, a write outside the folder, half-written files, a minute of computing, exhausted memory.
"""

import argparse
import json
import selectors
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_kinds import KINDS

_WAIT = 600  # seconds without output from any worker, enough even for a busy machine: after that, their cases are stuck
_WORKER = Path(__file__).with_name("fuzz_worker.py")


@dataclass
class Results:
    """Counts by kind and outcome, and the violations."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    lines: list[str] = field(default_factory=list)

    def add(self, result: dict[str, Any]) -> None:
        """Record the outcome of a case."""
        case = result["case"]
        outcome = "violation" if result["problems"] else "refused" if result["refused"] else "success"
        self.outcomes[case.partition(":")[0], outcome] += 1
        self.violations += [f"{case}: {'; '.join(result['problems'])} | {' | '.join(result['lines'])}"] if result["problems"] else []
        self.slowest = max(self.slowest, (result["seconds"], case))
        self.lines += result["lines"]


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="cases, divided evenly among the kinds")
    parser.add_argument("--seed", default="0", help="seed of the damage")
    parser.add_argument("--kinds", default=",".join(KINDS), help="run only these kinds")
    parser.add_argument("--only", help="run only this case, KIND:NUMBER")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    cases = [arguments.only] if arguments.only else [f"{kinds[n % len(kinds)]}:{n // len(kinds)}" for n in range(arguments.count)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        results = run(Path(folder), arguments.seed, cases, arguments.workers)
    if arguments.only:
        print("\n".join(results.lines))
    print(table(results, kinds))
    print(f"slowest case: {results.slowest[1]}, {results.slowest[0]:.1f} s")
    for line in results.violations:
        print(f"violation, seed {arguments.seed}, {line}")
    return 1 if results.violations else 0


def run(folder: Path, seed: str, cases: list[str], workers: int) -> Results:
    """Run cases in worker processes; a worker that dies or falls silent is replaced, and its case counts as a violation."""
    results = Results()
    waiting = [cases[number::workers] for number in range(workers)]
    selector = selectors.DefaultSelector()
    for number, share in enumerate(waiting):
        _start(selector, folder / str(number), seed, share)
    while selector.get_map():
        ready = selector.select(timeout=_WAIT)
        for key, _ in ready or [(key, 0) for key in selector.get_map().values() if key.data.begun]:
            _read(selector, key, seed, results, silent=not ready)
    selector.close()
    return results


@dataclass
class _Worker:
    """A process, its working folder, the cases that it has not finished, and whether it has begun the first of them."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    cases: list[str]
    begun: bool = False


def _start(selector: selectors.BaseSelector, folder: Path, seed: str, cases: list[str]) -> None:
    if cases:
        command = [sys.executable, str(_WORKER), str(folder), seed, *cases[:500]]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
        )  # otherwise `select` would miss lines
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ, _Worker(process, folder, cases))


def _read(selector: selectors.BaseSelector, key: selectors.SelectorKey, seed: str, results: Results, *, silent: bool) -> None:
    """Process a line from a worker; if the worker has ended or was silent for too long, replace it."""
    worker: _Worker = key.data
    stream = worker.process.stdout
    assert stream is not None
    line = "" if silent else stream.readline()
    if line:
        result = json.loads(line)
        worker.begun = "problems" not in result
        if not worker.begun:
            results.add(result)
            worker.cases.pop(0)
            _tell(results)
        return
    worker.process.kill()
    code = worker.process.wait()
    selector.unregister(stream)
    stream.close()
    if worker.begun:
        problem = "hangs" if silent else f"ended the process with {code}"
        results.add({"case": worker.cases.pop(0), "problems": [problem], "lines": [], "refused": False, "seconds": 0.0})
    elif code not in (0, -9):
        raise RuntimeError(f"the worker in {worker.folder} ended with {code}")
    _start(selector, worker.folder, seed, worker.cases)


def _tell(results: Results) -> None:
    """Print progress now and then, on stderr, so that stdout holds only the table."""
    done = results.outcomes.total()
    if done % 250 == 0:
        print(f"{done:,} cases, {len(results.violations)} violations", file=sys.stderr, flush=True)


def table(results: Results, kinds: list[str]) -> str:
    """Counts by kind, as in docs/reliability.md."""
    outcomes = ("success", "refused", "violation")
    lines = ["| kind | cases | success | one-line error | violation |", "| --- | ---: | ---: | ---: | ---: |"]
    totals: Counter[str] = Counter()
    for kind in kinds:
        counts = {outcome: results.outcomes[kind, outcome] for outcome in outcomes}
        totals.update(counts)
        lines.append(f"| {kind} | {sum(counts.values()):,} | " + " | ".join(f"{count:,}" for count in counts.values()) + " |")
    lines.append(f"| all | {totals.total():,} | " + " | ".join(f"{totals[outcome]:,}" for outcome in outcomes) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
