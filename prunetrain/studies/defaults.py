"""The default grid of a study. Importing this imports no torch."""

from typing import Final

METHODS: Final = ("magnitude", "fpgm")
RATES: Final = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
SEEDS: Final = (0, 1, 2)

EXCLUDED_SETTINGS: Final = ("penalty_ratio", "target_macs", "dynamic_batch", "max_batch_size")
"""Fields of `TrainConfig` that a study sets itself, or that have no effect in it."""
