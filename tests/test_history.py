"""Runs read for a report: layers lined up by name, shares, what files do not tell; network files lined up line by line."""

import json
import math
from pathlib import Path

import pytest
import torch
from graphs import chain, residual, without_a_branch
from hypothesis import given
from hypothesis import strategies as st
from reported import NETWORKS, line, write_run, write_settings

from prunetrain.errors import ConfigError
from prunetrain.files import write_text
from prunetrain.graph.costs import costs
from prunetrain.paths import RunPaths
from prunetrain.report.alignment import ABSENT, align_files
from prunetrain.report.history import LayerHistory, labels, read_history
from prunetrain.report.run_settings import differing_settings, format_setting, read_settings


def test_layers_line_up_by_name_though_some_go(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path, "x"), "x")
    rows = {layer.name: (layer.channels, layer.dense) for layer in history.layers}
    assert rows == {
        "conv1": ((8, 8, 8), 8),
        "layer1_0_conv1": ((8, 3, 0), 8),
        "layer1_0_conv2": ((8, 8, 0), 8),
        "layer2_0_downsample_0": ((16, 16, 16), 16),
        "layer2_0_conv1": ((16, 5, 16), 16),
        "layer2_0_conv2": ((16, 16, 16), 16),
        "fc": ((10, 10, 10), 10),
    }


def test_layers_that_come_later_stand_behind_those_they_follow(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path, "x", {0: without_a_branch(), 1: residual()}), "x")
    assert [layer.name for layer in history.layers][:3] == ["conv1", "layer1_0_conv1", "layer1_0_conv2"]
    assert history.layers[1] == LayerHistory("layer1_0_conv1", (0, 8))


def test_shares(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path, "x"), "x")
    dense, last = costs(NETWORKS[0]), costs(NETWORKS[4])
    assert history.kept("macs") == last.macs / dense.macs
    assert history.train_macs_removed == pytest.approx(1 - (2 * 600_000 + 2 * 300_000) / (4 * dense.macs))
    assert (history.epochs, history.last("val_top1")) == (4, 0.8)
    assert history.values("macs") == [600_000, 600_000, 300_000, 300_000]


def test_what_files_do_not_tell_is_nan(tmp_path: Path) -> None:
    networks = read_history(write_run(tmp_path, "networks", epochs=0), "x")
    assert networks.epochs == 4
    assert all(map(math.isnan, (networks.train_macs_removed, networks.last("val_top1"))))
    metrics = read_history(write_run(tmp_path, "metrics", {}, val_loss=None), "x")
    assert (metrics.epochs, metrics.layers) == (4, ())
    assert all(
        map(math.isnan, (metrics.kept("macs"), metrics.train_macs_removed, *metrics.values("val_loss"), *metrics.values("no_field")))
    )


def test_what_a_method_pruned_at_the_end_was_measured_in_no_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path, "x", {0: chain(), 4: chain()}, nonzero_params=100)
    lasso = read_history(run, "x")
    assert (lasso.prunings, lasso.top1, lasso.nonzero) == ((), 0.8, 100)
    masked = read_history(write_settings(run, method="magnitude"), "x")
    assert masked.prunings == (4,)
    assert all(map(math.isnan, (masked.top1, masked.nonzero)))
    trained_on = read_history(write_settings(write_run(tmp_path, "y", {0: chain(), 3: chain()}, nonzero_params=100), method="unit"), "y")
    assert (trained_on.prunings, trained_on.top1, trained_on.nonzero) == ((3,), 0.8, 100)


def test_the_network_that_a_method_acts_on_first_was_not_pruned(tmp_path: Path) -> None:
    acting = write_settings(write_run(tmp_path, "x", {0: chain(), 2: chain(), 4: chain()}, epochs=5), method="admm", prune_at=4)
    assert read_history(acting, "x").prunings == (4,)
    begun = write_settings(write_run(tmp_path, "y", {0: chain(), 2: chain()}, epochs=2), method="fpgm", prune_at=4)
    assert (read_history(begun, "y").prunings, read_history(begun, "y").top1) == ((), 0.4)


def test_no_more_is_not_zero_than_is_there(tmp_path: Path) -> None:
    last = costs(NETWORKS[4]).params  # a cut after the last epoch
    assert read_history(write_run(tmp_path, "x", nonzero_params=last + 5), "x").nonzero == last


def test_settings_are_those_of_the_last_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path, "x")
    assert read_settings(run) == {}
    write_settings(run, method="magnitude", rate=0.5, nesterov=True, layer_rates=("fc=0",), model={"a": 1}, not_a_setting=1, lr=None)
    assert read_settings(run) == {"method": "magnitude", "rate": 0.5, "nesterov": True, "layer_rates": ("fc=0",)}
    for content in (b"", b"PK", run.last.read_bytes()[:-30]):
        run.last.write_bytes(content)
        assert read_settings(run) == {}
    for content in ([1], {"config": 1}):
        torch.save(content, run.last)
        assert read_settings(run) == {}


def test_settings_that_differ() -> None:
    first = {"method": "magnitude", "rate": 0.5, "lr": 0.1, "seed": 0, "name": "a", "workers": 1, "save_epochs": (1,), "epochs": 3}
    second = first | {"rate": 0.9, "name": "b", "workers": 2, "save_epochs": [1], "epochs": 3.0}
    assert differing_settings([first, second]) == ["rate"]
    assert differing_settings([first, second | {"method": "unit", "epochs": 4}, {}]) == ["method", "rate", "epochs"]
    assert differing_settings([first, {**first, "lr": 1e-2}, {"method": "magnitude"}]) == ["rate", "epochs", "lr", "save_epochs", "seed"]
    assert differing_settings([first, {}]) == differing_settings([]) == []
    assert [format_setting(value) for value in (True, False, 0.1, 3, "a", (), ("fc=0", "b=1"), [1, 2], None)] == [
        *("on", "off", "0.1", "3", "a", "", "fc=0, b=1", "1, 2", "")
    ]


def test_metrics_that_are_none_are_named_with_their_line(tmp_path: Path) -> None:
    run = write_run(tmp_path, "x", epochs=2)
    write_text(run.metrics, json.dumps(line(1)) + "\n[]\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:2: not a line of metrics"):
        read_history(run, "x")


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [RunPaths(Path("a"), "x"), RunPaths(Path("b\n"), "x"), RunPaths(Path("a"), "y")]
    assert labels(runs) == ["a/x", "b /x", "y"]


def columns(*sources: str) -> list[list[str]]:
    """The lines that stand in each row."""
    found = align_files(sources)
    return [["" if index == ABSENT else found.texts[index] for index in row] for row in zip(*found.rows, strict=True)]


def test_a_line_with_other_numbers_is_the_same_line() -> None:
    old = "self.conv1 = nn.Conv2d(3, 8)  # 8x4x4\nself.conv2 = nn.Conv2d(8, 4)\nreturn x"
    new = "self.conv1 = nn.Conv2d(3, 6)  # 6x4x4, was 8\nself.conv2 = nn.Conv2d(6, 4)\nreturn x"
    assert columns(old, new) == [list(pair) for pair in zip(old.splitlines(), new.splitlines(), strict=True)]
    assert len(align_files([old, new]).texts) == 5  # the last line once


def test_a_layer_that_went_leaves_a_hole_and_one_that_came_gets_a_row() -> None:
    assert columns("a = 1\nb_1 = 2\nc = 3", "a = 1\nc = 4", "a = 1\nc = 4\nd = 5") == [
        ["a = 1", "a = 1", "a = 1"],
        ["b_1 = 2", "", ""],
        ["c = 3", "c = 4", "c = 4"],
        ["", "", "d = 5"],
    ]


def test_statements_about_something_else_are_not_compared() -> None:
    old, new = "return y\nself.a = f(1)\nx = g(self.a)", "return y\nself.b = h()\nx = k()"
    assert columns(old, new) == [["return y", "return y"], ["self.a = f(1)", ""], ["", "self.b = h()"], ["x = g(self.a)", "x = k()"]]
    assert columns('"""Net, epoch 0: 9 MACs.', '"""Net, epoch 4: 50.0% of the MACs.') == [
        ['"""Net, epoch 0: 9 MACs.', '"""Net, epoch 4: 50.0% of the MACs.']
    ]


def test_names_with_numbers_are_not_sizes() -> None:
    assert columns("layer1_0 = 1\nlayer2_0 = 1", "layer2_0 = 1") == [["layer1_0 = 1", ""], ["layer2_0 = 1", "layer2_0 = 1"]]


@given(st.lists(st.lists(st.sampled_from(["a", "b", "x = 1", "x = 2", "y_1 = 3", "y_2 = 3", "z"]), max_size=8), min_size=1, max_size=5))
def test_every_file_can_be_read_back_from_its_rows(files: list[list[str]]) -> None:
    found = align_files(["\n".join(lines) for lines in files])
    assert len({len(row) for row in found.rows}) == 1
    for lines, row in zip(files, found.rows, strict=True):
        assert [found.texts[index] for index in row if index != ABSENT] == "\n".join(lines).splitlines()
    assert len(set(found.texts)) == len(found.texts)


def test_networks_of_other_runs_do_not_matter(tmp_path: Path) -> None:
    write_run(tmp_path, "y", {0: chain()})
    assert len(read_history(write_run(tmp_path, "x"), "x").networks) == 3
