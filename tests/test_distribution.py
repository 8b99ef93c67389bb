"""Several real processes train one model: the same weights everywhere, the same result as one process, and no death that matters."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import Recorder, arguments, assert_same_state, repeatable, settings, write_images
from torch import Tensor, distributed
from torch.amp import GradScaler
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from workers import NETWORK, Story, in_float64, together

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError, OutputError, WorkerError
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.training import distribution, joining, launching
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.creation import new_state
from prunetrain.training.data import Batch, DataSource, load_data
from prunetrain.training.data.base import Share
from prunetrain.training.distribution import Ranks, StepAgreement
from prunetrain.training.environment import Environment
from prunetrain.training.joining import STORE, PeerFailed, PeerLost, report_failure_once
from prunetrain.training.loop import train_one_epoch
from prunetrain.training.run import resume_run, start_run
from prunetrain.training.state import TrainState
from prunetrain.training.stopping import StopRequested, stopping_on_signals

TOP = Path(__file__).parent.parent
CPU = torch.device("cpu")
RUN = {"device": "cpu", "epochs": 4, "prune_interval": 2, "round_to": "1", "target_macs": 0.0, "schedule": "constant"}
LENET = RUN | {"dataset": "digits", "model": "lenet-300-100", "batch_size": 64, "penalty_ratio": 0.8}
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Few images, whose last batch is not a whole one, as settings."""
    return {"dataset": "npz", "data_dir": str(write_images(tmp_path_factory.mktemp("data") / "images.npz", train=460, val=80))}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """How `--model` spells the network of `workers`."""
    path = tmp_path_factory.mktemp("network") / "net.py"
    path.write_text(NETWORK)
    return f"{path}:Net"


def train_in_float64(rank: int, configs: list[TrainConfig]) -> list[dict[str, Any]]:
    with in_float64():
        return [Story(config).told() for config in configs]


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Of two networks' tensors, relative to the largest number in each."""
    assert list(left) == list(right)
    return max(float((left[name].double() - right[name].double()).abs().max() / right[name].double().abs().max()) for name in left)


def test_one_two_and_four_workers_agree(network: str, images: dict[str, Any], tmp_path: Path) -> None:
    plain = RUN | images | {"model": "lenet-300-100", "batch_size": 64, "penalty_ratio": 0.94, "class_weights": "balanced"}
    synced = RUN | images | {"model": network, "batch_size": 32, "penalty_ratio": 0.7, "sync_batch_norm": True}
    told = {}
    for count in (1, 2, 4):
        configs = [TrainConfig(**changes, output_dir=str(tmp_path / f"{count}")) for changes in (plain, synced)]
        told[count] = together(count, train_in_float64, tmp_path / f"processes{count}", configs)
    for count, ranks in told.items():
        for number in range(2):
            first, alone = ranks[0][number], told[1][0][number]
            assert all(rank[number]["held"] == first["held"] for rank in ranks)
            assert all(rank[number]["history"] == first["history"] for rank in ranks)
            assert len(first["held"]) == 2  # reconfigurations
            assert [after < before for before, after in first["channels"]] == [True, True]
            assert first["channels"] == alone["channels"]
            assert largest_difference(first["weights"], alone["weights"]) < 1e-11
            for line, other in zip(first["history"], alone["history"], strict=True):
                assert line["val_top1"] == other["val_top1"]
                assert line["train_top1"] == other["train_top1"]
                assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-12)
                assert line["lasso"] == pytest.approx(other["lasso"], rel=1e-11)
                assert (line["workers"], line["train_images_total"]) == (count, other["train_images_total"])
            exchanged = [line["gradient_bytes"] for line in first["history"]]
            params = [line["params"] for line in first["history"]]
            assert exchanged == [8 * size if count > 1 else 0 for size in params]  # bytes of float64
            assert params[3] < params[0]


def run(rank: int, config: TrainConfig, stop_at: tuple[int, int] | None = None) -> bool:
    """A run; one of the workers, the last, gets a Ctrl-C after a step of an epoch."""
    return start_run(config, Recorder(stop_at if rank == Ranks.joined().world_size - 1 else None)).finished


def go_on(rank: int, checkpoint: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    return resume_run(Path(checkpoint), given, Recorder()).history


def test_workers_go_on_where_nothing_is_cut(tmp_path: Path) -> None:
    config = TrainConfig(**LENET | {"penalty_ratio": 0.01}, name="x", output_dir=str(tmp_path))
    assert together(2, run, tmp_path / "processes", config) == [True] * 2
    paths = RunPaths(tmp_path, "x")
    assert len({read_graph(network) for network in paths.networks.glob("epoch_*.py")}) == 1
    assert sorted(path.name for path in paths.checkpoints.glob("epoch_*.pt")) == ["epoch_000.pt", "epoch_002.pt", "epoch_004.pt"]


def assert_same_run(left: RunPaths, right: RunPaths) -> None:
    for one, other in zip(sorted(left.checkpoints.glob("*.pt")), sorted(right.checkpoints.glob("*.pt")), strict=True):
        assert one.name == other.name
        assert_same_state(load_checkpoint(one), load_checkpoint(other))
    lines = [[json.loads(line) for line in paths.metrics.read_text().splitlines()] for paths in (left, right)]
    assert repeatable(lines[0]) == repeatable(lines[1])


def test_a_stopped_run_goes_on_with_as_many_workers_bit_for_bit_and_with_fewer(
    network: str, images: dict[str, Any], tmp_path: Path
) -> None:
    changes = RUN | images | {"model": network, "batch_size": 32, "penalty_ratio": 0.7, "model_args": ("dropout=0.2",), "name": "x"}
    whole, parts, fewer = (TrainConfig(**changes, output_dir=str(tmp_path / name)) for name in ("whole", "parts", "fewer"))
    assert together(4, run, tmp_path / "1", whole) == [True] * 4
    assert together(4, run, tmp_path / "2", parts, (2, 7)) == [False] * 4
    shutil.copytree(parts.output_dir, fewer.output_dir)
    left, right, third = (RunPaths(Path(config.output_dir), "x") for config in (parts, whole, fewer))
    progress = load_checkpoint(left.last).progress
    assert (progress.epoch, progress.step) == (1, 8)  # what one worker asks for, all do a step later
    assert len(load_checkpoint(left.last).rng["others"]) == 3
    histories = together(4, go_on, tmp_path / "3", str(left.last), {})
    assert all(history == histories[0] for history in histories)
    assert_same_run(left, right)
    history = together(2, go_on, tmp_path / "4", str(third.last), {})[0]
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert [line["workers"] for line in history] == [4, 2, 2, 2]
    assert math.isclose(history[1]["train_loss"], histories[0][1]["train_loss"], rel_tol=0.2)  # its sums of before the stop count
    assert history[1]["train_images_total"] == histories[0][1]["train_images_total"]


class OneBatch:
    """A data set whose epochs are one batch; on one rank with a pixel that is infinite."""

    def __init__(self, source: DataSource, rank: int) -> None:
        self._source, self._rank = source, rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def train_batches(self, *args: Any, share: Share, **named: Any) -> Iterator[Batch]:
        images, labels = next(self._source.train_batches(*args, share=share, **named))
        if share.rank == self._rank:
            images[0, 0, 0, 0] = math.inf
        yield images, labels


def overflow(state: TrainState, data: DataSource) -> dict[str, Any]:
    """A step in which the gradients of one rank alone overflow, and a sound one: scales after each, and the largest change of weights."""
    state.scaler = GradScaler("cpu", init_scale=4.0)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in state.model.parameters()])
    found = []
    for rank in (1, -1):
        train_one_epoch(state, OneBatch(data, rank), Recorder(), lambda: False)
        state.progress = replace(state.progress, epoch=state.progress.epoch + 1, step=0, running={})
        after = torch.cat([parameter.detach().flatten() for parameter in state.model.parameters()])
        found.append((state.scaler.get_scale(), float((after - before).abs().max()) > 0))
    return {"steps": found}


def caught(action: Callable[[], object]) -> str:
    """The kind and message of the error that something raises."""
    try:
        action()
    except (OutputError, ConfigError, WorkerError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fail(rank: int) -> int:
    raise OutputError(f"the disk of worker {rank} is full")


def tell(rank: int) -> str:
    """Whether it is on this worker to tell of a mistake that each of them finds."""
    try:
        with report_failure_once():
            raise ConfigError("no such thing")
    except PeerFailed:
        return "silent"
    except ConfigError:
        return "told"


def slow_on_rank_zero(rank: int) -> str:
    """What rank 0 says that takes longer for it than the others would wait for any exchange."""
    distribution.KEEPALIVE_SECONDS = 0.2  # type: ignore[misc]  # of this process alone
    group = distributed.new_group(timeout=timedelta(seconds=1))

    def slow() -> str:
        time.sleep(2.5)
        return "done"

    return Ranks(group).on_rank_zero(slow)


def talk(rank: int, config: TrainConfig, store: str) -> dict[str, Any]:
    ranks = Ranks.joined()
    environment = Environment.of(config)
    agreement = StepAgreement(ranks)
    facts: dict[str, Any] = {
        "identity": (ranks.rank, ranks.world_size),
        "mean": ranks.mean(rank + 1.0, CPU),
        "gathered": ranks.gather(f"of {rank}"),
        "shared": ranks.broadcast(f"of {rank}"),
        "on rank zero": ranks.on_rank_zero(lambda: rank + 10),
        "slow": slow_on_rank_zero(rank),
        "failing": caught(lambda: ranks.on_rank_zero(lambda: fail(rank))),
        "same": caught(lambda: ranks.check_same("file", "a")),
        "different": caught(lambda: ranks.check_same("file", "ab"[rank])),
        "agreed": [agreement.after_step(wish) for wish in ([0, 3, 0] if rank else [0, 0, 1])] + [agreement.wait(), agreement.wait()],
        "uneven": caught(lambda: environment.images_each(7)),
        "each": environment.images_each(8),
    }
    data = environment.load_data(config)
    state = new_state(config, RunPaths(Path(config.output_dir), "x"), data, environment)
    facts |= overflow(state, data)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", STORE: store}  # from here on as `launching` would have started it
    return facts | {"reporting": tell(rank)}


def test_workers_talk(tmp_path: Path) -> None:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    first, second = together(2, talk, tmp_path, TrainConfig(**LENET, output_dir=str(tmp_path)), f"localhost:{store.port}")
    assert (first.pop("identity"), second.pop("identity")) == ((0, 2), (1, 2))
    assert {first.pop("reporting"), second.pop("reporting")} == {"told", "silent"}
    assert first == second
    assert first == {
        "mean": 1.5,
        "gathered": ["of 0", "of 1"],
        "shared": "of 0",
        "on rank zero": 10,
        "slow": "done",
        "failing": "OutputError: the disk of worker 0 is full",
        "same": "nothing",
        "different": "WorkerError: worker 1 does not have worker 0's file: give all machines the same files, settings and version",
        "agreed": [0, 0, 3, 1, 0],
        "uneven": (
            "ConfigError: a batch of 7 images cannot be shared evenly by 2 workers: use --batch-size 6 or 8, or another number of workers"
        ),
        "each": 4,
        "steps": [(2.0, False), (2.0, True)],  # the first is skipped everywhere, and the scale halved
    }


@pytest.mark.parametrize(("backends", "sent"), [("cuda:nccl", []), ("cpu:gloo,cuda:nccl", ["cpu"])])
def test_tensors_that_a_group_cannot_send_stay(monkeypatch: pytest.MonkeyPatch, backends: str, sent: list[str]) -> None:
    seen = []
    monkeypatch.setattr(distributed, "get_backend_config", lambda group: backends)
    monkeypatch.setattr(distributed, "broadcast", lambda tensor, **how: seen.append(tensor.device.type))
    Ranks(object()).broadcast_([torch.zeros(2)])  # type: ignore[arg-type]
    assert seen == sent


def test_keepalives_come_from_the_same_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins with the first one."""
    current = threading.local()
    told: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "gpu", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: setattr(current, "gpu", gpu))
    monkeypatch.setattr(distribution, "KEEPALIVE_SECONDS", 0.01)
    monkeypatch.setattr(Ranks, "broadcast", lambda ranks, value: told.append(torch.cuda.current_device()))
    torch.cuda.set_device(3)
    with Ranks()._keepalive():
        while not told:
            time.sleep(0.01)
    assert set(told) == {3}


def images_of(folder: Path) -> Path:
    """A data set of two classes: 20 images for training, 7 for validation."""
    random = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 3)):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True)
            for number in range(count + (part == "val" and label == "a")):
                Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / part / label / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_shares_make_up_the_batches(tmp_path: Path, kind: str, count: int) -> None:
    path = write_images(tmp_path / "images.npz", train=20, val=7) if kind == "npz" else images_of(tmp_path / "images")
    config = TrainConfig(dataset=kind, data_dir=str(path), batch_size=12, image_size=8, device="cpu", workers=0)
    data = load_data(config, CPU)
    shares = [Share(rank, count) for rank in range(count)]
    for wanted, got in (
        (data.train_batches(1, 12), [data.train_batches(1, 12, share=share) for share in shares]),
        (data.val_batches(6), [data.val_batches(6, share=share) for share in shares]),
    ):
        parts = [list(batches) for batches in got]
        for number, (images, labels) in enumerate(wanted):
            pieces = [part[number] for part in parts if number < len(part)]
            pieces = pieces if len(labels) > 1 else [part[1] for part in parts if len(part) == 2]  # the last one, of a single image
            assert torch.equal(torch.cat([piece[0] for piece in pieces]), images)
            assert torch.equal(torch.cat([piece[1] for piece in pieces]), labels)


def start(config: TrainConfig, *flags: str) -> "subprocess.Popen[str]":
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "prunetrain", *arguments(config), *flags]
    return subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def await_line(paths: RunPaths, process: "subprocess.Popen[str]") -> None:
    """Wait for the first line of metrics."""
    while not (paths.metrics.exists() and paths.metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.01)


def worker_of(process: "subprocess.Popen[str]", rank: int) -> int:
    """The process id of a worker."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


@linux
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    config = TrainConfig(**LENET, name="x", output_dir=str(tmp_path / "killed"))
    paths = RunPaths(tmp_path / "killed", "x")
    process = start(config, "--nproc", "2")
    await_line(paths, process)
    os.kill(worker_of(process, 1), signal.SIGKILL)
    output, errors = process.communicate()
    assert errors == "worker 1 was killed by SIGKILL; all resume from the last checkpoint (restart 1 of at most 3)\n"
    assert process.returncode == 0
    assert output.count("2 workers: 32 images per step each, 64 in all") == 2
    assert output.count(f"resuming from {paths.last}") == 1
    assert output.count("validation top-1") == 1
    assert together(2, run, tmp_path / "processes", replace(config, output_dir=str(tmp_path / "whole"))) == [True] * 2
    assert_same_run(paths, RunPaths(tmp_path / "whole", "x"))


@linux
def test_sigterm_reaches_the_workers_and_none_outlives_the_launcher(tmp_path: Path) -> None:
    config = TrainConfig(**LENET | {"epochs": 10_000}, name="x", output_dir=str(tmp_path))
    paths = RunPaths(tmp_path, "x")
    process = start(config, "--nproc", "2")
    await_line(paths, process)
    worker = worker_of(process, 1)
    process.terminate()
    output, errors = process.communicate()
    assert (process.returncode, errors) == (143, "")
    assert output.count(f"stopped; resume with: prunetrain train --resume {paths.last}") == 1
    assert not Path(f"/proc/{worker}").exists()
    assert load_checkpoint(paths.last).progress.epoch >= 1


def test_a_request_to_stop_reaches_a_worker_that_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may never come."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=4))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    begun = time.monotonic()
    with stopping_on_signals(), pytest.raises(StopRequested):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        joining._rendezvous(store)
    assert time.monotonic() - begun < 2


def test_a_worker_that_never_comes_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(joining, "TIMEOUT", timedelta(seconds=0.1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, missed in ((0, 1), (1, 0)):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(PeerLost, match=rf"^worker {missed} did not arrive$"):
            joining._rendezvous(store)


_ASKED_TO_STOP = """
import os
import signal

os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_worker_that_is_asked_to_stop_before_training_ends_all(tmp_path: Path) -> None:
    """Those that wait for it lose it, and that is no reason to start anew, nor an error."""
    path = tmp_path / "net.py"
    path.write_text(_ASKED_TO_STOP + NETWORK)
    config = TrainConfig(**LENET | {"model": f"{path}:Net"}, name="x", output_dir=str(tmp_path))
    process = start(config, "--nproc", "2")
    assert process.communicate() == ("", "")
    assert process.returncode == 143
    assert list(tmp_path.rglob("epoch_*")) == []


def test_a_worker_whose_launcher_has_died_before_it_could_join_does_not_stay(tmp_path: Path) -> None:
    """The system tells it of a death from then on only, and it would look for the launcher's store for half an hour."""
    config = TrainConfig(**LENET, name="x", output_dir=str(tmp_path))
    lost = {"PRUNETRAIN_LAUNCHER": "1", "PRUNETRAIN_STORE": "localhost:1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environment = os.environ | lost | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "prunetrain", *arguments(config)]
    ended = subprocess.run(command, cwd=TOP, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_request_to_stop_while_workers_are_started_anew_is_not_lost(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Those that it would have gone to have ended, and the others are not there yet."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    children: list[subprocess.Popen[bytes]] = []

    def start_workers(agent: LocalElasticAgent, group: WorkerGroup) -> dict[int, Any]:
        children.append(subprocess.Popen(sleep))
        if when == "meanwhile":
            signal.raise_signal(signal.SIGUSR1)
        return {0: children[0].pid}

    monkeypatch.setattr(LocalElasticAgent, "_start_workers", start_workers)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    agent = launching._Agent(launching._spec((), 1, 3), DefaultLogsSpecs(), store)
    with agent.forwarding():
        if when == "before":
            signal.raise_signal(signal.SIGUSR1)
            with pytest.raises(launching._WorkersEnded) as ended:
                agent._start_workers(agent.get_worker_group())
            assert (ended.value.code, children) == (128 + signal.SIGUSR1, [])
        else:
            agent._start_workers(agent.get_worker_group())
            assert children[0].wait(timeout=30) == -signal.SIGUSR1


@pytest.mark.parametrize(("rank", "finalized"), [({}, True), ({"RANK": "0"}, False)])
def test_a_worker_ends_without_finalization(tmp_path: Path, rank: dict[str, str], finalized: bool) -> None:
    """Whose threads of gloo would abort it now and then, with an error of C++."""
    (tmp_path / "sitecustomize.py").write_text("import atexit; atexit.register(print, 'finalized')")  # before all others, so called last
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"PYTHONPATH": str(tmp_path)} | rank
    for flag, code in (("--version", 0), ("--versoin", 2)):
        command = [sys.executable, "-m", "prunetrain", flag]
        ended = subprocess.run(command, cwd=TOP, env=environment, check=False, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout.endswith("finalized\n")) == (code, finalized)
        assert (ended.stderr if code else ended.stdout).startswith("error: " if code else "prunetrain 0.")


_UNREACHABLE = """
import os

if "RANK" in os.environ:
    import torch.distributed

    def init_process_group(*args, **kwargs):
        raise torch.distributed.DistBackendError("NCCL error, invalid usage\\nDuplicate GPU detected : rank 0 and rank 1")

    torch.distributed.init_process_group = init_process_group
"""


@pytest.mark.parametrize("launcher", ["prunetrain", "another"])
def test_workers_that_cannot_reach_each_other_say_why_and_are_not_started_anew(tmp_path: Path, launcher: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(_UNREACHABLE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{TOP}"}
    flags = ["--nproc", "2"]
    if launcher == "another":
        flags, environment = [], environment | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    config = TrainConfig(**LENET, name="x", output_dir=str(tmp_path))
    command = [sys.executable, "-m", "prunetrain", *arguments(config), *flags]
    ended = subprocess.run(command, cwd=TOP, env=environment, check=False, capture_output=True, text=True)
    reason = "NCCL error, invalid usage Duplicate GPU detected : rank 0 and rank 1"
    if launcher == "another":
        assert (ended.returncode, ended.stderr) == (75, f"worker 1 lost the others: {reason}\n")
    else:
        assert ended.returncode == 2
        assert re.fullmatch(rf"error: worker [01] lost the others \({reason}\) before training began\n", ended.stderr)


def test_an_error_of_one_worker_is_told_once_and_ends_all(tmp_path: Path) -> None:
    folder = images_of(tmp_path / "images")
    damaged = folder / "train" / "b" / "3.png"
    damaged.write_bytes(b"no image")
    config = settings(folder, tmp_path, dataset="folder", image_size=12, batch_size=20, workers=0, name="x")
    process = start(config, "--nproc", "2")
    output, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith(f"error: {damaged} cannot be read as an image")
    assert errors.count("\n") == 1
    assert output.count("2 workers: 10 images per step each, 20 in all") == 1
