"""Mixed precision: torch's types for the names in the settings."""

from contextlib import AbstractContextManager

import torch

AMP_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Return a context for mixed precision on a device; `amp` is "off" or a name in `AMP_TYPES`."""
    return torch.autocast(device.type, dtype=AMP_TYPES.get(amp, torch.bfloat16), enabled=amp != "off")


def compute_type(amp: str) -> torch.dtype:
    """The type that convolutions and matrix products compute in."""
    return AMP_TYPES.get(amp, torch.float32)
