"""Checkpoints come back bit by bit with their network file; anything else than a checkpoint is refused with one line and never runs."""

import math
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from harmful import Harmful
from runs import Recorder, assert_identical, largest_file, settings, write_images
from torch import nn

from prunetrain.errors import CheckpointError, NetworkFileError, OutputError
from prunetrain.graph.load import sha256_of
from prunetrain.paths import RunPaths
from prunetrain.training import state
from prunetrain.training.checkpoints import Checkpoint, load_checkpoint, read_network_of, save_checkpoint
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.pairs import read_pair
from prunetrain.training.run import start_run, stored_config
from prunetrain.training.state import load_state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    return start_run(settings(write_images(folder / "images.npz"), folder, epochs=1, name="x"), Recorder()).run


@pytest.fixture
def run(finished: RunPaths, tmp_path: Path) -> RunPaths:
    """A copy of that run, to be damaged."""
    for folder in (finished.networks, finished.checkpoints):
        shutil.copytree(folder, tmp_path / folder.relative_to(finished.output_dir))
    return RunPaths(tmp_path, finished.name)


def change(run: RunPaths, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the raw content of the last checkpoint."""
    content = torch.load(run.last, weights_only=True)
    edit(content)
    torch.save(content, run.last)


def load(run: RunPaths) -> None:
    """Read the last checkpoint as `--resume` does."""
    config = stored_config(run.last, load_checkpoint(run.last))
    load_state(read_pair(run.last), config, load_data(config, CPU), Environment(CPU))


def refusal(run: RunPaths, kind: type[Exception] = CheckpointError) -> str:
    """The one line with which the last checkpoint is refused."""
    with pytest.raises(kind) as error:
        load(run)
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{run.output_dir}/", "")


def test_round_trip(finished: RunPaths, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(finished.last)
    assert checkpoint.optimizer["state"][0]["momentum_buffer"].abs().sum() > 0
    again = RunPaths(tmp_path, "y").last
    save_checkpoint(again, checkpoint)
    loaded = load_checkpoint(again)
    for item in fields(Checkpoint):
        left, right = getattr(checkpoint, item.name), getattr(loaded, item.name)
        assert_identical(vars(left) if item.name == "progress" else left, vars(right) if item.name == "progress" else right, item.name)


def test_the_macs_of_a_long_run_can_be_read(run: RunPaths) -> None:
    """A ResNet-50 on ImageNet passes 2**63 after 587 epochs."""
    change(
        run,
        lambda content: (content["progress"].update(train_macs=2**70), content["progress"]["history"][0].update(train_macs_total=2**70)),
    )
    load(run)
    assert load_checkpoint(run.last).progress.train_macs == 2**70


def test_content_is_plain_and_documented(finished: RunPaths) -> None:
    content = torch.load(finished.last, weights_only=True)
    assert (content["mark"], content["format"]) == ("prunetrain checkpoint", 3)
    assert content["network_sha256"] == sha256_of((finished.networks / content["network"]).read_text())
    text = (Path(__file__).parent.parent / "docs" / "files.md").read_text(encoding="utf-8")
    for key in (*content, *content["progress"]):
        assert f"`{key}`" in text


def test_nothing_is_loaded_that_can_run(finished: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "load", lambda *args, **named: asked.append(named) or {})
    with pytest.raises(CheckpointError):
        load_checkpoint(finished.last)
    assert [named["weights_only"] for named in asked] == [True]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_what_fails_on_the_device_is_not_the_files_fault(finished: RunPaths, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(state, "load_optimizer", fail)
    with pytest.raises(type(error)) as raised:
        load(finished)
    assert raised.value is error


def test_missing(run: RunPaths) -> None:
    run.last.unlink()
    assert refusal(run) == "checkpoints/x/last.pt: no such checkpoint"


def test_folder(run: RunPaths) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder: name a checkpoint in it, such as .*/checkpoints/x/last.pt$"):
        load_checkpoint(run.checkpoints)
    run.last.unlink()
    with pytest.raises(CheckpointError, match=r"is a folder: name a checkpoint in it, such as .*/checkpoints/x/epoch_\d+.pt$"):
        load_checkpoint(run.checkpoints)
    with pytest.raises(CheckpointError, match=r"/checkpoints is a folder without checkpoints: name a run or a .pt file$"):
        load_checkpoint(run.checkpoints.parent)


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999, -1])
def test_truncated(run: RunPaths, share: float) -> None:
    whole = run.last.read_bytes()
    run.last.write_bytes(whole[: int(len(whole) * share)] if share >= 0 else whole[:-1])
    assert "checkpoints/x/last.pt: damaged, or not a checkpoint of prunetrain" in refusal(run)


def test_random_bytes(run: RunPaths) -> None:
    generator = random.Random(0)
    for size in (1, 10, 1000, 100_000):
        run.last.write_bytes(generator.randbytes(size))
        assert "damaged, or not a checkpoint" in refusal(run)


def test_code_does_not_run(run: RunPaths, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    change(run, lambda content: content["config"].update(name=Harmful(canary)))
    assert "damaged, or not a checkpoint" in refusal(run)
    run.last.write_bytes(pickle.dumps(Harmful(canary)))
    assert "damaged, or not a checkpoint" in refusal(run)
    assert not canary.exists()
    pickle.loads(run.last.read_bytes())
    assert canary.exists()  # so it would have run


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_foreign_files(run: RunPaths) -> None:
    files: dict[str, Callable[[Path], object]] = {
        "state dict": lambda path: torch.save(nn.Linear(2, 3).state_dict(), path),
        "module": lambda path: torch.save(nn.Linear(2, 3), path),
        "tensor": lambda path: torch.save(torch.zeros(3), path),
        "old format": lambda path: torch.save({"model": 1}, path, _use_new_zipfile_serialization=False),
        "script": lambda path: torch.jit.script(nn.Linear(2, 3)).save(path),
        "zip": lambda path: zipfile.ZipFile(path, "w").close(),
        "text": lambda path: path.write_text("epoch,loss\n"),
    }
    for name, write in files.items():
        write(run.last)
        assert "not a checkpoint of prunetrain" in refusal(run), name


@pytest.mark.parametrize(
    ("number", "shown"),
    [(1, "1"), (True, "True"), (2.0, "2.0"), (None, "None"), ("2", "'2'"), (torch.ones(2, 2), "tensor([[1., 1.], [1., 1.]])")],
)
def test_another_format(run: RunPaths, number: object, shown: str) -> None:
    change(run, lambda content: content.update(format=number))
    assert refusal(run) == f"checkpoints/x/last.pt: format {shown}, but this version reads 3: use the version that wrote it"


@pytest.mark.parametrize("key", [item.name for item in fields(Checkpoint)])
def test_missing_part(run: RunPaths, key: str) -> None:
    change(run, lambda content: content.pop(key))
    assert refusal(run) == f"checkpoints/x/last.pt: damaged, it lacks {key}"


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(progress=3),
        lambda content: content["progress"].pop("step"),
        lambda content: content["progress"].update(extra=1),
        lambda content: content.update(model=[1]),
        lambda content: content.update(config={"epochs": "many"}),
        lambda content: content["config"].update(new_setting=1),
        lambda content: content["optimizer"].pop("param_groups"),
        lambda content: content["optimizer"].update(param_groups=[]),
        lambda content: content.update(rng={"cpu": torch.zeros(3)}),
        lambda content: content["progress"]["history"][0].update(lr="0.1"),
        lambda content: content.update(method=3),
        lambda content: content["method"].update(more={}),
        lambda content: content["method"].update(tensors=[]),
        lambda content: content["method"].update(tensors={"keep": {"fc1.weight": torch.ones(3, dtype=torch.bool)}}),
        lambda content: content["method"].update(tensors={"keep": {"fc1.weight": torch.ones_like(content["model"]["fc1.weight"])}}),
        lambda content: content["method"].update(tensors={"early": {"fc1.weight": content["model"]["fc1.weight"]}}),
        lambda content: content["method"].update(tensors={"z": {"fc9.weight": torch.ones(1)}}),
        lambda content: content["method"].update(numbers={"round": float("inf")}),
        lambda content: content["method"].update(numbers={"round": -1}),
        lambda content: content.update(statistics={}),
        lambda content: content.update(statistics={"mean": [0.5]}),
        lambda content: content.update(statistics={"mean": [0.5], "std": [0.0]}),
        lambda content: content.update(statistics={"mean": [0.5], "std": [math.nan]}),
        lambda content: content.update(statistics={"mean": [0.5, 0.5], "std": [0.5]}),
        lambda content: content.update(statistics={"mean": [0.5] * 3, "std": [0.5] * 3}),
        lambda content: content.update(class_names="0123"),
        lambda content: content.update(class_names=[]),
        lambda content: content.update(class_names=["0", "1", "2", 3]),
        lambda content: content.update(class_names=["0", "1", "2", "3" * 5000]),
        lambda content: content.update(class_names=["0", "1", "2"]),
    ],
)
def test_unreadable_part(run: RunPaths, edit: Callable[[dict[str, Any]], object]) -> None:
    change(run, edit)
    assert refusal(run).startswith("checkpoints/x/last.pt: ")


@pytest.mark.parametrize("name", ["../x.py", "../x/epoch_000.py", "/etc/passwd", "epoch_000.py/..", "last.pt", "", 3, None])
def test_network_is_a_plain_file_name(run: RunPaths, name: object) -> None:
    change(run, lambda content: content.update(network=name))
    assert refusal(run) == f"checkpoints/x/last.pt: names {name!r} as its network file; expected a name like epoch_010.py"


def test_network_file_is_missing(run: RunPaths) -> None:
    run.network(1).unlink()
    line = "generated_nets/x/epoch_001.py: no such network file, and checkpoints/x/last.pt needs it: "
    assert refusal(run, NetworkFileError) == line + "copy generated_nets/RUN beside checkpoints/RUN as well"


def test_network_file_was_changed(run: RunPaths) -> None:
    run.network(1).write_text(run.network(1).read_text() + "# a comment\n")
    line = refusal(run, NetworkFileError)
    assert "epoch_001.py is not the file that" in line
    assert "sha256" in line


def test_network_file_that_is_none_does_not_run(run: RunPaths, tmp_path: Path) -> None:
    source = (
        run.network(1).read_text().replace("super().__init__()", f"super().__init__()\n        open({str(tmp_path / 'canary')!r}, 'w')")
    )
    run.network(1).write_text(source)
    change(run, lambda content: content.update(network_sha256=sha256_of(source)))  # a forger would do that
    line = refusal(run, NetworkFileError)
    assert "generated_nets/x/epoch_001.py:14: __init__ may only define layers, not: open(" in line
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda model: model.pop("fc1.weight"), 'Missing key(s) in state_dict: "fc1.weight"'),
        (lambda model: model.update(extra=torch.zeros(1)), 'Unexpected key(s) in state_dict: "extra"'),
        (lambda model: model.update({"fc1.weight": torch.zeros(3, 3)}), "size mismatch for fc1.weight: copying a param with shape "),
        (lambda model: model.update({"fc1.weight": model["fc1.weight"].double()}), "fc1.weight is torch.float64, but the network's is "),
    ],
)
def test_weights_that_do_not_fit(run: RunPaths, edit: Callable[[dict[str, Any]], object], said: str) -> None:
    change(run, lambda content: (edit(content["model"]), content.update(optimizer={}, parameters=[])))
    line = refusal(run)
    assert re.fullmatch(rf"checkpoints/x/last.pt: its weights do not fit generated_nets/x/epoch_001.py: {re.escape(said)}.*", line)


def test_network_file_belongs_to_the_checkpoint(finished: RunPaths) -> None:
    path, source = read_network_of(finished.last, load_checkpoint(finished.last))
    assert (path, source) == (finished.network(1), finished.network(1).read_text())


def test_failed_write_leaves_the_old_checkpoint(run: RunPaths) -> None:
    before, checkpoint = run.last.read_bytes(), load_checkpoint(run.last)
    with largest_file(len(before) // 2), pytest.raises(OutputError, match=r"^cannot write .*last.pt: file too large$"):
        save_checkpoint(run.last, checkpoint)
    assert run.last.read_bytes() == before
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["epoch_000.pt", "epoch_001.pt", "last.pt", "metrics.jsonl"]
