"""What a person sees: networks and changes as plain values with costs by hand, and the lines of a run."""

import io
import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from graphs import chain, residual, without_a_branch
from reported import write_run
from rich.console import Console
from sketch import Sketch

from prunetrain.channels.spaces import find_spaces
from prunetrain.files import write_text
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.paths import RunPaths
from prunetrain.report import describe
from prunetrain.report.progress import TrainingProgress, batch_line
from prunetrain.report.tables import BAR_WIDTH, bar, format_count, format_duration, print_change, print_classes, print_network, print_run
from prunetrain.report.terminal import print_outcome
from prunetrain.training.events import BatchChange, Change, Metrics, Reconfiguration, Start, Uncut
from prunetrain.training.run import Outcome

TINY = '''"""Input 3x4x4."""

from torch import Tensor, nn
from torch.nn import functional as F


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, {wide}, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d({wide})
        self.conv2 = nn.Conv2d({wide}, 4, kernel_size=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.conv2(x)
'''


def tiny(wide: int) -> LayerGraph:
    """A conv of 3x4x4 images to `wide` channels, and a grouped 1x1 conv to 4."""
    return parse(TINY.format(wide=wide))


def metrics(epoch: int, macs: int = 4000) -> Metrics:
    return {
        "epoch": epoch,
        "train_loss": 1.25,
        "lasso": 0.5,
        "train_top1": 0.75,
        "val_loss": 1.5,
        "val_top1": 0.6875,
        "lr": 0.1,
        "batch_size": 32,
        "macs": macs,
        "params": 10,
        "channels": 8,
        "train_macs_total": 3 * macs * 100 * epoch,
        "train_images_total": 100 * epoch,
        "epoch_seconds": 2.0,
        "images_per_second": 1234.5,
        "peak_memory_bytes": 2**20,
    }


def console(width: int = 160, **options: bool) -> Console:
    return Console(file=io.StringIO(), width=width, **options)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_network() -> None:
    found = describe.network(tiny(6), tiny(8))
    assert found["layers"] == [
        {"layer": "conv1", "kind": "Conv2d", "output_shape": [6, 4, 4], "channels": 6, "was": 8, "macs": 3 * 6 * 9 * 16, "params": 162},
        {"layer": "conv2", "kind": "Conv2d", "output_shape": [4, 4, 4], "channels": 4, "was": 4, "macs": 3 * 4 * 16, "params": 16},
    ]
    assert found["totals"]["channels"] == 10
    assert found["totals"]["macs"] == 2592 + 192
    assert found["totals"]["params"] == 162 + 12 + 16
    assert found["totals"]["activation_elements"] == 3 * 6 * 16 + 4 * 16  # conv, BatchNorm, ReLU; conv
    assert found["dense_totals"]["macs"] == 3 * 8 * 9 * 16 + 4 * 4 * 16
    assert (found["network"], found["input_shape"]) == ("Tiny", [3, 4, 4])
    json.dumps(found)


def test_what_stays_is_named_with_its_reason() -> None:
    found = describe.network(tiny(6))
    frozen = {row["space"]: (row["channels"], row["why"]) for row in found["frozen"]}
    assert frozen == {"input": (3, "the network's input"), "conv2": (2, "the network's output")}  # a channel of conv2 is one of each group
    # conv1's outputs, which are conv2's inputs, may go: of each of conv2's two groups all but one
    assert found["cuttable"] == {"macs": 2592 + 192, "share": 1.0, "least_macs": 864 + 64, "least_share": 0.333333}
    output = console()
    print_network(output, found)
    assert text(output).splitlines()[-3:] == [
        "100.0% of the MACs are in channels that can be cut, down to 33.3% of the MACs; these stay:",
        "  the network's input: 3 channels of input",
        "  the network's output: 2 channels of conv2",
    ]


def test_spaces_without_layers_are_not_listed() -> None:
    net = Sketch("Net", (3, 4, 4))
    graph = net.graph(net.call("torch.mean", net.conv("conv1", net.x, 2, kernel_size=1), dim=1))
    assert "no layer" in {space.name for space in find_spaces(graph).spaces if space.frozen}
    assert [row["space"] for row in describe.network(graph)["frozen"]] == ["input"]


def test_many_spaces_with_one_reason_are_one_line() -> None:
    net = Sketch("Net", (3, 4, 4))
    heads = [net.conv(f"head{number}", net.x, 2, kernel_size=1) for number in range(5)]
    found = describe.network(net.graph(*heads))
    assert found["cuttable"] == {"macs": 0, "share": 0.0, "least_macs": 5 * 2 * 3 * 16, "least_share": 1.0}
    output = console()
    print_network(output, found)
    assert text(output).splitlines()[-3:] == [
        "0.0% of the MACs are in channels that can be cut; these stay:",
        "  the network's input: 3 channels of input",
        "  the network's output: 10 channels of head0, head1, head2 and 2 more",
    ]


def test_one_channel_that_stays_is_no_plural() -> None:
    net = Sketch("Net", (3, 4, 4))
    output = console()
    print_network(output, describe.network(net.graph(net.classifier("fc", net.conv("conv1", net.x, 1, kernel_size=1), 2))))
    assert "  one channel of each space stays: 1 channel of conv1\n" in text(output)


def test_reasons_are_printed_as_they_are() -> None:
    found = describe.network(tiny(6))
    found["frozen"][1]["why"] = "[] depends on channel positions"
    output = console()
    print_network(output, found)
    assert "  [] depends on channel positions: 2 channels of conv2\n" in text(output)


def test_long_names_leave_room_for_numbers() -> None:
    """In a terminal of 80 columns a name of 76 letters, as folders of iNaturalist have them, takes two lines."""
    name = "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_species"
    output = console(width=80)
    print_classes(output, [{"name": name, "images": 1234, "correct": 617, "accuracy": 0.5}])
    _, first, second = (line.split() for line in text(output).splitlines())
    assert first[1:] == ["1,234", "617", "50.00%"]
    assert first[0] + "".join(second) == name


def test_dense_network_has_no_shares() -> None:
    assert "dense_totals" not in describe.network(chain())
    assert "dense_totals" not in describe.network(chain(), chain())


def test_a_layer_that_is_called_twice_costs_both_calls() -> None:
    def shared(width: int) -> LayerGraph:
        net = Sketch("Shared", (3, 8, 8))
        x = net.conv("conv1", net.x, width, kernel_size=1)
        small = net.layer("head", "Conv2d", net.call("F.max_pool2d", x, kernel_size=2), in_channels=width, out_channels=4, kernel_size=1)
        large = net.layer("head", "Conv2d", x)
        return net.graph(net.call("+", *(net.call("F.adaptive_avg_pool2d", y, output_size=1) for y in (small, large))))

    found = describe.change(shared(8), shared(6))
    assert [row["layer"] for row in found["layers"]] == ["conv1", "head"]
    assert found["layers"][1]["macs"] == [(16 + 64) * 8 * 4, (16 + 64) * 6 * 4]
    for key in ("macs", "params"):
        assert [sum(row[key][end] for row in found["layers"]) for end in (0, 1)] == found["totals"][key]


def test_change() -> None:
    found = describe.change(tiny(8), tiny(6))
    assert found["layers"] == [
        {"layer": "conv1", "channels": [8, 6], "macs": [3456, 2592], "params": [216, 162]},
        {"layer": "conv2", "channels": [4, 4], "macs": [256, 192], "params": [20, 16]},
    ]
    assert found["totals"] == {"channels": [12, 10], "macs": [3712, 2784], "params": [252, 190]}
    assert describe.change(tiny(8), tiny(8))["layers"] == []


def test_layers_that_went_or_came() -> None:
    gone = {row["layer"]: row for row in describe.change(residual(inner=(8, 16)), without_a_branch())["layers"]}
    assert set(gone) == {"layer1_0_conv1", "layer1_0_conv2"}
    assert all(row["channels"] == [8, 0] and row["macs"] == [8 * 8 * 9 * 64, 0] for row in gone.values())
    came = {row["layer"]: row["channels"] for row in describe.change(without_a_branch(), residual(inner=(8, 16)))["layers"]}
    assert came == {"layer1_0_conv1": [0, 8], "layer1_0_conv2": [0, 8]}
    output = console()
    print_change(output, describe.change(residual(), without_a_branch()))
    assert "8 -> gone" in text(output)


def test_run(tmp_path: Path) -> None:
    run = RunPaths(tmp_path, "x")
    for epoch, graph in ((0, tiny(8)), (10, tiny(6)), (1000, tiny(4))):
        write_text(run.network(epoch), render(graph, dense=tiny(8), epoch=epoch))
    lines = [metrics(1), metrics(2)]
    found = describe.run(run, lines)
    assert [(row["epoch"], row["macs"]) for row in found["networks"]] == [(0, 3712), (10, 2784), (1000, 1856)]
    assert (found["run"], found["metrics"]) == ("x", lines)
    output = console()
    print_run(output, found)
    rows = [line.split() for line in text(output).splitlines()]
    assert ["epoch_010.py", "10", bar(10, 12), "2.78", "K", "75.0%", "190", "75.4%"] in rows
    assert ["2", "1.2500", "0.500", "75.0%", "68.75%", "0.1", "4", "K", "2.0", "1,234"] in rows


def test_colour_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(**options: bool) -> str:
        output = console(**options)
        print_change(output, describe.change(residual(), without_a_branch()))
        print_network(output, describe.network(tiny(2), tiny(16)))
        return text(output)

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = printed()
    assert "\x1b" not in plain
    coloured = printed(force_terminal=True)
    assert "\x1b[31m8 -> gone\x1b[0m" in coloured
    assert "\x1b[33m█" in coloured  # 2 of 16 channels
    assert "\x1b[36m██████████" in coloured  # 4 of 4
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", printed(force_terminal=True))


def test_rows_for_csv() -> None:
    (conv1, conv2) = describe.table_rows(describe.network(tiny(6), tiny(8)))
    assert (conv1["output_shape"], conv1["channels"], conv1["was"], conv2["layer"]) == ("6x4x4", 6, 8, "conv2")
    assert describe.table_rows(describe.change(tiny(8), tiny(6)))[0] == {
        "layer": "conv1",
        "channels_before": 8,
        "channels_after": 6,
        "macs_before": 3456,
        "macs_after": 2592,
        "params_before": 216,
        "params_after": 162,
    }
    lines = describe.table_rows({"run": "x", "networks": [], "metrics": [metrics(1), {**metrics(2), "sparsity": 0.5}]})
    assert ([line["sparsity"] for line in lines], [line["epoch"] for line in lines]) == ([None, 0.5], [1, 2])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        *[(0, "0"), (950, "950"), (1000, "1 K"), (41_234_567, "41.2 M"), (2.5e9, "2.5 G"), (3e12, "3 T"), (-2000, "-2 K")],
        *[(999, "999"), (999.5, "1 K"), (999_499, "999 K"), (999_500, "1 M"), (999_500_000, "1 G"), (-999_999, "-1 M")],
    ],
)
def test_count(number: float, words: str) -> None:
    assert format_count(number) == words


@pytest.mark.parametrize(("part", "filled"), [(0, 0), (0.1, 1), (1, 1), (5, 5), (10, 10)])
def test_bar(part: int, filled: int) -> None:
    assert bar(part, 10) == "█" * filled + "░" * (BAR_WIDTH - filled)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (42.4, "42s"), (59.6, "1m00s"), (190, "3m10s"), (3599, "59m59s"), (7500, "2h05m"), (90_000, "25h00m")],
)
def test_duration(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def event(channels: tuple[int, int], **changes: object) -> Reconfiguration:
    values = {"granularity": 1, "removed_layers": (), "rescued_spaces": (), **changes}
    change = Change(channels, (4_000_000, 1_000_000), (9, 5), seconds={}, **values)
    return Reconfiguration(10, change, Path("generated_nets/x/epoch_010.py"), (0.9, 0.895))


def test_progress_prints_plain_lines() -> None:
    output = console()
    progress = TrainingProgress(output)
    progress.started(Start(run=RunPaths(Path(), "x"), data=("images",), total_epochs=20, epoch=0, steps_per_epoch=5, dense_macs=8000))
    progress.stepped(1, 5)
    progress.epoch_ended(metrics(10))
    progress.reconfigured(event((1200, 1100)))
    progress.reconfigured(event((1200, 1100), granularity=8, removed_layers=("a", "b"), rescued_spaces=("conv1", "fc1")))
    for meaning in (Uncut.YET, Uncut.TARGET, Uncut.FINAL):
        progress.reconfigured(replace(event((1200, 1200)), uncut=meaning))
    progress.message("done")
    progress.close()
    data, head, line, *rest = text(output).splitlines()
    assert data == "images"
    assert head.split() == ["epoch", "loss", "train", "val", "top-1", "MACs", "left", "images/s", "time", "left"]
    assert line.split()[:6] == ["10/20", "1.2500", "75.0%", "68.75%", "50.0%", "1,234"]
    assert len(line) == len(head)
    file = "generated_nets/x/epoch_010.py"
    assert rest == [
        f"  cut 100 of 1,200 channels: 4 M -> 1 M MACs, top-1 -0.50 points -> {file}",
        f"  cut 100 of 1,200 channels: 4 M -> 1 M MACs, top-1 -0.50 points, counts in multiples of 8, 2 layers removed -> {file}",
        "  every channel of conv1, fc1 was dead; the strongest stays",
        f"  nothing to cut yet -> {file}",
        f"  target reached, nothing to cut -> {file}",
        f"  nothing to cut -> {file}",
        "done",
    ]


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        (
            BatchChange((128, 192), (420e6, 410e6), 420e6, measured=False, steps_per_epoch=10, largest=True),
            "batch 128 -> 192, learning rate x1.5 (estimated 410 M of 420 M bytes per step)",
        ),
        (
            BatchChange((128, 128), (2.5e9, 2.25e9), 2.5e9, measured=True, steps_per_epoch=10, largest=False),
            "batch stays at 128 (measured 2.25 G of 2.5 G bytes per step)",
        ),
        (
            BatchChange((16, 16), (9e6, 6e6), 9e6, measured=False, steps_per_epoch=17, largest=True),
            "batch stays at 16: --max-batch-size, or the number of images, allows no further step up (estimated 6 M of 9 M bytes per step)",
        ),
    ],
)
def test_batch_line(batch: BatchChange, line: str) -> None:
    assert batch_line(batch) == line
    output = console()
    TrainingProgress(output).reconfigured(replace(event((1200, 1100)), batch=batch))
    assert text(output).splitlines()[1] == f"  {line}"


def test_bar_follows_the_steps_of_a_larger_batch(tmp_path: Path) -> None:
    output = console(force_terminal=True)
    progress = TrainingProgress(output)
    progress.started(Start(run=write_run(tmp_path, "x"), data=("images",), total_epochs=4, epoch=0, steps_per_epoch=10, dense_macs=8000))
    progress.stepped(2, 10)
    batch = BatchChange((32, 64), (1.0, 1.0), 1.0, measured=False, steps_per_epoch=5, largest=False)
    progress.reconfigured(replace(event((1200, 1100)), batch=batch, network=RunPaths(tmp_path, "x").network(2)))
    progress.stepped(3, 5)
    progress.close()
    assert "75%" in text(output)


def test_time_left_counts_from_where_the_run_went_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("prunetrain.report.progress.time.monotonic", lambda: now[0])
    output = console()
    progress = TrainingProgress(output)
    progress.started(Start(run=RunPaths(Path(), "x"), data=("images",), total_epochs=20, epoch=10, steps_per_epoch=5, dense_macs=8000))
    now[0] += 6
    progress.epoch_ended(metrics(12))  # two epochs in six seconds; eight are left
    assert text(output).split()[-1] == "24s"


def test_progress_has_a_bar_and_the_networks_profile_on_a_terminal(tmp_path: Path) -> None:
    run = write_run(tmp_path, "x", {0: residual(), 2: residual(inner=(3, 1)), 4: without_a_branch()})
    for later in (2, 4):
        run.network(later).rename(tmp_path / f"{later}.py")
    output = console(force_terminal=True)
    progress = TrainingProgress(output)
    progress.started(Start(run=run, data=("images",), total_epochs=2, epoch=0, steps_per_epoch=5, dense_macs=8000))
    progress.stepped(1, 5)
    for later in (2, 4):
        progress.reconfigured(replace(event((9, 8)), network=tmp_path / f"{later}.py"))
    progress.close()
    progress.close()
    assert "━" in text(output)
    assert "50%" in text(output)
    for profile in ("███████", "█▃██▁██", "█  ████"):
        assert f"channels left in 7 layers  {profile}\x1b" in text(output)


def test_outcome(tmp_path: Path) -> None:
    run = RunPaths(tmp_path, "x")
    write_text(run.network(0), render(tiny(8)))
    write_text(run.network(2), render(tiny(6)))
    history = [metrics(1, macs=3712), {**metrics(2), "train_macs_total": 3 * 100 * (3712 + 2784)}]
    output = console()
    print_outcome(output, Outcome(run, history, run.network(2)))
    lines = [line.split(maxsplit=1) for line in text(output).splitlines()]
    assert lines == [
        ["validation", "top-1 68.75%"],
        ["MACs", "2.78 K of 3.71 K: 25.0% removed"],
        ["parameters", "190 of 252: 24.6% removed"],
        ["training", "MACs    12.5% removed"],
        ["network", str(run.network(2))],
        ["checkpoint", str(run.last)],
    ]
    output = console()
    print_outcome(output, Outcome(run, history, run.network(2), missed="1 epoch is too few"))
    assert text(output).splitlines()[2] == "target missed    1 epoch is too few"
    output = console()
    print_outcome(output, Outcome(run, history, run.network(2), stopped_by=signal.SIGTERM))
    assert text(output) == f"stopped; resume with: prunetrain train --resume {run.last}\n"
    output = console()
    print_outcome(output, Outcome(run, [], run.network(0)))
    assert text(output) == ""
