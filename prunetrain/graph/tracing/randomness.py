"""Random numbers from Python's and numpy's generators. A network file cannot draw them; torch's are calls like any other."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class Generators:
    """The states that `random` and `numpy.random` had when this was made."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state(legacy=False)
        self._before = _comparable(self._numpy)

    def moved(self) -> bool:
        """Whether numbers were drawn since then."""
        return random.getstate() != self._python or _comparable(np.random.get_state(legacy=False)) != self._before

    def put_back(self) -> None:
        """Restore the states, so that the same numbers are drawn again."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def drawing_nothing() -> Iterator[Generators]:
    """Yield the current states, and restore them afterwards."""
    generators = Generators()
    try:
        yield generators
    finally:
        generators.put_back()


def _comparable(state: object) -> object:
    if isinstance(state, dict):
        return tuple((name, _comparable(item)) for name, item in state.items())
    return state.tobytes() if isinstance(state, np.ndarray) else state
