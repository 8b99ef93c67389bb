"""How long `prunetrain --help` takes, and which imports take the time.

    python benchmarks/import_time.py --repeats 9

Out: a Markdown table of processes started one after another, an empty Python and the help: CPU time, which other processes do not add to,
and wall-clock time. Then the modules that take longest by themselves (`python -X importtime`, the least of the repeats).
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from collections import defaultdict

from runs import machine

from prunetrain.training.benchmarking.rounds import Spread

COMMANDS = {"python -c ''": ["-c", ""], "prunetrain --help": ["-m", "prunetrain", "--help"]}
LISTED = 8  # modules
_LINE = re.compile(r"import time: +(\d+) \| +\d+ \| +(\S+)")  # microseconds by itself, and with its imports


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.repeats} repeats\n")
    print("| process | CPU time, ms, median (quartiles) | time, ms |\n| --- | --- | --- |")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.repeats):
        for name, command in COMMANDS.items():
            taken[name].append(_times(command))
    for name, times in taken.items():
        print(f"| `{name}` | {' | '.join(_shown(column) for column in zip(*times, strict=True))} |")
    by_module = _by_module(arguments.repeats)
    print(f"\n{len(by_module)} modules, torch {'among them' if 'torch' in by_module else 'not among them'}\n")
    print("| module | ms by itself |\n| --- | --- |")
    for name in sorted(by_module, key=by_module.__getitem__, reverse=True)[:LISTED]:
        print(f"| {name} | {by_module[name] / 1e3:.1f} |")


def _shown(seconds: tuple[float, ...]) -> str:
    spread = Spread.of([1e3 * second for second in seconds])
    return f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})"


def _times(command: list[str]) -> tuple[float, float]:
    """CPU seconds and wall-clock seconds of a Python process."""
    before, start = _child_seconds(), time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return _child_seconds() - before, time.perf_counter() - start


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _by_module(repeats: int) -> dict[str, int]:
    """Microseconds that every import of the help takes by itself: the least of the repeats, since other load only adds to them."""
    found: dict[str, list[int]] = defaultdict(list)
    for _ in range(repeats):
        command = [sys.executable, "-X", "importtime", *COMMANDS["prunetrain --help"]]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        for microseconds, module in _LINE.findall(lines):
            found[module].append(int(microseconds))
    return {module: min(times) for module, times in found.items()}


if __name__ == "__main__":
    main()
