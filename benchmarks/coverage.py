"""Which networks of torchvision and timm can be flattened and cut, and whether they compute the same: every claim is tested by running it.

    python benchmarks/coverage.py runs/coverage                  # torchvision
    python benchmarks/coverage.py runs/coverage --timm           # timm
    python benchmarks/coverage.py runs/coverage --table docs/coverage.md

In: a folder for the results. Out: `torchvision.jsonl` and `timm.jsonl` in it, one line per network; existing ones are not measured again.
Each network gets its own process, so that one that crashes or runs too long is recorded like any other.
"""

import argparse
import json
import multiprocessing
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from coverage_measure import measure
from coverage_models import TIMM, TORCHVISION, Case, timm_cases, torchvision_cases
from torch import nn

from prunetrain.graph.trace import trace


def main() -> None:
    """Measure one network, all of them, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder for the results")
    parser.add_argument("--timm", action="store_true", help="networks of timm instead of torchvision's")
    parser.add_argument("--only", default="", help="names, comma-separated; measured even if there are results")
    parser.add_argument("--limit", type=float, default=900, help="seconds a network may take")
    parser.add_argument("--table", type=Path, help="write this file from the results and measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        from coverage_table import write

        write(arguments.results, arguments.table)
        return
    cases = timm_cases() if arguments.timm else torchvision_cases()
    only = [word for word in arguments.only.split(",") if word]
    if only:
        cases = [case for case in cases if case.spec.partition(":")[2] in only]
    path = arguments.results / f"{TIMM if arguments.timm else TORCHVISION}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    _all(cases, path, arguments.limit, again=bool(only))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read the results by spec; the last line of a network counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {line["spec"]: line for line in map(json.loads, lines)}


def _all(cases: list[Case], path: Path, limit: float, *, again: bool) -> None:
    done = read(path)
    warnings.simplefilter("ignore")  # warnings from the networks
    trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4))  # imports what the first trace imports
    for number, case in enumerate(cases, start=1):
        if case.spec in done and not again:
            continue
        found = _in_a_process(case, limit)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{number}/{len(cases)} {case.spec}: {_verdict(found)}", flush=True)


def _in_a_process(case: Case, limit: float) -> dict[str, Any]:
    """A fork of this one, which has everything imported and traced nothing but a toy."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(case, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return {"spec": case.spec, "failed": "process", "why": f"not done after {limit:.0f} s"}
        found: dict[str, Any] = receiver.recv()
        return found
    except EOFError:
        process.join()
        return {"spec": case.spec, "failed": "process", "why": f"ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _send(case: Case, sender: Connection) -> None:
    sender.send(measure(case))


def _verdict(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"failed at {found['failed']}: {found['why']}"
    took = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in found["seconds"].items())
    return (
        f"eval {found['identical_in_eval']}, other size {found['other_size']}, training {found['different_in_training'] or 'identical'}, "
        f"cuttable {found['cuttable_share']:.1%}, {len(found['stuck'])} convs stuck, error {found['error']:.0e}, seconds: {took}"
    )


if __name__ == "__main__":
    main()
