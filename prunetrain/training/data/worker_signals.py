"""Signals in the processes that decode images: requests to stop are left to the parent, which finishes its step and then ends the workers.

Terminals and clusters send a request to stop to every process of a job. A worker that died of it would print a traceback and fail the step
that the parent is finishing.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prunetrain.training.stopping import SIGNALS


@contextmanager
def block_signals() -> Iterator[None]:
    """Block requests to stop while workers start: here until the context ends, in a worker until it has set up its own handling."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(worker: int) -> None:
    """Ignore requests to stop, except a SIGTERM from the parent, which ends workers that way when it exits.

    For `DataLoader(worker_init_fn=...)`, with `block_signals` around the loader's start.
    """
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
