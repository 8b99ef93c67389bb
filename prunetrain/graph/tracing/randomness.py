"""Random numbers from Python's and numpy's generators. A network file cannot draw them; torch's are calls like any other."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class RandomStates:
    """The states that `random` and `numpy.random` had when this was made."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state(legacy=False)
        self._before = _comparable(self._numpy)

    def has_changed(self) -> bool:
        """Whether numbers were drawn since then."""
        return random.getstate() != self._python or _comparable(np.random.get_state(legacy=False)) != self._before

    def restore(self) -> None:
        """Restore the states, so that the same numbers are drawn again."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def preserve_random_state() -> Iterator[RandomStates]:
    """Yield the current states, and restore them afterwards."""
    random_states = RandomStates()
    try:
        yield random_states
    finally:
        random_states.restore()


def _comparable(state: object) -> object:
    if isinstance(state, dict):
        return tuple((name, _comparable(item)) for name, item in state.items())
    return state.tobytes() if isinstance(state, np.ndarray) else state
