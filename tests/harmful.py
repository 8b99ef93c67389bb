"""A pickle that does something: what readers of foreign files must never let run."""

import os
from pathlib import Path
from typing import Any


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)
