"""Requests to stop, and what follows a training step.

In: signals (Ctrl-C, SIGTERM and SIGUSR1 of a cluster that wants its machine back, SIGHUP of a terminal that closes) and the time.
Out: after every step an `Action`; or a `StopRequested`, where nothing must be finished first.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SECONDS_PER_MINUTE = 60
ECHO_SECONDS = 1.0
"""Seconds within which the same signal to one of several workers counts as one request: a signal that a cluster sends to all processes of
a job is also passed on by the launcher."""


class StopRequested(KeyboardInterrupt):
    """A signal that asks this process to stop, raised where it arrived."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def exit_code(number: signal.Signals) -> int:
    """The exit code that says which signal ended a process, as in shells: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


class StopRequests:
    """The requests to stop that this process has received.

    A request raises `StopRequested` at once, except inside `deferred`: there it is noted in `asked`, and only a second signal of the same
    kind raises. Two different signals do not show impatience, since a launcher may pass on what the terminal sent to all as another one.
    Nor do two equal ones at about the same time, if there is a launcher.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._seen: dict[int, float] = {}  # when each came first
        self._echo = ECHO_SECONDS if "RANK" in os.environ else 0.0
        self._deferring = False
        self._process = os.getpid()
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def handle(self, number: int, frame: object) -> None:
        """Handle a signal; in a process forked from this one, such as a data loader's worker, leave it to the parent."""
        if os.getpid() != self._process:
            return
        again, now = number in self._seen, time.monotonic()
        if now - self._seen.setdefault(number, now) < self._echo and again:
            return
        self.asked = self.asked or signal.Signals(number)
        if number == signal.SIGHUP:
            self._discard_terminal_output()
        if again or not self._deferring:
            raise StopRequested(signal.Signals(number))

    def _discard_terminal_output(self) -> None:
        """Discard what is printed to the terminal: it is gone, and an error in printing would lose the checkpoint."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nothing, descriptor)
        os.close(nothing)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first request waits until it is looked for."""
        before, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work inside `deferred` that can be repeated without loss: a request raises at once, and so does one that waits.

        Raises:
            StopRequested: if there is a request.
        """
        before, self._deferring = self._deferring, False
        try:
            self.check()
            yield
            self.check()
        finally:
            self._deferring = before

    def check(self) -> None:
        """Raise if a request has come: one that waits, or one whose exception was lost in code that catches everything, as imports may.

        Raises:
            StopRequested: if there is a request.
        """
        if self.asked is not None:
            raise StopRequested(self.asked)


@contextmanager
def stopping_on_signals() -> Iterator[StopRequests]:
    """Inside, signals that ask to stop become requests. Signals that were ignored (nohup) stay ignored; other threads change no handler.

    Inside another such context, yield the same requests.

    Raises:
        StopRequested: at the beginning, if there is one already.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    around = next(filter(None, map(_requests_of, before.values())), None)
    if around is not None or threading.current_thread() is not threading.main_thread():
        requests = around or StopRequests()
        requests.check()
        yield requests
        return
    requests = StopRequests()
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in ours:
            signal.signal(number, requests.handle)
        yield requests
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _requests_of(handler: object) -> StopRequests | None:
    """The requests that a signal handler belongs to."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopRequests) else None


class Action(IntEnum):
    """What follows a step. Where processes decide differently, the largest counts."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Pacer:
    """Decides what follows a step.

    Args:
        requests: to stop.
        minutes: minutes between two checkpoints; 0 for only those at the ends of epochs.
        clock: seconds, never going back.
    """

    def __init__(self, requests: StopRequests, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = requests
        self._seconds = minutes * SECONDS_PER_MINUTE
        self._clock = clock
        self.saved()

    def saved(self) -> None:
        """Note that a checkpoint was written; the next one is due `minutes` from now."""
        self._last = self._clock()

    def action(self) -> Action:
        """What to do now; costs a look at the clock."""
        if self._requests.asked is not None:
            return Action.STOP
        due = self._seconds > 0 and self._clock() - self._last >= self._seconds
        return Action.SAVE if due else Action.GO_ON
