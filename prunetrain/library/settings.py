"""The settings of the library's pruner. Meanings, defaults and ranges are those of the command-line flags of the same names."""

from dataclasses import dataclass

from prunetrain.config import AUTO, NORM, TAYLOR, TrainConfig
from prunetrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a pruner; `round_to` must be a number, since only a run of the command line can time candidates.

    Raises:
        ConfigError: for a value that is not allowed.
    """

    penalty_ratio: float
    threshold: float
    criterion: str
    lasso_groups: str
    lasso_step: str
    round_to: int
    importance: str = NORM

    def __post_init__(self) -> None:
        if not isinstance(self.round_to, int):
            raise ConfigError(f"round-to must be a whole number from 1, not {self.round_to!r}")
        if self.importance == AUTO:  # which stands for what a run begins with
            raise ConfigError(f"importance must be {NORM} or, for a network that is trained already, {TAYLOR}: {AUTO} is for runs")
        TrainConfig(**vars(self) | {"round_to": str(self.round_to)})
