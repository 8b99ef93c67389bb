"""Random numbers of Python's and numpy's own generators. A network file cannot draw them; torch's are calls like any other."""

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
        """Whether numbers were drawn since."""
        return random.getstate() != self._python or _comparable(np.random.get_state(legacy=False)) != self._before

    def put_back(self) -> None:
        """Draw the same numbers again from now on."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def drawing_nothing() -> Iterator[Generators]:
    """The states of now, and again afterwards."""
    generators = Generators()
    try:
        yield generators
    finally:
        generators.put_back()


def _comparable(state: object) -> object:
    if isinstance(state, dict):
        return tuple((name, _comparable(item)) for name, item in state.items())
    return state.tobytes() if isinstance(state, np.ndarray) else state
