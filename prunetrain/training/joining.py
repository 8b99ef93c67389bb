"""Joining the other workers of a run, and leaving them.

In: the environment variables that torch's launchers set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), whether `prunetrain train
--nproc` or `torchrun` started this process. Out: the `Ranks`.

However many workers fail, one of them reports why: the first to increment a counter in the launcher's store. A worker that merely lost
the others leaves torch's message there, and the launcher restarts all of them.
"""

import ctypes
import os
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # documented, and not in __all__

from prunetrain.errors import PruneTrainError, WorkerError
from prunetrain.training.distribution import Ranks
from prunetrain.training.stopping import SIGNALS, StopRequested

EXIT_USER_ERROR = 2  # exit code after a user's mistake
EXIT_PEER_LOST = 75  # exit code of a worker that lost the others; EX_TEMPFAIL of sysexits.h
TIMEOUT = timedelta(minutes=30)  # for a worker that hangs, or a machine that vanished; a worker that died is noticed at once
_STORE_TIMEOUT = timedelta(seconds=10)
_LONGEST_REASON = 1000  # characters of torch's message about a lost connection
RUN_KEY = "run"  # key in the launcher's store: the checkpoint folder of the run that the workers train
STORE = "PRUNETRAIN_STORE"  # environment variable: host:port of the store of `launching.launch`
LAUNCHER = "PRUNETRAIN_LAUNCHER"  # environment variable: the process id of `launching.launch`
_PARTS = "prunetrain/parts"  # key in torchelastic's store: how many parts of it have been opened
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux's prctl


class PeerFailed(WorkerError):
    """Another worker failed, and has reported why."""


class PeerLost(WorkerError):
    """Another worker is gone without a word: it was killed, or its machine is gone."""


def is_launched_worker() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """This process's number on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def report_failure_once() -> Iterator[None]:
    """Let one worker report a failure inside, however many workers fail. Does nothing for a single process.

    Raises:
        PruneTrainError: what was raised inside, if this worker must report it.
        PeerFailed: if another worker reports, whatever happened to this one.
        PeerLost: if this worker lost the others, and none of them reported why.
        StopRequested: what was raised inside.
    """
    if not is_launched_worker():
        yield
        return
    try:
        yield
    except StopRequested:
        _note_stop()
        raise
    except PruneTrainError as error:
        _ignore_signals()
        if isinstance(error, PeerLost):
            _note_loss(error)
        elif not _must_report_failure():
            raise PeerFailed(str(error)) from error
        raise
    except RuntimeError as error:
        if _has_failure_report():
            raise PeerFailed(str(error)) from error
        if _is_lost_connection(error):
            _ignore_signals()
            _note_loss(error)
            raise PeerLost(str(error)) from error
        raise


@contextmanager
def join(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes that a launcher started, and leave when all do. Without a launcher, this process is alone.

    Args:
        device: where it computes. Tensors on GPUs go through NCCL, those on the CPU and everything small through gloo.

    Raises:
        WorkerError: if the others cannot be reached.
    """
    if not is_launched_worker():
        yield Ranks()
        return
    _stop_with_the_launcher()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, world_size = _rendezvous(_agent_store(TIMEOUT)), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=world_size)
    except (ValueError, KeyError) as error:  # a variable is missing or not a number
        raise WorkerError(f"cannot join the other workers ({error}): start all of them with --nproc, --gpus or torchrun") from None
    ranks = Ranks.joined()
    if ranks.rank > 0:
        warnings.simplefilter("ignore")  # rank 0 shows them
    yield ranks
    _ignore_signals()
    ranks.gather(None)
    distributed.destroy_process_group()


def _ignore_signals() -> None:
    """Ignore signals from now on, while this process ends: the launcher sends them as soon as the first worker has ended."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def note_run(checkpoints: Path) -> None:
    """Tell the launcher which run this is, so that restarted workers resume it."""
    if store := _store():
        store.set(RUN_KEY, str(checkpoints.resolve()))


def noted_run() -> Path | None:
    """The checkpoint folder of the run that the previous workers trained; None for the first ones."""
    store = _store()
    return Path(store.get(RUN_KEY).decode()) if store and store.check([RUN_KEY]) else None


def _rendezvous(store: Store | None) -> Store | None:
    """Open a part of torchelastic's store for the present workers only.

    The store may be older than these workers, and what earlier ones left there, such as addresses, would mislead. So rank 0 opens a
    part under a new number, and welcomes every worker that reports there; a part in which nobody is welcomed is an old one.

    Raises:
        PeerLost: if the others do not arrive.
    """
    if store is None:
        return None
    rank, world_size, me = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), uuid.uuid4().hex
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    if rank == 0:
        part = PrefixStore(f"prunetrain/{store.add(_PARTS, 1)}", store)
        for other in range(1, world_size):
            while not part.check([f"here/{other}"]):  # `get` would block without handling signals
                if time.monotonic() > deadline:
                    raise PeerLost(f"worker {other} did not arrive")
                time.sleep(0.02)
            part.set(f"welcome/{other}", part.get(f"here/{other}").decode())
        return part
    while time.monotonic() < deadline:
        part = PrefixStore(f"prunetrain/{store.add(_PARTS, 0)}", store)
        part.set(f"here/{rank}", me)
        if part.check([f"welcome/{rank}"]) and part.get(f"welcome/{rank}") == me.encode():
            return part
        time.sleep(0.02)
    raise PeerLost("worker 0 did not arrive")


def _agent_store(timeout: timedelta) -> Store | None:
    """The store of torch's elastic launcher; None without that launcher."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return None
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)


def _store() -> Store | None:
    """The launcher's store, which outlives the workers; None without one, or if it is gone."""
    with suppress(RuntimeError):
        if address := os.environ.get(STORE):
            host, port = address.split(":")
            return TCPStore(host, int(port), is_master=False, timeout=_STORE_TIMEOUT)
        store = _agent_store(_STORE_TIMEOUT)
        return store and PrefixStore("prunetrain", store)
    return None


def _restart_count() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _failure_report_key() -> str:
    return f"told/{_restart_count()}"


def lost_key(restarts: int, rank: int) -> str:
    """The key in the launcher's store for torch's message to a worker that lost the others, after this many restarts."""
    return f"lost/{restarts}/{rank}"


def stopped_key(restarts: int) -> str:
    """The key that the launcher's store has if a worker stopped on request, after this many restarts, before any was lost."""
    return f"stopped/{restarts}"


def _note_stop() -> None:
    """Tell our own launcher that the workers about to lose this one need no restart.

    The launcher itself may have asked this one to stop because others were lost: then these have left a note, and this one leaves none.
    """
    with suppress(RuntimeError):
        store = _store() if STORE in os.environ and not _is_orphaned() else None
        if store and not any(store.check([lost_key(_restart_count(), rank)]) for rank in range(int(os.environ["WORLD_SIZE"]))):
            store.set(stopped_key(_restart_count()), "")


def _note_loss(error: Exception) -> None:
    """Leave torch's message about a lost connection for our launcher to report (`launching`); under another launcher, print it here."""
    rank, reason = int(os.environ["RANK"]), " ".join(str(error).split())[:_LONGEST_REASON]
    if STORE not in os.environ:
        print(f"worker {rank} lost the others: {reason}", file=sys.stderr, flush=True)
    with suppress(RuntimeError):
        if store := _store():
            store.set(lost_key(_restart_count(), rank), reason)


def _must_report_failure() -> bool:
    """Whether this worker must report what went wrong."""
    with suppress(RuntimeError):
        if store := _store():
            return bool(store.add(_failure_report_key(), 1) == 1)
    return os.environ["RANK"] == "0"


def _has_failure_report() -> bool:
    """Whether another worker has reported what went wrong."""
    with suppress(RuntimeError):
        if store := _store():
            return bool(store.check([_failure_report_key()]))
    return False


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error of torch means that another worker is gone. Gloo has no exception class for that."""
    if isinstance(error, distributed.DistError):
        return True
    text = str(error)
    return any(words in text for words in ("gloo", "Gloo", "NCCL"))


def _stop_with_the_launcher() -> None:
    """Ask the system for a SIGTERM when the launcher dies, so that no worker keeps training unseen. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGTERM)
    if _is_orphaned():  # since before this request
        os.kill(os.getpid(), signal.SIGTERM)


def _is_orphaned() -> bool:
    """Whether our own launcher started this process and has died."""
    return os.environ.get(LAUNCHER) not in (None, str(os.getppid()))
