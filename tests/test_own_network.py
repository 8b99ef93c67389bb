"""A user's own network from a file of theirs: trained, cut, resumed without that file, evaluated; each command in a process of its own."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths

TOP = Path(__file__).parent.parent
SOURCES = Path(__file__).parent / "networks_of_users"
# So strong a lasso that a few channels go within four short epochs, and the network learns nevertheless.
TRAIN = "--model nets/my_net.py:Net --model-arg width=16 --model-arg dropout=0.1 --penalty-ratio 0.62 --prune-interval 2 --epochs 4"


def printed(*args: str, folder: Path) -> str:
    """What a command prints; it must succeed and say nothing on stderr."""
    done = subprocess.run([sys.executable, str(TOP / "cli.py"), *args], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four epochs; the user's files are gone since."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(SOURCES, folder / "nets", ignore=shutil.ignore_patterns("__pycache__"))
    text = printed("train", *TRAIN.split(), folder=folder)
    assert re.search(r"cut \d+ of \d+ channels", text)
    shutil.rmtree(folder / "nets")
    return folder


@pytest.fixture
def run(folder: Path) -> RunPaths:
    return RunPaths(folder, "Net-digits")


def test_channels_go_and_the_network_is_the_users(run: RunPaths) -> None:
    dense, cut = read_graph(run.network(0)), read_graph(run.network(4))
    assert dense.class_name == cut.class_name == "Net"
    assert dense.layer("stem_0")["out_channels"] == 16  # as --model-arg asked
    assert dense.layer("head_3")["in_features"] == 32
    assert dense.layer("separable_depthwise")["groups"] == 32
    assert 0 < costs(cut).channels < costs(dense).channels
    text = run.network(4).read_text()
    assert "torch.cat(" in text
    assert "F.dropout(" in text


def test_it_goes_on_and_is_measured_without_the_users_file(folder: Path, run: RunPaths) -> None:
    before = costs(read_graph(run.network(4))).channels
    text = printed("train", "--resume", str(run.last), "--epochs", "6", folder=folder)
    assert text.startswith(f"resuming from {run.last}\n")
    assert costs(read_graph(run.network(6))).channels <= before
    history = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["epoch"] for line in history] == [1, 2, 3, 4, 5, 6]
    found = json.loads(printed("evaluate", str(run.last), "--json", folder=folder))
    assert found["top1"] == history[-1]["val_top1"]
    assert found["top1"] > 0.5
