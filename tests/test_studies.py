"""Studies and sweeps: every cell once, whatever fails or stops; their tables and plots."""

import csv
import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from runs import invoke

from prunetrain.config import TrainConfig, check_ignored_settings
from prunetrain.errors import ConfigError, DataError
from prunetrain.paths import RunPaths
from prunetrain.report.history import read_metrics
from prunetrain.studies import defaults, grid, sweep
from prunetrain.studies.grid import Study, run_study
from prunetrain.studies.plot import plot_macs, plot_sparsity
from prunetrain.studies.records import Records, markdown
from prunetrain.studies.results import write_study
from prunetrain.studies.summary import LEGEND, Point, points, table
from prunetrain.studies.tasks import Task, TaskResult, run_tasks
from prunetrain.studies.unsupported_methods import find_unsupported_methods
from prunetrain.training.stopping import StopRequested

NETWORK = {"model": "lenet-300-100", "dataset": "npz", "epochs": 1, "lr": 0.05, "device": "cpu"}


def flags(images: Path, **changes: Any) -> list[str]:
    given = {**NETWORK, "data_dir": images, "methods": "magnitude,unit", "rates": "0,0.5", "seeds": "0,1", **changes}
    return [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def study(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two methods, two rates and two seeds."""
    folder = tmp_path_factory.mktemp("study")
    result = invoke("study", folder, *flags(images), "--slice", "--retrain-epochs", "1")
    assert result.exit_code == 0, result.output
    return folder


def test_a_line_a_cell_in_csv_and_json(study: Path) -> None:
    rows = list(csv.DictReader((study / "study.csv").read_text().splitlines()))
    records = json.loads((study / "study.json").read_text())
    assert [{key: str(value) for key, value in record.items()} for record in records] == rows
    assert [(row["method"], row["rate"], row["seed"]) for row in rows] == [
        *(("dense", "0.0", seed) for seed in "01"),
        *((method, rate, seed) for method in ("magnitude", "unit") for seed in "01" for rate in ("0.0", "0.5")),
    ]
    dense = 64 * 300 + 300 + 300 * 100 + 100 + 100 * 4 + 4
    for record in records:
        assert record["dense_params"] == dense
        assert 0 <= record["top1"] <= 1
        if record["method"] == "dense":
            assert (record["params"], record["macs"]) == (dense, record["dense_macs"])
            assert record["top1"] == read_metrics(RunPaths(study, f"dense-seed-{record['seed']}"))[-1]["val_top1"]
        elif record["method"] == "magnitude":
            assert record["params"] == dense
            assert record["nonzero_params"] <= dense - record["rate"] * (dense - 404)
        else:
            assert record["params"] == (64 * 150 + 150 + 150 * 50 + 50 + 50 * 4 + 4 if record["rate"] else dense)
            assert record["macs"] < record["dense_macs"] or record["rate"] == 0


def test_a_table_and_plots_beside_them(study: Path) -> None:
    lines = (study / "study.md").read_text().splitlines()
    assert lines[0] == "| rate | magnitude | unit |"
    assert [line.partition("|")[2].partition("|")[0].strip() for line in lines[2:]] == ["dense", "0%", "50%", "", ""]
    assert lines[-1] == LEGEND
    for name in ("study.svg", "study-macs.svg"):
        assert ElementTree.parse(study / name).getroot().tag.endswith("svg")


def test_what_is_done_stays_done_and_a_grid_can_grow(study: Path, images: Path) -> None:
    assert sorted(path.name for path in (study / "checkpoints").iterdir() if path.is_dir()) == ["dense-seed-0", "dense-seed-1"]
    before = {path.name: path.stat().st_mtime_ns for path in (study / "cells").iterdir()}
    result = invoke("study", study, *flags(images), "--slice", "--retrain-epochs", "1")
    assert result.exit_code == 0
    assert "seed-" not in result.output
    result = invoke(
        "study", study, *flags(images, methods="magnitude, unit", rates="0.5, 0.9", seeds="0"), "--slice", "--retrain-epochs", "1"
    )
    assert result.exit_code == 0
    assert [line.partition(":")[0] for line in result.output.splitlines() if "seed-" in line] == [
        "dense-seed-0",
        "magnitude-0.9-seed-0",
        "unit-0.9-seed-0",
    ]
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in (study / "cells").iterdir()}.items()


def test_other_settings_need_another_folder(study: Path, images: Path) -> None:
    result = invoke("study", study, *flags(images, lr=0.1), "--slice", "--retrain-epochs", "1")
    assert result.exit_code == 2
    assert result.stderr == f"error: {study / 'cells'} holds results with other settings (lr): name another folder, or remove this one\n"


def age(path: Path) -> None:
    """Make stored settings those of an earlier version: --compile was no mode yet, and one setting did not exist."""
    stored = json.loads(path.read_text())
    settings = stored.get("settings", stored)
    settings["compile"] = False
    del settings["class_weights"]
    path.write_text(json.dumps(stored))


def test_a_study_of_an_earlier_version_goes_on(study: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path, dirs_exist_ok=True)
    age(tmp_path / "cells" / "settings.json")
    result = invoke("study", tmp_path, *flags(images), "--slice", "--retrain-epochs", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "seed-" not in result.output
    refused = invoke("study", tmp_path, *flags(images, compile="default"), "--slice", "--retrain-epochs", "1")
    assert "holds results with other settings (compile): " in refused.stderr


def test_a_study_of_which_nothing_was_run_binds_its_folder_to_nothing(images: Path, tmp_path: Path) -> None:
    small = {"methods": "magnitude", "rates": "0.5", "seeds": "0", "plot": "none"}
    for wrong, code, message in (({"model": "lenet5"}, 2, "lenet5 needs images"), ({"layer_rate": "fc9=0"}, 1, "unknown layer 'fc9'")):
        result = invoke("study", tmp_path, *flags(images, **small, **wrong))
        assert (result.exit_code, message in result.stderr) == (code, True)
    result = invoke("study", tmp_path, *flags(images, **small))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "holds results with other settings (lr)" in invoke("study", tmp_path, *flags(images, **small, **{"lr": 0.1})).stderr


def test_in_several_processes_the_cells_are_as_in_one(study: Path, images: Path, tmp_path: Path) -> None:
    grid_flags = flags(images, methods="magnitude", rates="0.5", seeds="0")
    result = invoke("study", tmp_path, *grid_flags, "--slice", "--retrain-epochs", "1", "--jobs", "2", "--plot", "none")
    assert (result.exit_code, result.stderr) == (0, "")
    left, right = (json.loads((folder / "cells" / "magnitude-0.5-seed-0.result.json").read_text()) for folder in (tmp_path, study))
    assert {**left, "seconds": 0} == {**right, "seconds": 0}
    assert not list(tmp_path.glob("*.svg"))


NO_FILTERS = "no filters of this network can go: it has no layer of the classes Conv1d, Conv2d, ConvTranspose2d"


def test_a_method_that_cannot_prune_the_network_is_one_line_before_anything_is_trained(images: Path, tmp_path: Path) -> None:
    result = invoke("study", tmp_path / "a", *flags(images, methods="fpgm"))
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"error: fpgm: {NO_FILTERS}\n")
    assert not (tmp_path / "a" / "checkpoints").exists()
    result = invoke("study", tmp_path / "b", *flags(images, methods="fpgm,magnitude", rates="0.5", seeds="0"), "--plot", "none")
    assert (result.exit_code, result.stderr) == (1, f"error: fpgm: {NO_FILTERS}\n")
    assert result.stdout.startswith("dense-seed-0: top-1 ")
    assert {record["method"] for record in json.loads((tmp_path / "b" / "study.json").read_text())} == {"dense", "magnitude"}


def test_a_cell_that_fails_is_one_line_and_the_others_are_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = grid.prune

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if kwargs["rate"] == 0.5:
            raise DataError("no data\nat all")
        return real(*args, **kwargs)

    monkeypatch.setattr(grid, "prune", sometimes)
    result = invoke("study", tmp_path, *flags(images, methods="magnitude", seeds="0"), "--plot", "none")
    assert (result.exit_code, result.stderr) == (1, "error: magnitude-0.5-seed-0: no data\n")
    assert "magnitude-0-seed-0: top-1 " in result.stdout


def test_the_default_methods_prune_the_default_network() -> None:
    config = TrainConfig(device="cpu")
    run = RunPaths(Path("nowhere"), "dense-seed-0")
    assert find_unsupported_methods(run, config, defaults.METHODS, 0.99, {}) == {}
    assert find_unsupported_methods(run, config, ("unit", "group-lasso", "admm"), 0.99, {}) == {
        "unit": "no units of this network can go: all are frozen (fc: the network's output)"
    }
    assert find_unsupported_methods(run, config, ("magnitude",), 0.5, {"layer_rates": ("fc9=0",)}) == {
        "magnitude": "unknown layer 'fc9': did you mean fc?"
    }


def test_group_lasso_takes_part_by_the_macs_that_it_removes(images: Path, tmp_path: Path) -> None:
    how = ("--retrain-epochs", "4", "--layer-rate", "fc3=0")
    result = invoke("study", tmp_path, *flags(images, methods="magnitude,group-lasso", rates="0,0.6", seeds="0"), *how)
    assert (result.exit_code, result.stderr) == (0, "")
    records = {(record["method"], record["rate"]): record for record in json.loads((tmp_path / "study.json").read_text())}
    whole, cut = records["group-lasso", 0.0], records["group-lasso", 0.6]
    assert (whole["macs"], whole["params"]) == (whole["dense_macs"], whole["dense_params"])
    assert 0.3 < cut["macs"] / cut["dense_macs"] <= 0.4
    assert whole["train_macs_total"] == records["magnitude", 0.0]["train_macs_total"]  # so many epochs have all
    assert whole["top1"] == records["magnitude", 0.0]["top1"]  # without a lasso it is training alone
    assert "Not in this plot: magnitude." in (tmp_path / "study-macs.svg").read_text()


def test_what_decides_no_result_may_change(tmp_path: Path) -> None:
    def decides(**training: Any) -> dict[str, Any]:
        return Study(folder=tmp_path, training=TrainConfig(**training), methods=["fpgm"], rates=[0.5], seeds=[0], pruning={}).settings()

    for changes in ({"keep": 3}, {"keep_best": True}, {"cache": "x"}, {"name": "y"}, {"target_macs": 0.1}, {"seed": 3}):
        assert decides(**changes) == decides()
    for changes in ({"lr": 0.2}, {"lasso_groups": "slices"}, {"epochs": 3}):
        assert decides(**changes) != decides()


def test_group_lasso_trains_as_long_as_the_others_in_all_rounds(tmp_path: Path) -> None:
    common = {
        "folder": tmp_path,
        "training": TrainConfig(lasso_groups="slices"),
        "methods": ["group-lasso", "fpgm"],
        "rates": [0.25],
        "seeds": [0],
        "during": 1,
    }
    study = Study(**common, pruning={"rounds": 3, "scope": "global", "lr": 0.01}, epochs=2)  # type: ignore[arg-type]
    lasso, fpgm = (study.pruning_arguments(cell) for cell in study.cells(0))
    assert lasso.items() >= {"lr": 0.01, "target_macs": 0.75, "epochs": 6, "lasso_groups": "slices", "retrain": "finetune"}.items()
    assert not lasso.keys() & {"rounds", "scope", "rate", "during", "penalty_ratio"}
    assert fpgm == {"lr": 0.01, "rounds": 3, "rate": 0.25, "epochs": 2, "during": 1}  # and not the scope, which it does not read


def test_all_methods_retrain_alike(tmp_path: Path) -> None:
    common: dict[str, Any] = {"folder": tmp_path, "training": TrainConfig(), "rates": [0.25], "seeds": [0], "epochs": 4}
    for given, expected in (({}, "finetune"), ({"retrain": "lr-restart"}, "lr-restart")):
        study = Study(**common, methods=["group-lasso", "fpgm"], pruning=given)
        lasso, fpgm = (study.pruning_arguments(cell) for cell in study.cells(0))
        assert (lasso["retrain"], fpgm.get("retrain", TrainConfig.retrain)) == (expected, expected)


@pytest.mark.parametrize(("retrain", "expected"), [("finetune", 0), ("lr-restart", None), ("lr-rewind", None)])
def test_who_asks_for_more_than_fine_tuning_gets_its_epochs(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retrain: str, expected: int | None
) -> None:
    """None stands for what `prune` does by default."""
    found: list[int | None] = []
    monkeypatch.setattr(grid, "run_study", lambda study, jobs, report: found.append(study.epochs) or [])
    assert invoke("study", tmp_path, *flags(images, retrain=retrain)).exit_code == 0
    assert found == [expected]


@pytest.mark.parametrize("importance", ["auto", "norm", "taylor"])
def test_where_group_lasso_prunes_nothing_nothing_is_ranked(tmp_path: Path, importance: str) -> None:
    """At rate 0 there is no target, with which `prune` would refuse a ranking."""
    training = TrainConfig(importance=importance)
    study = Study(folder=tmp_path, training=training, methods=["group-lasso"], rates=[0.0, 0.5], seeds=[0], pruning={}, epochs=4)
    whole, half = (study.pruning_arguments(cell) for cell in study.cells(0))
    check_ignored_settings(whole, TrainConfig(**whole))
    assert half["importance"] == importance


def test_who_stops_a_study_or_sweep_is_told_how_to_go_on(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise StopRequested(signal.SIGINT)

    line = "stopped; what is done is kept: run the same command again to continue\n"
    monkeypatch.setattr(grid, "run_study", stop)
    monkeypatch.setattr(sweep, "run_sweep", stop)
    result = invoke("study", tmp_path / "a", *flags(images))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", line)
    (tmp_path / "one.toml").write_text("epochs = 1\n")
    result = invoke("sweep", tmp_path)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", line)


def test_a_stopped_study_goes_on(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Study(
        folder=tmp_path,
        training=TrainConfig(**NETWORK, data_dir=str(images)),  # type: ignore[arg-type]
        methods=["magnitude"],
        rates=[0.0, 0.5],
        seeds=[0],
        pruning={},
    )
    told: list[str] = []

    def stop_after_two(done: TaskResult) -> None:
        told.append(done.name)
        if len(told) == 2:
            raise StopRequested(signal.SIGINT)

    with pytest.raises(StopRequested):
        run_study(plan, 1, stop_after_two)
    assert told == ["dense-seed-0", "magnitude-0-seed-0"]
    records = run_study(plan, 1, lambda done: told.append(done.name))
    assert told == ["dense-seed-0", "magnitude-0-seed-0", "dense-seed-0", "magnitude-0.5-seed-0"]
    assert [(record["method"], record["rate"]) for record in records] == [("dense", 0.0), ("magnitude", 0.0), ("magnitude", 0.5)]
    monkeypatch.setattr(grid, "prune", None)  # nothing is pruned again
    assert run_study(plan, 1, told.append) == records  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "magnitude,unti"}, "unknown method 'unti': did you mean unit?"),
        ({"methods": "adm"}, "unknown method 'adm': did you mean admm"),
        ({"methods": "lasso"}, "unknown method 'lasso': did you mean group-lasso?"),
        ({"methods": "magnitude-std"}, "magnitude-std has no rate to choose: leave it out of --methods"),
        ({"methods": "2:4"}, "2:4 has no rate to choose: leave it out of --methods"),
        ({"methods": "group-lasso"}, "group-lasso prunes while it retrains: give 4 --retrain-epochs or more, or leave it out of --methods"),
        ({"methods": "group-lasso", "retrain_epochs": "3"}, "group-lasso prunes while it retrains: give 4 --retrain-epochs or more"),
        (
            {"methods": "group-lasso", "retrain": "lr-rewind"},
            "group-lasso continues training and rewinds nothing: use --retrain lr-restart or finetune with it",
        ),
        (
            {"methods": "admm"},
            "admm acts before it prunes: give --during, the number of epochs in which it acts, or leave it out of --methods",
        ),
        ({"methods": "admm", "during": "0", "retrain_epochs": "2"}, "admm acts before it prunes: give --during"),
        ({"rates": "0.5,1"}, "rate must be at least 0 and below 1, the fraction to remove, not 1.0"),
        ({"rates": "0.5;0.6"}, "--rates must be numbers separated by commas, not '0.5;0.6'"),
        ({"seeds": "0,0"}, "--seeds must list at least one value, and none twice, not 0,0"),
        ({"rate": "0.5"}, "unknown option '--rate': did you mean --rates"),
        ({"retrain": "rewind"}, "unknown retrain 'rewind'"),
    ],
    ids=str,
)
def test_bad_grids_are_one_line(images: Path, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    result = invoke("study", tmp_path / "new", *flags(images, **changes))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "new").exists()


# Tables and plots, by hand.


def record(method: str, rate: float, seed: int, top1: float) -> dict[str, Any]:
    left = round(1000 * (1 - rate))
    macs = 500 if method == "unit" and rate else 1000
    own = {"nonzero_params": left, "dense_params": 1000, "macs": macs, "dense_macs": 1000}
    return {"method": method, "rate": rate, "seed": seed, "top1": top1, **own}


RECORDS = [record("unit", 0.5, 0, 0.9), record("unit", 0.5, 1, 0.8), record("unit", 0.0, 0, 1.0), record("magnitude", 0.9, 0, 0.95)]


def test_means_and_spread() -> None:
    found = points(RECORDS)
    assert found == [
        Point("unit", 0.0, 1, 1.0, 1.0, 1.0, 1.0, 1.0),
        Point("unit", 0.5, 2, pytest.approx(0.85), 0.8, 0.9, 0.5, 0.5),
        Point("magnitude", 0.9, 1, 0.95, 0.95, 0.95, pytest.approx(0.1), 1.0),
    ]
    assert table(found).splitlines() == [
        "| rate | unit | magnitude |",
        "| ---: | --- | --- |",
        "| 0% | 100.00% (1 of 2 seeds), 100.0% params, 100.0% MACs left |  |",
        "| 50% | 85.00% (80.00% to 90.00%), 50.0% params, 50.0% MACs left |  |",
        "| 90% |  | 95.00% (1 of 2 seeds), 10.0% params, 100.0% MACs left |",
    ]
    more = table(points([*RECORDS, record("unit", 0.5, 2, 0.7), record("unit", 0.995, 0, 0.1)])).splitlines()
    assert more[3].startswith("| 50% | 80.00% (70.00% to 90.00%), 50.0% params")
    assert more[-1].startswith("| 99.5% | 10.00% (1 of 3 seeds), ")
    assert table(points([record("unit", rate, 0, 0.5) for rate in (0.29, 0.995)])).splitlines()[2:] == [
        "| 29% | 50.00%, 71.0% params, 50.0% MACs left |",
        "| 99.5% | 50.00%, 0.5% params, 50.0% MACs left |",
    ]


def test_the_dense_networks_are_a_row_above_all_rates() -> None:
    dense = [record("dense", 0.0, 0, 0.92), record("dense", 0.0, 1, 0.94)]
    assert table(points(dense + RECORDS)).splitlines()[1:4] == [
        "| ---: | --- | --- |",
        "| dense | 93.00% (92.00% to 94.00%) | 93.00% (92.00% to 94.00%) |",
        "| 0% | 100.00% (1 of 2 seeds), 100.0% params, 100.0% MACs left |  |",
    ]
    assert table(points(dense)).splitlines() == ["| rate | dense |", "| ---: | --- |", "| dense | 93.00% (92.00% to 94.00%) |"]


def test_without_a_cell_there_is_a_table_and_no_plot(tmp_path: Path) -> None:
    files = write_study(tmp_path, [record("dense", 0.0, 0, 0.92)], "a network", "svg")
    assert [file.name for file in files] == ["study.csv", "study.json", "study.md"]


def drawn(path: Path) -> dict[str, str]:
    """The colour of every line that a legend names, by its name, as matplotlib was told; dotted ones with a colon in front."""
    found: dict[str, str] = {}
    real = Axes.legend

    def legend(axes: Axes, **kwargs: Any) -> Any:
        for line in axes.get_lines():
            found[str(line.get_label())] = (":" if line.get_linestyle() == ":" else "") + str(line.get_color())
        return real(axes, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "legend", legend)
        (plot_macs if "macs" in path.name else plot_sparsity)(path, points(COLOURFUL), "a network")
    return found


COLOURFUL = [
    record("dense", 0.0, 0, 0.9),
    *(record(method, rate, 0, 0.9 - rate / 2) for method in ("magnitude", "unit") for rate in (0.0, 0.5)),
]


def test_a_method_has_one_colour_in_all_plots_and_the_dense_networks_a_dotted_line(tmp_path: Path) -> None:
    by_params, by_macs = drawn(tmp_path / "study.svg"), drawn(tmp_path / "study-macs.svg")
    assert list(by_params) == ["magnitude", "unit", "dense"]
    assert list(by_macs) == ["unit", "dense"]  # masks leave all multiply-accumulates
    assert by_macs.items() <= by_params.items()
    assert len(set(by_params.values())) == 3
    assert by_params["dense"].startswith(":")


@pytest.mark.parametrize("form", ["svg", "png"])
def test_equal_points_give_equal_plots(tmp_path: Path, form: str) -> None:
    found = points(RECORDS)
    for plot in (plot_sparsity, plot_macs):
        files = [tmp_path / f"{name}.{form}" for name in "ab"]
        for file in files:
            plot(file, found, "a network")
        assert files[0].read_bytes() == files[1].read_bytes()
    if form == "svg":
        assert "a network" in files[0].read_text()
        assert "mean and range of up to 2 seeds" in files[0].read_text()


def test_a_table_for_people() -> None:
    text = markdown([{"name": "a|b", "top1": 0.5}, {"name": "c", "top1": None}], {"name": "config", "top1": "top-1|.1%"})
    assert text == "| config | top-1 |\n| --- | --- |\n| a\\|b | 50.0% |\n| c |  |\n"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    records = Records(tmp_path, {"lr": 0.1})
    records.write_settings()
    records.put("a", {"x": 1})
    assert (Records(tmp_path, {"lr": 0.1}).get("a"), records.get("b")) == ({"x": 1}, None)
    (tmp_path / "a.result.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.result\.json cannot be read .*: remove it, and run again to redo this part"):
        records.get("a")


# Tasks.


def fail(kind: type[Exception], text: str) -> None:
    raise kind(text)


def test_tasks_follow_each_other_and_failures_stay_apart() -> None:
    tasks = [
        Task("a", partial(int, "1"), (Task("a1", partial(int, "2")), Task("a2", partial(fail, DataError, "no data\nat all")))),
        Task("b", partial(fail, ValueError, "odd"), (Task("b1", partial(int, "3"), (Task("b2", partial(int, "4")),)),)),
    ]
    told: dict[str, TaskResult] = {}
    run_tasks(tasks, 1, lambda done: told.update({done.name: done}))
    assert (told["a"].result, told["a1"].result) == (1, 2)
    assert told["a2"].failure == "no data"
    assert str(told["b"].failure).startswith("ValueError: odd (test_studies.py:")
    assert (told["b1"].failure, told["b2"].failure) == ("needs b, which failed", "needs b1, which failed")


# Sweeps.


@pytest.fixture
def configs(images: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    common = {**NETWORK, "data_dir": str(images), "penalty_ratio": 0.0}
    (folder / "plain.json").write_text(json.dumps(common))
    masked = common | {"method": "magnitude", "rate": 0.9}
    (folder / "masked.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in masked.items()))
    (folder / "typo.toml").write_text("learning-rate = 1\n")
    (folder / "notes.txt").write_text("not a config")
    (folder / "._plain.json").write_bytes(b"\xff\xfe")
    return folder


def test_a_sweep_runs_every_config_and_sums_up(configs: Path) -> None:
    result = invoke("sweep", configs)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: typo.toml: unknown setting 'learning-rate'")
    assert result.stderr.count("\n") == 1
    rows = list(csv.DictReader((configs / "runs" / "summary.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["masked", "plain"]
    dense = 64 * 300 + 300 + 300 * 100 + 100 + 100 * 4 + 4
    assert {row["params"] for row in rows} == {str(dense)}
    masked, plain = (int(row["nonzero_params"]) for row in rows)
    left = dense - (64 * 300 + 300 * 100 + 400) * 9 // 10
    assert left - 404 <= masked <= left  # biases of dead units are zero as well
    assert plain > 0.99 * dense
    assert {row["train_macs_total"] for row in rows} == {str(3 * 320 * (64 * 300 + 300 * 100 + 400))}
    assert (configs / "runs" / "summary.md").read_text() in result.stdout
    (configs / "typo.toml").unlink()
    age(configs / "runs" / "results" / "plain.result.json")
    again = invoke("sweep", configs)
    assert again.exit_code == 0
    assert not any(line.startswith(("plain", "masked")) for line in again.output.splitlines())


def test_a_config_that_changed_is_refused_and_an_interrupted_run_goes_on(configs: Path) -> None:
    (configs / "typo.toml").unlink()
    assert invoke("sweep", configs).exit_code == 0
    (configs / "runs" / "results" / "plain.result.json").unlink()  # as if it had been killed before that
    text = (configs / "masked.toml").read_text()
    (configs / "masked.toml").write_text(text.replace("0.9", "0.8") + "threshold = 0.5\n")  # train --resume would take the second
    result = invoke("sweep", configs)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: masked: its run has other settings (rate, threshold): rename the config, or remove ")
    assert "plain: top-1 " in result.stdout
    assert "| masked |" not in result.stdout
    (configs / "masked.toml").write_text(text.replace("epochs = 1\n", "epochs = 2\n"))
    assert "its run has other settings (epochs): " in invoke("sweep", configs).stderr
    (configs / "masked.toml").write_text(text.replace('device = "cpu"\n', "keep-best = true\n"))
    assert invoke("sweep", configs).exit_code == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [(False, "is not a folder: name one with .toml or .json configs in it"), (True, "has no .toml or .json config in it")],
)
def test_a_folder_without_configs(tmp_path: Path, make: bool, message: str) -> None:
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    result = invoke("sweep", folder)
    assert (result.exit_code, result.stderr) == (2, f"error: {folder} {message}\n")
