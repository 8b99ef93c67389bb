"""Every command from its arguments to what it prints and writes."""

import csv
import io
import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from runs import arguments, invoke, settings, write_images

from prunetrain import zoo
from prunetrain.commands import COMMANDS, main
from prunetrain.graph.costs import costs
from prunetrain.graph.load import load_network, read_graph
from prunetrain.paths import RunPaths
from prunetrain.report.history import read_metrics
from prunetrain.report.tables import format_count
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.evaluation import evaluate_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet-300-100 trained by the command line as the run `lenet-0.94`; what it printed is in `out.txt`."""
    folder = tmp_path_factory.mktemp("runs").resolve()
    images = write_images(folder / "images.npz")
    result = invoke(*arguments(settings(images, folder, name="lenet-0.94")))
    assert (result.exit_code, result.stderr) == (0, "")
    (folder / "out.txt").write_text(result.stdout)
    return folder


@pytest.fixture
def run(folder: Path) -> RunPaths:
    return RunPaths(folder, "lenet-0.94")


def printed(*args: str | Path) -> str:
    """What a command prints, with single spaces; it must succeed."""
    result = invoke(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    return re.sub(r" +", " ", result.stdout)


def parsed(*args: str | Path) -> Any:
    """What a command prints as JSON."""
    return json.loads(printed(*args, "--json"))


WITHOUT_DEFAULT = ("config", "resume", "milestones", "model_args", "weights", "layer_rates", "save_epochs", "threshold_std", "cache")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_defaults(name: str) -> None:
    text = printed(name, "--help")
    assert text.startswith(f"Usage: prunetrain {name} ")
    command = main.get_command(click.Context(main), name)
    assert command
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag and not option.required:
            record = option.get_help_record(click.Context(command))
            assert record
            without = option.name in WITHOUT_DEFAULT or (name, option.name) == ("train", "name")
            assert ("[default: " in record[1]) != without, option.name


def test_train_prints_a_line_an_epoch_and_every_cut(folder: Path, run: RunPaths) -> None:
    lines = (folder / "out.txt").read_text().splitlines()
    dense, final = costs(read_graph(run.network(0))), costs(read_graph(run.network(4)))
    assert lines[0].endswith("images.npz: 320 training and 80 validation images of 1x8x8, 4 classes")
    assert lines[1].split() == "epoch loss train val top-1 MACs left images/s time left".split()
    assert [line.split()[0] for line in lines if "/4 " in line] == ["1/4", "2/4", "3/4", "4/4"]
    cuts = [line.split() for line in lines if line.startswith("  cut ")]
    assert [(cut[1], cut[-1]) for cut in cuts] == [
        (str(404 - costs(read_graph(run.network(2))).channels), str(run.network(2))),
        (str(costs(read_graph(run.network(2))).channels - final.channels), str(run.network(4))),
    ]
    end = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines[-5:])
    assert end["MACs"].endswith(f": {1 - final.macs / dense.macs:.1%} removed")
    assert end["parameters"].endswith(f": {1 - final.params / dense.params:.1%} removed")
    trained = load_checkpoint(run.last).progress.train_macs / (3 * dense.macs * 4 * 320)
    assert end["training MACs"] == f"{1 - trained:.1%} removed"
    assert (end["network"], end["checkpoint"]) == (str(run.network(4)), str(run.last))


def test_train_has_no_table_where_all_epochs_are_done(run: RunPaths) -> None:
    lines = printed("train", "--resume", run.last).splitlines()
    assert lines[1] == "epoch 4 was the last: continue with a larger --epochs"
    assert lines[2].endswith("images.npz: 320 training and 80 validation images of 1x8x8, 4 classes")
    assert lines[3].startswith("validation top-1 ")


def test_train_lists_models() -> None:
    lines = printed("train", "--list-models").splitlines()
    spelled = [line.split()[0] for line in lines]
    assert (sorted(spelled[:-3]), spelled[-3:]) == (list(zoo.names()), ["torchvision:NAME", "timm:NAME", "FILE.py:NAME"])
    assert "resnet18-cifar ResNet-18 with a stem for CIFAR" in lines


def test_train_on_digits_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed("train", "--model", "lenet-300-100", "--epochs", "2")
    assert "validation top-1" in text
    assert (tmp_path / "generated_nets" / "lenet-300-100-digits" / "epoch_000.py").exists()
    assert load_checkpoint(tmp_path / "checkpoints" / "lenet-300-100-digits" / "last.pt").config["target_macs"] == 0.15  # the recipe's


def test_evaluate(run: RunPaths) -> None:
    found = evaluate_checkpoint(run.last, {})
    expected = {name: getattr(found, name) for name in ("loss", "top1", "top5", "balanced_accuracy", "images")}
    expected |= {"classes": [asdict(one) for one in found.classes], "confusion": found.confusion.matrix()}
    assert parsed("evaluate", run.last) == expected
    balanced = f"balanced accuracy {found.balanced_accuracy:.2%}"
    assert printed("evaluate", run.last) == f"loss {found.loss:.4f}, top-1 {found.top1:.2%}, {balanced}\n"  # of four classes no top-5
    assert found.top1 == load_checkpoint(run.last).progress.history[-1]["val_top1"]


def test_evaluate_on_other_images(run: RunPaths, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other.npz", val=7, seed=9)
    found = parsed("evaluate", run.last, "--data-dir", other, "-b", "16", "--amp", "bfloat16", "--channels-last", "--device", "cpu")
    assert found["top1"] * 7 == pytest.approx(round(found["top1"] * 7))


def test_reconfigure(folder: Path, run: RunPaths) -> None:
    text = printed("reconfigure", run.checkpoint(2), "--threshold", "1e9", "--name", "small", "--timing")
    small = RunPaths(folder, "small")
    assert [layer["out_features"] for layer in read_graph(small.network(2)).layers] == [1, 1, 4]
    lines = dict(line.split(" ", 1) for line in text.splitlines())
    before = costs(read_graph(run.network(2)))
    assert lines["channels"] == f"{before.channels} -> 6"
    assert lines["MACs"].startswith(f"{before.macs / 1000:.3g} K -> 69 (")
    assert "every channel of fc1, fc2 was dead; the strongest stays" in text
    assert (lines["network"], lines["checkpoint"]) == (str(small.network(2)), str(small.checkpoint(2)))
    assert re.fullmatch(r"read [\d.]+, select [\d.]+, slice [\d.]+, write [\d.]+, load [\d.]+", lines["seconds"])
    assert f"\nmeasure prunetrain evaluate {small.checkpoint(2)}\n" in text
    assert f"\ntrain on prunetrain train --resume {small.checkpoint(2)}\n" in text
    rounded = printed("reconfigure", run.checkpoint(2), "--threshold", "1e9", "--round-to", "16", "--output-dir", folder / "elsewhere")
    moved = RunPaths(folder / "elsewhere", "lenet-0.94-cut")
    assert str(moved.network(2)) in rounded
    assert [layer["out_features"] for layer in read_graph(moved.network(2)).layers] == [16, 16, 4]


def test_reconfigure_says_how_to_train_a_finished_run_on(run: RunPaths, tmp_path: Path) -> None:
    text = printed("reconfigure", run.last, "--name", "on", "--output-dir", tmp_path / "a b")
    (command,) = (line.removeprefix("train on prunetrain ") for line in text.splitlines() if line.startswith("train on"))
    assert command.endswith(" --epochs 14")
    result = invoke(*shlex.split(command.removesuffix("14") + "5"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert read_metrics(RunPaths(tmp_path / "a b", "on"))[-1]["epoch"] == 5


def test_reconfigure_says_that_there_was_nothing_to_cut(folder: Path, run: RunPaths, tmp_path: Path) -> None:
    words = "nothing to cut: a larger --threshold counts more channels as dead, which may cost accuracy\n"
    assert words not in printed("reconfigure", run.checkpoint(2), "--threshold", "1e9", "--output-dir", tmp_path)
    assert words in printed("reconfigure", RunPaths(tmp_path, "lenet-0.94-cut").checkpoint(2))


def test_a_runs_name_is_its_last_checkpoint(folder: Path, run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    expected = printed("evaluate", run.last)
    assert printed("evaluate", "lenet-0.94") == printed("evaluate", "generated_nets/lenet-0.94") == expected
    for command in (("export", "lenet-0.94", "-o", "net.csr"), ("export", "checkpoints/lenet-0.94/last.pt", "-o", "same.csr")):
        printed(*command)
    assert Path("net.csr").read_bytes() == Path("same.csr").read_bytes()
    assert "checkpoint checkpoints/again/epoch_004.pt\n" in printed("reconfigure", "lenet-0.94", "--name", "again", "--output-dir", ".")
    printed("prune", "lenet-0.94", "--method", "magnitude", "--rate", "0.5", "--epochs", "0", "--name", "pruned", "--output-dir", tmp_path)
    assert RunPaths(tmp_path, "pruned").last.exists()
    monkeypatch.chdir(tmp_path)
    assert printed("evaluate", "pruned") != expected
    Path("pruned").symlink_to(run.last)  # a file of this name comes first
    assert printed("evaluate", "pruned") == expected


def test_the_name_of_a_run_by_reconfigure_is_its_only_checkpoint(run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed("reconfigure", run.last, "--threshold", "0.01", "--name", "cut", "--output-dir", ".")
    cut = RunPaths(Path(), "cut")
    assert [*cut.checkpoint_files()] == [4]
    assert not cut.last.exists()
    assert printed("evaluate", "cut") == printed("evaluate", cut.checkpoint(4))
    shutil.copy(cut.checkpoint(4), cut.checkpoint(0))  # no run by reconfigure: one that lost its last.pt
    assert invoke("evaluate", "cut").stderr == "error: checkpoints/cut/last.pt: no such checkpoint\n"


def test_inspect_network(run: RunPaths) -> None:
    graph = read_graph(run.network(4))
    found = parsed("inspect", run.network(4))
    assert found["totals"]["macs"] == costs(graph).macs
    assert found["totals"]["params"] == sum(parameter.numel() for parameter in load_network(run.network(4)).parameters())
    assert found["dense_totals"]["channels"] == 404
    assert [row["layer"] for row in found["layers"]] == ["fc1", "fc2", "fc3"]
    assert [row["was"] for row in found["layers"]] == [300, 100, 4]
    assert parsed("inspect", run.last) == found  # the checkpoint's network
    text = printed("inspect", run.network(4))
    assert f"fc1 {graph.layers[0]['out_features']} {graph.layers[0]['out_features']} of 300" in text
    assert f"of the dense network {costs(graph).channels / 404:.1%}" in text


def test_inspect_change(run: RunPaths) -> None:
    found = parsed("inspect", run.network(0), run.network(4))
    kept = {layer.name: layer["out_features"] for layer in read_graph(run.network(4)).layers}
    assert {row["layer"]: row["channels"] for row in found["layers"]} == {
        "fc1": [300, kept["fc1"]],
        "fc2": [100, kept["fc2"]],
        "fc3": [4, 4],  # reads fewer
    }
    assert found["totals"]["channels"] == [404, sum(kept.values())]
    assert parsed("inspect", run.checkpoint(0), run.last) == found
    assert f"fc1 300 -> {kept['fc1']}" in printed("inspect", run.network(0), run.last)
    assert printed("inspect", run.network(4), run.last) == "no layer differs\n"


def test_inspect_two_runs(folder: Path, run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for rate in ("0.5", "0.9"):
        printed("prune", "lenet-0.94", "--method", "magnitude", "--rate", rate, "--epochs", "1", "--name", f"masked-{rate}")
    left, right = parsed("inspect", "masked-0.5", "masked-0.9")["runs"]
    last = load_checkpoint(RunPaths(folder, "masked-0.9").last).progress.history[-1]
    expected = {"val_top1": last["val_top1"], "nonzero_params": last["nonzero_params"], "macs": last["macs"], "params": last["params"]}
    assert right == {"run": "masked-0.9", "epochs": 5, **expected}
    assert printed("inspect", "masked-0.5", "masked-0.9").splitlines() == [
        "no layer differs",
        "",
        f"top-1 {left['val_top1']:.2%} -> {right['val_top1']:.2%}",
        f"MACs {format_count(left['macs'])} -> {format_count(right['macs'])}",
        f"not zero {format_count(left['nonzero_params'])} -> {format_count(right['nonzero_params'])}",
    ]
    printed("prune", "lenet-0.94", "--method", "magnitude", "--rate", "0.5", "--epochs", "0", "--name", "at-once")
    assert "not zero \N{EN DASH} -> " in printed("inspect", "at-once", "lenet-0.94")  # no epoch tells
    assert "runs" not in parsed("inspect", "masked-0.5", run.last)


def test_inspect_run_by_name_or_folder(folder: Path, run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parsed("inspect", "lenet-0.94", "--output-dir", folder)
    assert [row["epoch"] for row in found["networks"]] == [0, 2, 4]
    assert found["metrics"] == load_checkpoint(run.last).progress.history
    assert parsed("inspect", run.checkpoints) == parsed("inspect", run.networks) == found
    text = printed("inspect", run.checkpoints)
    assert text.startswith("run lenet-0.94")
    assert "epoch_004.py" in text
    monkeypatch.chdir(folder)
    Path("lenet-0.94").mkdir()  # a folder of the same name is not in the way
    assert parsed("inspect", "lenet-0.94")["run"] == "lenet-0.94"
    assert parsed("inspect", "lenet-0.94", run.network(0))["totals"]["channels"][1] == 404  # its newest network
    monkeypatch.chdir(run.networks)
    assert parsed("inspect", ".")["run"] == "lenet-0.94"


def test_inspect_as_csv(folder: Path, run: RunPaths) -> None:
    def table(*args: str | Path) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(printed("inspect", *args, "--csv"))))

    assert [(row["layer"], row["was"]) for row in table(run.network(4))] == [("fc1", "300"), ("fc2", "100"), ("fc3", "4")]
    assert [row["channels_before"] for row in table(run.network(0), run.last)] == ["300", "100", "4"]
    assert table(run.network(4), run.last) == []
    assert [row["epoch"] for row in table("lenet-0.94", "--output-dir", folder)] == ["1", "2", "3", "4"]
    result = invoke("inspect", run.last, "--csv", "--json")
    assert (result.exit_code, result.stderr) == (2, "error: --json and --csv are two formats of the same output: give only one of them\n")


def test_inspect_needs_no_metrics_and_ignores_other_files(folder: Path, tmp_path: Path, run: RunPaths) -> None:
    other = RunPaths(tmp_path, "x")
    other.networks.mkdir(parents=True)
    for name in ("epoch_000.py", "epoch_000_edited.py"):
        (other.networks / name).write_bytes(run.network(0).read_bytes())
    found = parsed("inspect", "x", "--output-dir", tmp_path)
    assert ([row["epoch"] for row in found["networks"]], found["metrics"]) == ([0], [])


def test_flatten(tmp_path: Path) -> None:
    target = tmp_path / "nets" / "small.py"
    text = printed("flatten", "resnet20", "-o", target, "--input-shape", "1x8x8", "--num-classes", "4", "--seed", "3")
    assert re.fullmatch(r".*/small\.py: 2\.53 M MACs per image of 1x8x8, 272 K parameters; weights in .*/small\.pt\n", text)
    torch.manual_seed(3)
    model = zoo.build("resnet20", input_shape=(1, 8, 8), num_classes=4).eval()
    flat = load_network(target).eval()
    flat.load_state_dict(torch.load(target.with_suffix(".pt"), weights_only=True))
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(flat(images), model(images), rtol=0, atol=0)


def test_flatten_own_network_with_arguments_and_weights(tmp_path: Path) -> None:
    source, target, weights = tmp_path / "my.py", tmp_path / "flat.py", tmp_path / "w.pt"
    source.write_text(
        "from torch import nn\ndef net(num_classes, width): return nn.Sequential(nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    torch.save({"1.weight": torch.full((3, 64), 0.5), "1.bias": torch.zeros(9)}, weights)
    command = ("flatten", f"{source}:net", "-o", target, "--input-shape", "1,8,8", "--num-classes", "3", "--weights", weights)
    text = printed(*command, "--model-arg", "width=64").splitlines()
    assert text[:2] == [
        "weights: 1 of the network's 2 tensors are in the file",
        " of another shape, newly initialised: 1.bias (saved as 9, here 3)",
    ]
    assert text[2].startswith(f"{target}: 192 MACs per image of 1x8x8, 195 parameters; weights in {tmp_path}/flat.pt")
    assert torch.equal(torch.load(tmp_path / "flat.pt", weights_only=True)["layer_1.weight"], torch.full((3, 64), 0.5))
    assert source.exists()
    result = invoke(*command, "--force")
    assert (result.exit_code, result.stderr) == (2, f"error: {source}:net needs width: give --model-arg width=VALUE\n")


def test_flatten_says_what_the_file_does_not_keep_frozen(tmp_path: Path) -> None:
    source = Path(__file__).parent / "networks_of_users" / "frozen.py"
    shape = ("--input-shape", "1,8,8", "--num-classes", "3")
    said = printed("flatten", f"{source}:HalfFrozen", "-o", tmp_path / "half.py", *shape).splitlines()
    assert said[0] == "conv.bias is frozen, but not all of its layer: the file will train it; freeze whole layers, or make it a buffer"
    assert len(said) - 1 == len(printed("flatten", f"{source}:Frozen", "-o", tmp_path / "whole.py", *shape).splitlines()) == 1
    trained = {name for name, parameter in load_network(tmp_path / "whole.py").named_parameters() if parameter.requires_grad}
    assert trained == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


def test_flatten_does_not_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "x.py"
    command = ("flatten", "lenet-300-100", "-o", target, "--input-shape", "1,8,8")
    target.with_suffix(".pt").write_text("mine")
    result = invoke(*command)
    assert (result.exit_code, result.stderr) == (2, f"error: {tmp_path}/x.pt already exists: choose another name, or pass --force\n")
    assert not target.exists()
    printed(*command, "--force")
    assert target.exists()
