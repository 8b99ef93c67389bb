"""Joining the other workers of a run, and leaving them.

In: the environment variables that torch's launchers set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), whether `prunetrain train
--nproc` or `torchrun` started this process. Out: the `Ranks`.

However many workers fail, one of them tells why: whoever is first to count up a number in the launcher's store. One that merely lost the
others leaves there what torch said of it, and the launcher starts all of them anew.
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

FAILED = 2  # exit code after what a user can do wrong
PEER_LOST = 75  # exit code of a worker that lost the others; EX_TEMPFAIL of sysexits.h
PATIENCE = timedelta(minutes=30)  # for a worker that hangs, or a machine that vanished; one that died is noticed at once
_STORE_PATIENCE = timedelta(seconds=10)
_LONGEST_REASON = 1000  # characters of what torch says of a lost connection
RUN = "run"  # key of the launcher's store: the folder of checkpoints of the run that the workers train
STORE = "PRUNETRAIN_STORE"  # environment variable: host:port of the store of `launching.launch`
LAUNCHER = "PRUNETRAIN_LAUNCHER"  # environment variable: the process id of `launching.launch`
_PARTS = "prunetrain/parts"  # how many parts of torchelastic's store have been opened
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux's prctl


class PeerFailed(WorkerError):
    """Another worker failed, and has told why."""


class PeerLost(WorkerError):
    """Another worker is gone without a word: killed, or its machine is."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """This process's number on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def one_voice() -> Iterator[None]:
    """Inside, whatever fails on however many workers is told by one of them. Alone, it does nothing.

    Raises:
        PruneTrainError: what was raised inside, if it is on this worker to tell it.
        PeerFailed: if another worker tells, whatever happened to this one.
        PeerLost: if this worker lost the others, and none of them told why.
        StopRequested: what was raised inside.
    """
    if not launched():
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
        elif not _first_to_tell():
            raise PeerFailed(str(error)) from error
        raise
    except RuntimeError as error:
        if _told():
            raise PeerFailed(str(error)) from error
        if _is_lost_connection(error):
            _ignore_signals()
            _note_loss(error)
            raise PeerLost(str(error)) from error
        raise


@contextmanager
def join(device: torch.device) -> Iterator[Ranks]:
    """Inside, this process is one of those that a launcher started; without a launcher it is alone. It leaves when all do.

    Args:
        device: where it computes. Tensors on GPUs go through NCCL, those on the CPU and everything small through gloo.

    Raises:
        WorkerError: if the others cannot be reached.
    """
    if not launched():
        yield Ranks()
        return
    _stop_with_the_launcher()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, world_size = _meet(_agent_store(PATIENCE)), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank, world_size=world_size)
    except (ValueError, KeyError) as error:  # a variable is missing or no number
        raise WorkerError(f"cannot join the other workers ({error}): start all of them with --nproc, --gpus or torchrun") from None
    ranks = Ranks.joined()
    if ranks.rank > 0:
        warnings.simplefilter("ignore")  # rank 0 shows them
    yield ranks
    _ignore_signals()
    ranks.gather(None)
    distributed.destroy_process_group()


def _ignore_signals() -> None:
    """Let nothing end this process any more, now that it is ending: the launcher does, as soon as the first of the workers has ended."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def note_run(checkpoints: Path) -> None:
    """Let the launcher know which run this is: workers that it starts anew go on with it."""
    if store := _store():
        store.set(RUN, str(checkpoints.resolve()))


def noted_run() -> Path | None:
    """The folder of checkpoints of the run that workers before these were at; None for the first ones."""
    store = _store()
    return Path(store.get(RUN).decode()) if store and store.check([RUN]) else None


def _meet(store: Store | None) -> Store | None:
    """A part of torchelastic's store that is for the workers of now alone.

    The store may be older than these workers, and what those before them left there, such as addresses, would mislead. So rank 0 opens a
    part under a new number, and welcomes everyone who reports there; a part in which nobody does is an old one.

    Raises:
        PeerLost: if the others do not come.
    """
    if store is None:
        return None
    rank, world_size, me = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), uuid.uuid4().hex
    deadline = time.monotonic() + PATIENCE.total_seconds()
    if rank == 0:
        part = PrefixStore(f"prunetrain/{store.add(_PARTS, 1)}", store)
        for other in range(1, world_size):
            while not part.check([f"here/{other}"]):  # `get` would wait where no signal is heard
                if time.monotonic() > deadline:
                    raise PeerLost(f"worker {other} did not come")
                time.sleep(0.02)
            part.set(f"welcome/{other}", part.get(f"here/{other}").decode())
        return part
    while time.monotonic() < deadline:
        part = PrefixStore(f"prunetrain/{store.add(_PARTS, 0)}", store)
        part.set(f"here/{rank}", me)
        if part.check([f"welcome/{rank}"]) and part.get(f"welcome/{rank}") == me.encode():
            return part
        time.sleep(0.02)
    raise PeerLost("worker 0 did not come")


def _agent_store(patience: timedelta) -> Store | None:
    """The store of torch's elastic launcher; None without that launcher."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return None
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=patience)


def _store() -> Store | None:
    """A store that outlives the workers, their launcher's; None without one, or if it is gone."""
    with suppress(RuntimeError):
        if address := os.environ.get(STORE):
            host, port = address.split(":")
            return TCPStore(host, int(port), is_master=False, timeout=_STORE_PATIENCE)
        store = _agent_store(_STORE_PATIENCE)
        return store and PrefixStore("prunetrain", store)
    return None


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _told_key() -> str:
    return f"told/{_restarts()}"


def lost_key(restarts: int, rank: int) -> str:
    """The key of the launcher's store for what torch told a worker that lost the others, after so many restarts."""
    return f"lost/{restarts}/{rank}"


def stopped_key(restarts: int) -> str:
    """The key of the launcher's store that is there if a worker stopped at a request, after so many restarts, before any was lost."""
    return f"stopped/{restarts}"


def _note_stop() -> None:
    """Let our own launcher know that those who are about to lose this worker need no other start.

    It may be the launcher that asked, since others were lost: then they have said so.
    """
    with suppress(RuntimeError):
        store = _store() if STORE in os.environ and not _orphaned() else None
        if store and not any(store.check([lost_key(_restarts(), rank)]) for rank in range(int(os.environ["WORLD_SIZE"]))):
            store.set(stopped_key(_restarts()), "")


def _note_loss(error: Exception) -> None:
    """Leave what torch said of a lost connection for the launcher to tell (`launching`); under another one tell it here."""
    rank, reason = int(os.environ["RANK"]), " ".join(str(error).split())[:_LONGEST_REASON]
    if STORE not in os.environ:
        print(f"worker {rank} lost the others: {reason}", file=sys.stderr, flush=True)
    with suppress(RuntimeError):
        if store := _store():
            store.set(lost_key(_restarts(), rank), reason)


def _first_to_tell() -> bool:
    """Whether it is on this worker to tell what went wrong."""
    with suppress(RuntimeError):
        if store := _store():
            return bool(store.add(_told_key(), 1) == 1)
    return os.environ["RANK"] == "0"


def _told() -> bool:
    """Whether another worker has told what went wrong."""
    with suppress(RuntimeError):
        if store := _store():
            return bool(store.check([_told_key()]))
    return False


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error of torch is that another worker is gone. Gloo has no class for it."""
    if isinstance(error, distributed.DistError):
        return True
    text = str(error)
    return any(words in text for words in ("gloo", "Gloo", "NCCL"))


def _stop_with_the_launcher() -> None:
    """Ask the system for a SIGTERM when the launcher dies, so that nothing trains on unseen. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGTERM)
    if _orphaned():  # before it was asked
        os.kill(os.getpid(), signal.SIGTERM)


def _orphaned() -> bool:
    """Whether our own launcher, if it was that, has died."""
    return os.environ.get(LAUNCHER) not in (None, str(os.getppid()))
