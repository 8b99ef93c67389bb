"""The examples run as a person runs them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent


def run(example: str, folder: Path, epochs: int) -> str:
    command = [
        sys.executable,
        str(TOP / "examples" / example),
        "--epochs",
        str(epochs),
        "--interval",
        "1",
        "--output",
        str(folder / "nets"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_plain_loop(tmp_path: Path) -> None:
    lines = run("plain_loop.py", tmp_path, 2).splitlines()
    assert len(lines) == 2
    counts = []
    for line in lines:
        found = re.match(r"epoch \d: top-1 ([\d.]+)% -> ([\d.]+)%, (\d+) -> (\d+) channels, ([\d,]+) -> ([\d,]+) MACs: ", line)
        assert found, line
        assert found[1] == found[2]
        counts += [int(found[3]), int(found[4])]
    assert counts[0] == 186
    assert counts[1:-1:2] == counts[2::2]
    assert counts[-1] < 186
    assert sorted(path.name for path in (tmp_path / "nets").iterdir()) == [f"epoch_00{n}.{kind}" for n in (1, 2) for kind in ("pt", "py")]


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed; it is no part of the dev extra")
def test_lightning_callback(tmp_path: Path) -> None:
    *cuts, last = run("lightning_callback.py", tmp_path, 2).splitlines()
    counts = [re.match(r"epoch \d: (\d+) -> (\d+) channels: ", line) for line in cuts]
    assert all(counts) and len(counts) == 2
    assert counts[0] and counts[-1] and int(counts[-1][2]) < int(counts[0][1]) == 186
    assert re.fullmatch(r"top-1 [\d.]+%, [\d,]+ parameters", last)
