"""Spoilt files, each given to a real command: `benchmarks/fuzz.py` in short, and the proof that it notices what it looks for."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).parent.parent
SEED = "tests"
CASES_A_KIND = 18

# The worker, with a reader that believes everything, and pickles that call.
SABOTAGED = """
import fuzz_kinds
import fuzz_pickles
import fuzz_worker
import prunetrain.models.torch_files as reader
import torch

def load(*arguments, load=torch.load, **named):
    return load(*arguments, **{**named, "weights_only": False})

fuzz_kinds.EVERY_COMMAND = fuzz_kinds.EVERY_COMMAND[2:3]
fuzz_kinds.spoil_pickle = fuzz_pickles._call
fuzz_pickles._FUNCTIONS = ("os system", "os mkdir")
reader.check_torch_file = lambda file: None
torch.load = load
fuzz_worker.main()
"""


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/fuzz.py`, whose processes import prunetrain from here."""
    monkeypatch.syspath_prepend(TOP / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", f"{TOP}:{TOP / 'benchmarks'}")
    return import_module("fuzz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers are, and what they spoil."""
    return tmp_path_factory.mktemp("fuzz")


def test_spoilt_files_are_refused_in_one_line_or_work(fuzz: ModuleType, folder: Path) -> None:
    cases = [f"{kind}:{number}" for number in range(CASES_A_KIND) for kind in fuzz.KINDS]
    again = cases[: 2 * len(fuzz.KINDS)]
    results = fuzz.run(folder, SEED, [*cases, *again], 1)
    assert not results.violations, f"see one again: python benchmarks/fuzz.py --seed {SEED} --only KIND:NUMBER\n" + "\n".join(
        results.violations
    )
    assert results.outcomes.total() == len(cases) + len(again)
    assert results.lines[-len(again) :] == results.lines[: len(again)]  # seed, kind and number decide everything
    for kind in fuzz.KINDS:
        assert results.outcomes[kind, "refused"] >= 3, f"damage of the kind {kind} changes too little"
    assert sum(results.outcomes[kind, "success"] for kind in fuzz.KINDS) >= 10  # refusing everything would be no art


@pytest.mark.usefixtures("fuzz")
def test_foreign_code_would_be_noticed(folder: Path) -> None:
    """With weights_only=False and nothing checked, calls in pickles run; what they make is seen, and that a program was started."""
    cases = [f"checkpoint-pickle:{number}" for number in range(CASES_A_KIND)]
    command = [sys.executable, "-c", SABOTAGED, str(folder / "0"), SEED, *cases]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    outcomes = [outcome for outcome in map(json.loads, done.stdout.splitlines()) if "problems" in outcome]
    problems = [problem for outcome in outcomes for problem in outcome["problems"]]
    assert "foreign code ran" in problems
    assert any(problem.startswith("did os.system") for problem in problems)


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "after", "problem"),
    [
        (0, "fine\n", "", {"a": b"1"}, None),
        (0, "fine\n", "", {"a": b"2", "b": b""}, None),
        (2, "", "error: no\n", {"a": b"1"}, None),
        (1, "", "error: no\n", {"a": b"1"}, "exit code 1"),
        (-9, "", "", {"a": b"1"}, "exit code -9"),
        (None, "", "", {"a": b"1"}, "exit code None"),
        (2, "", "", {"a": b"1"}, "not one line"),
        (2, "", "error: no\nreally\n", {"a": b"1"}, "not one line"),
        (2, "", "warning: no\n", {"a": b"1"}, "not one line"),
        (2, "", "error: no", {"a": b"1"}, "not one line"),
        (2, "", "error: Traceback\n", {"a": b"1"}, "a traceback"),
        (0, "", "UserWarning: x\n", {"a": b"1"}, "words on stderr"),
        (2, "", "error: \x1b[31m\n", {"a": b"1"}, "characters that steer a terminal"),
        (0, "\x1b[31m\n", "", {"a": b"1"}, "characters that steer a terminal"),
        (2, "", "error: longer than 60 seconds\n", {"a": b"1"}, "too slow"),
        (2, "", "error: out of memory\n", {"a": b"1"}, "memory ran out"),
        (2, "", "error: no\n", {"a": b"2"}, "failed, and changed a"),
        (2, "", "error: no\n", {"a": b"1", "b": b""}, "failed, and changed b"),
        (2, "", "error: no\n", {}, "failed, and changed a"),
        (2, "", "error: training diverged\n", {"a": b"1", "b": b""}, None),
        (2, "", "error: training diverged\n", {"a": b"2"}, "failed, and changed a"),
        (0, "", "", {"a": b"1", "b.tmp": b""}, "left ['b.tmp']"),
    ],
)
@pytest.mark.usefixtures("fuzz")
def test_what_counts_as_a_violation(code: int | None, stdout: str, stderr: str, after: dict[str, bytes], problem: str | None) -> None:
    problems = import_module("fuzz_worker").problems_of(code, stdout, stderr, {"a": b"1"}, after)
    assert [found.startswith(problem or "") for found in problems] == ([True] if problem else [])
