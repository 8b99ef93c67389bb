"""Where a run computes: this process's device, and the processes that train with it. What a checkpoint says nothing about."""

from dataclasses import dataclass, field

import torch

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.training.distribution import Ranks


@dataclass(frozen=True)
class Environment:
    """A device, and all processes of the run; by default this one alone."""

    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)

    @classmethod
    def of(cls, config: TrainConfig) -> "Environment":
        """What the settings ask for and this machine has.

        Raises:
            ConfigError: if the settings name a device that this machine does not have.
        """
        return cls(choose_device(config))


def choose_device(config: TrainConfig) -> torch.device:
    """The device of a run.

    Raises:
        ConfigError: if the settings name none that this machine has.
    """
    name = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    absent = ConfigError(f"device {config.device!r} is not on this machine: use auto, cpu, or cuda where there is a GPU")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise absent from None
    if device.type not in ("cpu", "cuda"):
        raise absent
    if config.amp == "float16" and device.type == "cpu":
        raise ConfigError("--amp float16 needs a GPU: use --amp bfloat16 on a CPU")
    return device
