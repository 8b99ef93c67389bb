"""What a run says of its data before it trains."""

from pathlib import Path

import numpy as np
from datafiles import CPU
from PIL import Image

from prunetrain.config import TrainConfig
from prunetrain.training.data import load_data
from prunetrain.training.data.summary import summary


def lines(config: TrainConfig) -> tuple[str, ...]:
    return summary(config, load_data(config, CPU))


def test_of_a_data_set_with_a_name() -> None:
    assert lines(TrainConfig(dataset="digits")) == ("digits: 1,437 training and 360 validation images of 1x8x8, 10 classes",)


def test_of_classes_of_many_sizes_and_one_that_is_not_validated(tmp_path: Path) -> None:
    for part, counts in (("train", {"a": 7, "b": 3, "c": 1}), ("val", {"a": 2, "c": 1})):
        for name, count in counts.items():
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((9, 9, 3), 10 * number, dtype=np.uint8)).save(tmp_path / part / name / f"{number}.png")
    assert lines(TrainConfig(dataset="folder", data_dir=str(tmp_path), image_size=8, batch_size=4, workers=0)) == (
        f"folder {tmp_path}: 11 training and 3 validation images of 3x8x8, 3 classes of 1 to 7 training images",
        "no validation images of b: top-1 says nothing about them",
    )


def test_of_names_that_are_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and what steers a terminal, do not reach it."""
    folder = tmp_path / "d\udcff"
    for part, classes in (("train", ("a", "b\udcff", "c\x1b[2J")), ("val", ("a",))):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(folder / part / name / "0.png")
    found = lines(TrainConfig(dataset="folder", data_dir=str(folder), image_size=8, batch_size=2, workers=0))
    assert len(found) == 2
    for line in found:
        assert line.isprintable()
        line.encode()
