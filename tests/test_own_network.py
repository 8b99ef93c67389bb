"""A user's own network from a file of theirs: trained, cut, resumed without that file, evaluated; each command in a process of its own."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import invoke

from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import load_checkpoint

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


@pytest.mark.parametrize("flags", [("--target-macs", "0.5", "--target-by", "1"), ("--target-macs", "0", "--penalty-ratio", "0.2")], ids=str)
def test_what_is_frozen_and_what_is_fixed_stay_as_they_are(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Only channels go, whatever makes them smaller; and the file says what is not trained."""
    run = RunPaths(tmp_path, "frozen")
    train = ("train", "--model", f"{SOURCES}/frozen.py:Frozen", "--epochs", "5", "--name", "frozen", "--output-dir", tmp_path)
    assert invoke(*train, *flags).exit_code == 0
    assert invoke("train", "--resume", run.last, "--epochs", "6").exit_code == 0
    before, after = load_checkpoint(run.checkpoint(0)).model, load_checkpoint(run.last).model
    for name in ("stem", "blur"):
        assert re.search(rf"self.{name} = nn.Conv2d\(.*\).requires_grad_\(False\)  # ", run.network(6).read_text())
    assert f"self.scale = nn.Parameter(torch.zeros({len(after['scale'])}, 1, 1), requires_grad=False)" in run.network(6).read_text()
    assert set(after["scale"].flatten().tolist()) <= set(before["scale"].flatten().tolist())
    assert len(after["scale"]) == len(after["blur.weight"]) == len(after["conv.weight"]) < 32
    rows = [before["stem.bias"].tolist().index(bias) for bias in after["stem.bias"].tolist()]
    assert torch.equal(after["stem.weight"], before["stem.weight"][rows])
    assert torch.equal(after["blur.weight"], before["blur.weight"][: len(after["blur.weight"])])  # all filters are alike
    assert not torch.equal(after["fc.bias"], before["fc.bias"])
    assert load_checkpoint(run.last).progress.history[-1]["val_top1"] > 0.5


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("HalfFrozen", "conv.bias is frozen, but not all of its layer: freeze whole layers, or make it a buffer"),
        ("all_frozen", "has no parameters to train: all of them are frozen"),
    ],
)
def test_what_cannot_be_trained_as_it_says_is_refused(network: str, said: str, tmp_path: Path) -> None:
    result = invoke("train", "--model", f"{SOURCES}/frozen.py:{network}", "--output-dir", tmp_path, "--epochs", "1")
    assert (result.exit_code, said in result.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("last", "said"), [("torch.softmax(x, 1)", "F.softmax"), ("x.relu()", "F.relu"), ("torch.log_softmax(x, 1)", "")])
def test_a_network_that_returns_no_logits(tmp_path: Path, last: str, said: str) -> None:
    """log_softmax may stay: softmax of it is that of the logits."""
    forward = f"x = self.fc(x.flatten(1))\n        return {last}"
    source = (
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.fc = torch.nn.Linear(64, 10)\n\n    def forward(self, x):\n        {forward}\n"
    )
    (tmp_path / "net.py").write_text(source)
    result = invoke("train", "--model", f"{tmp_path / 'net.py'}:Net", "--output-dir", tmp_path, "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert (f"net.py:Net ends in {said}, but the loss expects logits" in result.output) == bool(said)
