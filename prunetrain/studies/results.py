"""The output files of a study: every cell as CSV and JSON, a table of means as Markdown, and plots.

In: the records of its cells and dense networks. Out: files in one folder.
"""

from collections.abc import Sequence
from pathlib import Path

from prunetrain.files import write_text
from prunetrain.studies.plot import methods_that_cut, plot_macs, plot_sparsity
from prunetrain.studies.records import Record, write_csv, write_json
from prunetrain.studies.summary import LEGEND, methods_of, points, table


def write_study(folder: Path, records: Sequence[Record], title: str, form: str | None) -> list[Path]:
    """Write study.csv, study.json and study.md; and study.svg, with study-macs.svg if some network became smaller.

    Args:
        folder: where to write.
        records: of the dense networks and the cells, at least one. Dense networks alone give no plot.
        title: of the plots.
        form: format of the plots, "svg" or "png"; None for no plots.

    Raises:
        ConfigError: if plots are wanted and matplotlib is not installed.
        OutputError: if a file cannot be written.
    """
    found = points(records)
    files = [folder / "study.csv", folder / "study.json", folder / "study.md"]
    write_csv(files[0], records)
    write_json(files[1], records)
    write_text(files[2], f"{table(found)}\n{LEGEND}\n")
    if form is not None and methods_of(found):
        files.append(folder / f"study.{form}")
        plot_sparsity(files[-1], found, title)
        if methods_that_cut(found):
            files.append(folder / f"study-macs.{form}")
            plot_macs(files[-1], found, title)
    return files
