"""Summary of a run's data set: how many images of which size, in how many classes, and what is unusual about their numbers.

In: a data set. Out: one line, and a second if some classes have no validation images.
"""

from typing import Final

from prunetrain.config import TrainConfig
from prunetrain.errors import abbreviate_names
from prunetrain.foreign.refusal import printable
from prunetrain.training.data.base import DataSource, escape_non_utf8

_IN_FILES: Final = ("folder", "npz")  # the user's own data sets, which are named by their path
_UNEVEN: Final = 2  # ratio of the largest class to the smallest from which class sizes are mentioned


def summary(config: TrainConfig, data: DataSource) -> tuple[str, ...]:
    """Return the lines to show.

    Args:
        config: names the data set.
        data: the data set.
    """
    name = f"{config.dataset} {printable(escape_non_utf8(config.data_dir))}" if config.dataset in _IN_FILES else config.dataset
    shape = "x".join(map(str, data.input_shape))
    held = "held-out " if config.val_split else ""
    line = f"{name}: {data.num_train:,} training and {data.num_val:,} {held}validation images of {shape}, {data.num_classes:,} classes"
    fewest, most = min(data.train_counts), max(data.train_counts)
    if most >= _UNEVEN * max(1, fewest):
        line += f" of {fewest:,} to {most:,} training images"
    missing = [printable(escape_non_utf8(name)) for name, count in zip(data.class_names, data.val_counts, strict=True) if not count]
    return (line, f"no validation images of {abbreviate_names(missing)}: top-1 says nothing about them") if missing else (line,)
