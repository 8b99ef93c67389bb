"""`prunetrain report`: the page's words, its drawings, what is escaped, its errors. How it looks in a browser: test_browser.py."""

import re
import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from graphs import chain, without_a_branch
from reported import write_run, write_settings
from runs import invoke

from prunetrain.paths import RunPaths
from prunetrain.report.charts import CHARTS, horizontal_positions
from prunetrain.report.figures import RunStyle, edges_of
from prunetrain.report.history import read_history

pytest.importorskip("matplotlib", reason="matplotlib, the extra `plot`, is not installed")

FIGURES = {chart.name for chart in CHARTS} - {"sparsity", "admm", "exchange"}  # what a run by group lasso in one process has


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them with a branch that goes, and a dense one; the report of all in `report.html`."""
    folder = tmp_path_factory.mktemp("runs").resolve()
    write_run(folder, "pruned")
    write_run(folder, "chain", {0: chain(), 3: chain()})
    write_run(folder, "dense", {0: without_a_branch()}, lasso=0.0, lasso_strength=0.0)
    result = invoke("report", "pruned", "chain", "dense", "--output-dir", folder, "-o", folder / "report.html")
    assert (result.exit_code, result.stderr, result.stdout) == (0, "", f"page     {folder}/report.html\n")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture
def few_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it matters little which charts there are: drawing takes most of a page's time."""
    for module in ("page", "charts"):
        monkeypatch.setattr(f"prunetrain.report.{module}.CHARTS", CHARTS[:1])


def figures(page: str) -> dict[str, ElementTree.Element]:
    """The drawings of a page by what they are called for a screen reader."""
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return {svg.attrib["aria-label"]: svg for svg in drawn}


def test_summary(page: str) -> None:
    rows = re.findall(r'<th scope="row">.*?</span>(.*?)</th>(.*?)</tr>', page)
    cells = {name: re.findall("<td>(.*?)</td>", values) for name, values in rows}
    assert list(cells) == ["pruned", "chain", "dense"]
    assert cells["dense"][:2] == ["4", "80.00%"]
    assert [cells["dense"][index] for index in (3, 5)] == ["0.0%", "0.0%"]
    assert cells["pruned"][-1] == "10s"


def test_every_figure_is_there_and_ids_are_unique(page: str) -> None:
    drawn = figures(page)
    charts = {f"{chart.title}: {chart.unit}" for chart in CHARTS if chart.name in FIGURES}
    maps = {f"{run}: channels of every layer over the epochs" for run in ("pruned", "chain")}  # the dense one has one network only
    assert set(drawn) == charts | maps
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    referred = {*re.findall(r"url\(#([^)]+)\)", page), *re.findall(r'href="#([^"]+)"', page)}
    assert referred == set(ids)


def test_heat_map_names_layers_and_what_became_of_them(page: str) -> None:
    svg = figures(page)["pruned: channels of every layer over the epochs"]
    words = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"conv1", "layer1_0_conv1", "fc", "gone, was 8", "8 of 8", "10 of 10", "network after epoch"} <= set(words)
    tips = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}title")}
    assert {"layer1_0_conv1: 3 of 8 channels from epoch 2", "layer1_0_conv1: 0 of 8 channels from epoch 4"} <= tips


def test_colours_follow_the_reader(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--run-0)" in drawings
    assert "color-mix(in srgb, var(--heat) 100.0%, var(--paper))" in drawings
    assert re.findall(r"#[0-9a-f]{6}\b", drawings) == []  # no fixed colour
    assert "prefers-color-scheme: dark" in page


@pytest.mark.usefixtures("few_charts")
def test_page_is_a_function_of_the_files(folder: Path) -> None:
    again = folder / "again.html"
    pages = []
    for _ in range(2):
        assert invoke("report", "pruned", "dense", "--output-dir", folder, "-o", again).exit_code == 0
        pages.append(again.read_text())
    assert pages[0] == pages[1]


def test_page_asks_for_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\s\"<]+", page)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.usefixtures("few_charts")
def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    evil = tmp_path / "<script>alert(1)</script>"
    runs = [write_run(evil, "x"), write_run(tmp_path / "b", "x")]
    network = runs[0].network(2)
    network.write_text(network.read_text().replace("# layer1.0", "# </script><img src=x onerror=alert(2)>"))
    result = invoke("report", runs[0].networks, runs[1].checkpoints, "-o", tmp_path / "page.html")
    assert (result.exit_code, result.stderr) == (0, "")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "\\u003cimg src=x" in page  # inside the JSON


@pytest.mark.parametrize("form", ["svg", "png"])
@pytest.mark.usefixtures("few_charts")
def test_figures_as_files(folder: Path, tmp_path: Path, form: str) -> None:
    result = invoke(
        "report", "pruned", "dense", "--output-dir", folder, "-o", tmp_path / "x.html", "--figures", tmp_path / "figures", "--format", form
    )
    assert (result.exit_code, result.stderr) == (0, "")
    files = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in files] == [f"accuracy.{form}", f"channels-pruned.{form}"]
    assert {line.removeprefix("figure   ") for line in result.stdout.splitlines()[1:]} == {str(path) for path in files}
    for path in files:
        content = path.read_bytes()
        if form == "svg":
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
            assert b"var(--" not in content
        else:
            width, height = struct.unpack(">II", content[16:24])
            assert min(width, height) > 300


@pytest.mark.usefixtures("few_charts")
def test_runs_without_metrics_or_networks(tmp_path: Path) -> None:
    write_run(tmp_path, "networks", epochs=0)
    (tmp_path / "generated_nets" / "metrics").mkdir()
    write_run(tmp_path, "metrics", {}, epochs=1)
    result = invoke("report", "networks", "metrics", "--output-dir", tmp_path, "-o", tmp_path / "x.html")
    assert (result.exit_code, result.stderr) == (0, "")
    page = (tmp_path / "x.html").read_text()
    assert "networks: channels of every layer" in page
    assert "Accuracy" in page


def test_charts_without_anything_to_show_are_left_out(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path, "x", sparsity=0.5, lasso_strength=0.0), "x")
    shown = {chart.name for chart in CHARTS if chart.has_values_for([history])}
    assert "sparsity" in shown
    (size,) = (chart for chart in CHARTS if chart.name == "params")
    assert size.kinds([history]) == ()
    masked = read_history(write_run(tmp_path, "y", sparsity=0.5, nonzero_params=7), "y")
    assert [curve.label for curve in size.kinds([history, masked])] == ["parameters", "nonzero parameters"]
    assert not {"lambda", "exchange"} & shown


@pytest.fixture
def pruned_runs(tmp_path: Path) -> list[RunPaths]:
    """Two runs with masks, of two rates."""
    runs = []
    for name, rate, left in (("half", 0.5, 100), ("<b>tenth</b>", 0.9, 20)):
        run = write_run(tmp_path / name, "x", {0: chain(), 2: chain()}, sparsity=rate, nonzero_params=left)
        runs.append(write_settings(run, method="magnitude", rate=rate, data_dir=name))
    return runs


@pytest.mark.usefixtures("few_charts")
def test_runs_with_masks_are_told_apart(pruned_runs: list[RunPaths], tmp_path: Path) -> None:
    result = invoke("report", *(run.checkpoints for run in pruned_runs), "-o", tmp_path / "x.html")
    assert (result.exit_code, result.stderr) == (0, "")
    results, settings = re.findall("<table>(.*?)</table>", (tmp_path / "x.html").read_text(), re.DOTALL)
    dense = read_history(pruned_runs[0], "x").networks[0].costs.params
    assert f"<td>100 ({100 / dense:.1%})</td>" in results
    assert f"<td>20 ({20 / dense:.1%})</td>" in results
    assert re.findall('<th scope="col">(.*?)</th>', settings) == ["run", "rate", "data-dir"]
    assert re.findall("<td>(.*?)</td>", settings) == ["0.5", "half", "0.9", "&lt;b&gt;tenth&lt;/b&gt;"]
    assert "a method pruned</span>" in (tmp_path / "x.html").read_text()


def test_the_epoch_of_a_pruning_is_marked_on_every_axis(pruned_runs: list[RunPaths], tmp_path: Path) -> None:
    history = read_history(pruned_runs[0], "x")
    marked = {chart.name: chart.pruning_positions(history) for chart in CHARTS if chart.pruning_positions(history)}
    assert marked == {"accuracy": [2], "accuracy-by-training-macs": [3 * 600_000 * 200], "accuracy-by-time": [5.0]}
    lasso = read_history(write_run(tmp_path, "lasso"), "lasso")
    assert not any(chart.pruning_positions(lasso) for chart in CHARTS)


def test_a_run_is_drawn_to_its_end_and_no_further(tmp_path: Path) -> None:
    def edges(name: str, *networks: int, epochs: int) -> list[float]:
        return edges_of(read_history(write_run(tmp_path, name, dict.fromkeys(networks, chain()), epochs), name))

    assert edges("pruned", 0, 9, epochs=10) == [0, 9, 10]
    assert edges("long", 0, 10, 20, epochs=40) == [0, 10, 20, 40]
    assert edges("cut-last", 0, 10, 50, epochs=50) == [0, 10, 50, 52]  # a stripe
    assert edges("every", 0, *range(1, 51), epochs=50)[-2:] == [50, 51]
    assert edges("one", 0, epochs=0) == [0, 1]


@pytest.mark.parametrize(("runs", "points"), [(2, 4), (3, 20), (7, 5), (4, 200)])
def test_lines_on_each_other_have_dots_at_other_points(runs: int, points: int) -> None:
    dots = [RunStyle("#000000", index, runs).marked_points(points) for index in range(runs)]
    assert all(places[-1] == points - 1 for places in dots)
    shared = [place for places in dots for place in places[:-1]]
    assert len(shared) == len(set(shared))
    assert max(map(len, dots)) <= 8


def test_time_adds_up(tmp_path: Path) -> None:
    (chart,) = (chart for chart in CHARTS if chart.name == "accuracy-by-time")
    assert horizontal_positions(chart, read_history(write_run(tmp_path, "x"), "x")) == [2.5, 5.0, 7.5, 10.0]


def test_errors_are_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*args: str | Path) -> str:
        result = invoke("report", *args, "--output-dir", folder)
        assert (result.exit_code, result.stdout) == (2, "")
        return result.stderr

    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    refused = f"error: no run mobile: name a run in {folder} or one of its folders, or give --output-dir if the run is elsewhere\n"
    assert error("mobile") == refused
    assert error("prund") == "error: no run prund: did you mean pruned?\n"
    assert error("dense", "-o", mine) == f"error: {mine} already exists and is not a report: choose another name, or pass --force\n"
    assert error("dense", "-o", tmp_path) == f"error: {tmp_path} is a folder: name a file with -o\n"
    picture = tmp_path / "x.png"
    assert (
        error("dense", "-o", picture) == f"error: {picture}: a report is a page and ends in .html; --figures writes each plot as an image\n"
    )
    assert mine.read_text() == "mine"
    assert "run" in error()
    broken = write_run(tmp_path, "broken")
    broken.network(2).write_text("import os")
    assert error(broken.networks).startswith(f"error: {broken.network(2)}:1: ")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    install = "pip install 'prunetrain[plot]', or pip install matplotlib"
    assert error("dense") == f"error: a report needs matplotlib, which is not installed: {install}\n"


@pytest.mark.usefixtures("few_charts")
def test_force_and_older_reports(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    assert invoke("report", "dense", "--output-dir", folder, "-o", mine, "--force").exit_code == 0
    assert invoke("report", "dense", "--output-dir", folder, "-o", mine).exit_code == 0


@pytest.mark.usefixtures("few_charts")
def test_run_of_the_shortest_kind(tmp_path: Path) -> None:
    """One network, no epoch: a run that was stopped at once."""
    run = RunPaths(tmp_path, "short")
    write_run(tmp_path, "short", {0: chain()}, epochs=0)
    assert invoke("report", run.networks, "-o", tmp_path / "x.html").exit_code == 0
