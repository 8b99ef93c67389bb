"""Starts the workers of a run on this machine with torch's elastic launcher, and restarts them when one dies.

In: the command line, and the number of workers. Out: their common exit code. Each worker is `python -m prunetrain` with the same command
line; it learns its rank from its environment (`joining.join`).

When a worker is killed or crashes, all end and are restarted from the newest checkpoint. They are not restarted if a user's mistake or a
request to stop ended them (exit code 2, or 128 plus the signal's number), nor if they lost each other before there was anything to resume
from, as with two workers on one GPU: it would happen again.
"""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and not in __all__
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters, registry

import prunetrain
from prunetrain.errors import WorkerError
from prunetrain.training.cores import cores
from prunetrain.training.joining import EXIT_PEER_LOST, EXIT_USER_ERROR, LAUNCHER, RUN_KEY, STORE, lost_key, stopped_key
from prunetrain.training.stopping import SIGNALS

STOP_EXIT_CODES = tuple(128 + number for number in SIGNALS)  # exit codes after a request to stop


def launch(arguments: Sequence[str], workers: int, max_restarts: int) -> int:
    """Run the workers until they end.

    Args:
        arguments: the command line of each, without the program.
        workers: number of workers.
        max_restarts: how many times all are restarted after one died.

    Returns:
        0, or the exit code of the workers: 2 after a mistake, which one of them reported; 128 plus its number after a signal.

    Raises:
        WorkerError: if a worker died once more than that, or if they cannot reach each other.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="prunetrain-") as folder, _quiet(), _environment(workers, f"localhost:{store.port}"):
        agent = _Agent(_spec(arguments, workers, max_restarts), DefaultLogsSpecs(log_dir=folder), store)
        try:
            with agent.forwarding():
                agent.run()
        except _WorkersEnded as end:
            return end.code
        except SignalException as stop:  # after torch started the workers, but before `forwarding` took the signals back
            return 128 + int(stop.sigval)
        return 0


class _WorkersEnded(Exception):
    """The workers have ended for good, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Agent(LocalElasticAgent):
    """Torch's agent, extended to forward requests to stop to the workers and to know when not to restart them."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, store: TCPStore) -> None:
        super().__init__(spec, logs)
        self._spec = spec
        self._notes = store
        self._pids: list[int] = []
        self._asked: int | None = None
        self._deaths = 0

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Forward requests to stop to the workers, which are in their own sessions. Their exit codes tell what they did."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            self._install_handlers()
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _install_handlers(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._forward_signal)

    def _forward_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._asked is not None:  # while there were no workers to pass it on to
            raise _WorkersEnded(128 + self._asked)
        started: dict[int, Any] = super()._start_workers(worker_group)
        self._install_handlers()  # torch has just put its own handlers there
        self._pids = list(started.values())
        if self._asked is not None:  # meanwhile
            self._forward_signal(self._asked, None)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            self._pids = []  # all have ended, and other processes may get their numbers
            self._check_restart({rank: failure.exitcode for rank, failure in result.failures.items()})
        return result

    def _check_restart(self, codes: dict[int, int]) -> None:
        """Return to let torch restart the workers; raise otherwise.

        Args:
            codes: exit codes of the workers that failed, by rank; for one killed by a signal, the signal's number, negative.

        Raises:
            _WorkersEnded: if they ended for good: after a user's mistake or a request to stop.
            WorkerError: if they have died too often, or lost each other before there was anything to resume from.
        """
        if EXIT_USER_ERROR in codes.values():
            raise _WorkersEnded(EXIT_USER_ERROR)
        if self._asked is not None:
            raise _WorkersEnded(128 + self._asked)
        ends = {128 - code if -code in SIGNALS else code for code in codes.values()}
        asked = ends.intersection(STOP_EXIT_CODES)
        if asked and ends <= asked | ({EXIT_PEER_LOST} if self._notes.check([stopped_key(self._deaths)]) else set()):
            raise _WorkersEnded(max(asked))  # somebody asked the workers directly
        rank = min(codes, key=lambda rank: (_ended_by_another(codes[rank]), rank))
        what = f"worker {rank} {_describe_exit(codes[rank])}"
        if _ended_by_another(codes[rank]) and (loss := self._find_lost_connection()):
            what = "worker {} lost the others ({})".format(*loss)
            if not self._notes.check([RUN_KEY]):
                raise WorkerError(f"{what} before training began")
        self._deaths += 1
        limit = self._spec.max_restarts
        if self._deaths > limit:
            raise WorkerError(f"{what}, and --max-restarts {limit} does not allow another restart: continue with --resume auto")
        print(f"{what}; all resume from the last checkpoint (restart {self._deaths} of at most {limit})", file=sys.stderr, flush=True)

    def _find_lost_connection(self) -> tuple[int, str] | None:
        """The rank of a worker that lost the others, and torch's message to it; of several, one from NCCL, which says more."""
        keys = {rank: lost_key(self._deaths, rank) for rank in range(self._spec.local_world_size)}
        told = {rank: self._notes.get(key).decode() for rank, key in keys.items() if self._notes.check([key])}
        return min(told.items(), key=lambda loss: ("NCCL" not in loss[1], loss[0]), default=None)


def _ended_by_another(code: int) -> bool:
    """Whether an exit code says that a worker ended because another one did."""
    return code in (EXIT_PEER_LOST, -signal.SIGTERM, *STOP_EXIT_CODES)


def _describe_exit(code: int) -> str:
    """How a worker ended, in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _spec(arguments: Sequence[str], workers: int, max_restarts: int) -> WorkerSpec:
    rendezvous = RendezvousParameters(
        backend="c10d", endpoint="localhost:0", run_id=uuid.uuid4().hex, min_nodes=1, max_nodes=1, local_addr="localhost"
    )
    return WorkerSpec(
        role="prunetrain",
        local_world_size=workers,
        entrypoint=sys.executable,
        args=("-m", "prunetrain", *arguments),
        rdzv_handler=registry.get_rendezvous_handler(rendezvous),
        max_restarts=max_restarts,
        monitor_interval=0.1,
        local_addr="localhost",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the logs of torch's launcher: the workers and `_check_restart` report what a user needs to know."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _environment(workers: int, store: str) -> Iterator[None]:
    """Let child processes find this package, share the cores, and log nothing about their connections."""
    here = str(Path(prunetrain.__file__).parent.parent)
    changes = {
        STORE: store,
        LAUNCHER: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), here])),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // workers))),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL"),
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
