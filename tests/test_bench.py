"""`prunetrain bench` from its arguments to what it prints; the figures themselves are this machine's."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import residual
from runs import invoke
from sketch import Sketch

from prunetrain.files import write_text
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import Value
from prunetrain.graph.load import read_graph
from prunetrain.graph.render import render
from prunetrain.paths import RunPaths
from prunetrain.report import benchmarks
from prunetrain.training.benchmarking import allocator, measuring, peaks
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.measuring import Measurements
from prunetrain.training.benchmarking.peaks import Peaks
from prunetrain.training.benchmarking.profiling import StepProfile

FAST = ("--rounds", "2", "--batch-size", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run whose dense network is `residual()`, and whose newest has half the channels."""
    run = RunPaths(tmp_path_factory.mktemp("bench"), "toy")
    for folder in (run.networks, run.checkpoints):
        folder.mkdir(parents=True)
    write_text(run.network(0), render(residual()))
    write_text(run.network(10), render(residual(stem=4, inner=(4, 8), wide=8)))
    return run


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A roofline of a small matrix product and copy, for speed."""
    monkeypatch.setitem(peaks._SIDES, "cpu", 64)
    monkeypatch.setitem(peaks._COPIED, "cpu", 2**16)


def printed(*args: str | Path) -> str:
    result = invoke("bench", *args, *FAST)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def parsed(*args: str | Path) -> Any:
    return json.loads(printed(*args, "--json"))


def test_one_network(run: RunPaths) -> None:
    described = parsed(run.network(10))
    cost = costs(read_graph(run.network(10)))
    (network,) = described["networks"]
    assert (network["macs"], network["params"]) == (cost.macs, cost.params)
    for key in ("train_step_seconds", "inference_seconds", "inference_one_image_seconds", "lasso_share_of_train_step"):
        assert 0 < network[key]["low"] <= network[key]["median"] <= network[key]["high"]
    assert network["lasso_share_of_train_step"]["high"] < 1
    assert network["train_peak_memory_bytes"] > 3 * 4 * cost.params
    assert "comparison" not in described
    assert "profiles" not in described
    machine = described["machine"]
    assert (machine["batch_size"], machine["amp"], machine["channels_last"], machine["rounds"]) == (2, "off", False, 2)
    assert (machine["threads"], machine["torch"]) == (torch.get_num_threads(), torch.__version__)


def test_a_run_is_its_dense_and_its_newest_network(run: RunPaths) -> None:
    described = parsed(run.networks)
    assert [network["network"] for network in described["networks"]] == [str(run.network(0)), str(run.network(10))]
    compared = described["comparison"]
    before, after = (costs(read_graph(run.network(epoch))) for epoch in (0, 10))
    assert compared["macs_ratio"] == after.macs / before.macs
    assert compared["params_ratio"] == after.params / before.params
    assert 0 < compared["train_peak_memory_ratio"] < 1
    assert set(compared["time_saved_of_macs_saved"]) == {"median", "low", "high"}
    by_name = parsed("toy", run.network(0), "--output-dir", run.output_dir)
    assert [network["network"] for network in by_name["networks"]] == [str(run.network(10)), str(run.network(0))]
    assert by_name["comparison"]["time_saved_of_macs_saved"] is None  # the second has more MACs


def test_tables(run: RunPaths) -> None:
    text = printed(run.network(0), run.network(10), "--layers", "--amp", "--channels-last", "--threads", "1")
    first, *lines = text.splitlines()
    assert re.search(r", 1 thread, bfloat16, channels-last, batch 2; torch .*; median of 2 rounds \(quartiles\), CPU time$", first)
    assert lines[1].split() == ["of", "a", "network", "toy/epoch_000.py", "toy/epoch_010.py", "ratio"]
    labels = ["training step", "inference, a batch", "inference, one image", "group lasso", "peak memory of training", "MACs", "parameters"]
    assert all(line.startswith(label) for line, label in zip(lines[2:], labels, strict=False))
    assert re.search(r"^time saved / MACs saved in a training step: -?\d+\.\d\d \(", text, re.MULTILINE)
    assert re.search(r"^peaks of this machine: [\d.]+ [MGT]MAC/s in a matrix product, [\d.]+ [MGT]B/s in a copy$", text, re.MULTILINE)
    assert len(re.findall(r"^layer2_0_downsample_0 ", text, re.MULTILINE)) == 2
    assert len(re.findall(r"^Conv2d +6 ", text, re.MULTILINE)) == 2


def test_networks_with_as_many_macs_have_no_ratio_of_savings(run: RunPaths) -> None:
    """Time saved per MAC saved would be noise."""
    text = printed(run.network(10), run.network(10))
    assert text.endswith("training step: left out, since the second network saves less than 1% of the MACs\n")


def test_profiles_in_json(run: RunPaths) -> None:
    (profile,) = parsed(run.network(0), "--layers")["profiles"]
    graph = read_graph(run.network(0))
    assert len(profile["layers"]) == len(graph.steps)
    assert sum(row["share_of_time"] for row in profile["layers"]) == pytest.approx(1)
    assert sum(row["share_of_time"] for row in profile["kinds"]) == pytest.approx(1)
    assert sum(row["calls"] for row in profile["kinds"]) == len(graph.steps)
    for key in ("train_macs", "moved_bytes"):
        assert sum(row[key] for row in profile["layers"]) == sum(row[key] for row in profile["kinds"])


def test_ratios_are_taken_round_by_round() -> None:
    """By hand: 40% of the MACs left; steps of half the time in the first round and of all of it in the last."""
    graphs = [residual(), residual(stem=4, inner=(4, 8), wide=8)]
    first = Measurements(1000, [2.0, 4.0, 4.0], [1.0] * 3, [1.0] * 3, [0.5, 1.0, 1.0])
    second = Measurements(400, [1.0, 3.0, 4.0], [1.0] * 3, [1.0] * 3, [0.0, 0.0, 0.0])
    compared = benchmarks.comparison(graphs, [first, second])
    saved = 1 - costs(graphs[1]).macs / costs(graphs[0]).macs
    assert compared["train_step_ratio"] == {"median": 0.75, "low": 0.625, "high": 0.875}
    assert compared["time_saved_of_macs_saved"]["median"] == pytest.approx(0.25 / saved)
    assert compared["train_peak_memory_ratio"] == 0.4
    assert benchmarks.comparison([graphs[0]] * 2, [first, second])["time_saved_of_macs_saved"] is None
    assert benchmarks.network("x", graphs[0], first)["lasso_share_of_train_step"]["median"] == pytest.approx(
        1 / (1 + 8 * 4)
    )  # in one of 8 steps


def test_shares_of_the_roofline_by_hand() -> None:
    best = Peaks(macs_per_second=100.0, bytes_per_second=10.0)
    conv = StepProfile("a", "Conv2d", (1,), macs=100, moved=5, forward=(1.0, 1.0), backward=(1.0, 1.0))  # 1 s at least, of 2
    relu = StepProfile("b", "F.relu", (1,), macs=0, moved=20, forward=(3.0, 3.0), backward=(5.0, 5.0))  # 2 s at least, of 8
    rows = benchmarks.layers([conv, relu, conv], best)
    assert [row["share_of_roofline"] for row in rows] == [0.5, 0.25, 0.5]
    assert [row["share_of_time"] for row in rows] == pytest.approx([1 / 6, 2 / 3, 1 / 6])
    assert [(kind["kind"], kind["calls"], kind["share_of_roofline"]) for kind in benchmarks.kinds(rows, best)] == [
        ("F.relu", 1, 0.25),
        ("Conv2d", 2, 0.5),
    ]


def test_conditions_of_a_machine() -> None:
    machine = benchmarks.machine(Conditions(torch.device("cpu"), 4, "bfloat16", channels_last=True, compile="default"), 3)
    assert {key: machine[key] for key in ("batch_size", "amp", "channels_last", "compile", "rounds")} == {
        "batch_size": 4,
        "amp": "bfloat16",
        "channels_last": True,
        "compile": "default",
        "rounds": 3,
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "nothing is not a network file (.py), checkpoint (.pt) or run"),
        (("nothing.py",), "nothing.py: no such network file"),
        (("nothing.pt",), "nothing.pt"),
        (("NET", "--rounds", "0"), "invalid value for '--rounds'"),
        (("NET", "--threads", "0"), "invalid value for '--threads'"),
        (("NET", "--batch-size", "0"), "batch-size must be from 1"),
        (("NET", "--amp", "half"), "amp"),
        (("NET", "--device", "abacus"), "device 'abacus' is not on this machine"),
        (("NET", "--amp", "float16", "--device", "cpu"), "--amp float16 needs a GPU"),
        (("NET", "nothing"), "nothing is not a network file"),
        ((), "missing argument 'NET|CKPT|RUN'"),
    ],
)
def test_bad_input(run: RunPaths, args: tuple[str, ...], message: str) -> None:
    result = invoke("bench", *(str(run.network(0)) if arg == "NET" else arg for arg in args))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_batches_of_one_that_have_no_variance_are_refused(tmp_path: Path) -> None:
    """BatchNorm behind a pooling layer sees one value a channel of one image."""
    net = Sketch("Toy", (3, 4, 4))
    x = net.norm("bn1", net.call("F.adaptive_avg_pool2d", net.conv("conv1", net.x, 4, kernel_size=1), output_size=1))
    write_text(tmp_path / "toy.py", render(net.graph(net.linear("fc", net.call("torch.flatten", x, start_dim=1), 5))))
    result = invoke("bench", tmp_path / "toy.py", "--batch-size", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        f"error: --batch-size 1 is too small for {tmp_path / 'toy.py'}, whose BatchNorm sees one value per channel"
    )
    assert invoke("bench", tmp_path / "toy.py", *FAST).exit_code == 0


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        (lambda net, x: x, "Nx4x4x4"),
        (lambda net, x: net.call("F.adaptive_avg_pool2d", x, output_size=1), "Nx4x1x1"),
        (lambda net, x: net.call("torch.mean", x, dim=(1, 2, 3)), "N"),
    ],
)
def test_networks_without_logits_are_refused(tmp_path: Path, output: Callable[[Sketch, Value], Value], shape: str) -> None:
    net = Sketch("Toy", (3, 4, 4))
    write_text(tmp_path / "toy.py", render(net.graph(output(net, net.conv("conv1", net.x, 4, kernel_size=1)))))
    result = invoke("bench", tmp_path / "toy.py", *FAST)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {tmp_path / 'toy.py'} returns {shape}: a training step needs logits of shape N x classes\n"


def test_batches_beyond_the_memory_are_refused(tmp_path: Path) -> None:
    net = Sketch("Toy", (3, 2048, 2048))
    write_text(tmp_path / "toy.py", render(net.graph(net.classifier("fc", net.conv("conv1", net.x, 4, kernel_size=1), 5))))
    result = invoke("bench", tmp_path / "toy.py", "--batch-size", "10000000", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: batches of 10000000 images do not fit into memory: use a smaller --batch-size\n"


def test_freed_memory_is_kept_before_anything_is_timed(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    order, measure = [], measuring.measure

    def measured(*args: Any, **keywords: Any) -> list[Measurements]:
        order.append("measure")
        return measure(*args, **keywords)

    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: order.append("keep"))
    monkeypatch.setattr(measuring, "measure", measured)
    printed(run.network(10))
    assert order == ["keep", "measure"]
