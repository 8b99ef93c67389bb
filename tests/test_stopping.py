"""Requests to stop: what the code says of them, from loading to the last write; when a checkpoint is due."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import Recorder, arguments, assert_same_run, invoke, settings

from prunetrain.paths import RunPaths
from prunetrain.training import creation, granularity, pairs, reconfiguration, run, stopping
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.data import worker_signals
from prunetrain.training.environment import Environment
from prunetrain.training.run import Outcome, resume_run, start_run
from prunetrain.training.state import TrainState
from prunetrain.training.stopping import SIGNALS, Action, Pacer, StopRequested, StopRequests, exit_code, stopping_on_signals

TOP = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def as_without_nohup() -> Iterator[None]:
    """Tests, and what they start, heed SIGHUP even where the tests themselves were started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return start_run(settings(images, tmp_path_factory.mktemp("reference"), round_to="auto"), Recorder())


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_raises_where_nothing_has_to_be_finished(number: signal.Signals) -> None:
    before = handlers()
    with stopping_on_signals() as requests, pytest.raises(StopRequested) as raised:
        signal.raise_signal(number)
    assert (raised.value.number, requests.asked) == (number, number)
    assert handlers() == before


def test_a_request_waits_while_something_is_finished_and_the_second_does_not() -> None:
    with stopping_on_signals() as requests, requests.deferred():
        assert requests.asked is None
        signal.raise_signal(signal.SIGTERM)
        assert requests.asked == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)  # a launcher's way of passing on the same request
        assert requests.asked == signal.SIGTERM
        with pytest.raises(StopRequested) as raised:
            signal.raise_signal(signal.SIGINT)
        assert raised.value.number == signal.SIGINT


def test_what_a_cluster_sends_to_all_and_the_launcher_passes_on_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "ECHO_SECONDS", 0.5)
    monkeypatch.setenv("RANK", "1")
    with stopping_on_signals() as requests, requests.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert requests.asked == signal.SIGTERM
        time.sleep(0.5)
        with pytest.raises(StopRequested):
            signal.raise_signal(signal.SIGTERM)
    with stopping_on_signals() as requests:
        with pytest.raises(StopRequested):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # while what was begun is taken away again


def test_what_can_be_done_again_is_given_up_at_once() -> None:
    with stopping_on_signals() as requests, requests.deferred():
        with pytest.raises(StopRequested), requests.at_once():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it goes on")
        with pytest.raises(StopRequested), requests.at_once():
            pytest.fail("it begins although a request waits")
        signal.raise_signal(signal.SIGUSR1)  # waits again


def test_a_request_that_got_lost_counts_at_the_next_occasion() -> None:
    """Python prints and drops what is raised inside a finaliser, and some imports catch everything."""
    with stopping_on_signals() as requests:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            pass
        with pytest.raises(StopRequested):
            requests.check()
        with pytest.raises(StopRequested), stopping_on_signals():
            pytest.fail("it begins although a request has come")
    with stopping_on_signals() as requests, requests.deferred(), pytest.raises(StopRequested), requests.at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            pass


def test_contexts_inside_each_other_have_the_same_requests() -> None:
    with stopping_on_signals() as outer, outer.deferred(), stopping_on_signals() as inner:
        assert inner is outer
        signal.raise_signal(signal.SIGTERM)


def test_what_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopping_on_signals() as requests:
            signal.raise_signal(signal.SIGHUP)
            assert requests.asked is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_threads_and_forked_processes_leave_signals_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        before = handlers()
        with stopping_on_signals() as requests:
            seen.extend((requests.asked, handlers() == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, True]
    requests = StopRequests()
    requests._process += 1
    requests.handle(signal.SIGTERM, None)
    assert requests.asked is None


def test_a_checkpoint_is_due_after_so_many_minutes() -> None:
    now = [1000.0]
    requests = StopRequests()
    pacer = Pacer(requests, 2, clock=lambda: now[0])
    actions = []
    for seconds in (1, 118, 1, 1):
        now[0] += seconds
        actions.append(pacer.action())
    assert actions == [Action.GO_ON, Action.GO_ON, Action.SAVE, Action.SAVE]
    pacer.saved()
    assert pacer.action() is Action.GO_ON
    requests.asked = signal.SIGTERM
    assert pacer.action() is Action.STOP
    assert Pacer(StopRequests(), 0, clock=now.pop).action() is Action.GO_ON  # looks at the clock once, to begin with


def test_minutes_make_checkpoints_within_an_epoch(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []

    class Clock(Recorder):
        def stepped(self, epoch: int, step: int) -> None:
            now[0] += 20  # seconds a step

    save = TrainState.save
    monkeypatch.setattr(TrainState, "save", lambda self, path: (written.append(self.progress), save(self, path)))
    monkeypatch.setattr(run, "Pacer", lambda requests, minutes: Pacer(requests, minutes, lambda: now[0]))
    outcome = start_run(settings(images, tmp_path / "often", epochs=2, checkpoint_minutes=1), Clock())
    steps = [(progress.epoch, progress.step) for progress in written]
    assert steps == [(0, 3), (0, 6), (0, 9), (1, 0), (1, 3), (1, 6), (1, 9), (2, 0)]
    assert outcome.finished
    undisturbed = start_run(settings(images, tmp_path / "never", epochs=2, checkpoint_minutes=0), Recorder())
    assert [(progress.epoch, progress.step) for progress in written[len(steps) :]] == [(1, 0), (2, 0)]
    assert_same_run(outcome.run, undisturbed.run)


def signalling(function: Callable[..., Any], *, call: int = 1) -> Callable[..., Any]:
    """The function, which is sent SIGTERM when it is called for so manieth time."""
    calls = [0]

    def send(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **named)

    return send


@pytest.mark.parametrize(
    ("module", "name", "call", "place"),
    [
        (run, "evaluate", 1, (0, 10)),  # validation
        (run, "evaluate", 2, (1, 10)),
        (reconfiguration, "propose_cut", 1, (1, 10)),
        (reconfiguration, "choose_granularity", 1, (1, 10)),
        (reconfiguration, "write_pair", 1, (1, 10)),
        (reconfiguration, "restart_peak", 1, (1, 10)),  # after the pair was written
        (TrainState, "save", 2, (2, 0)),
        (run, "append_line", 3, (3, 0)),
        (run, "append_line", 4, (4, 0)),  # the last one: nothing is left to stop
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_a_signal_at_an_epochs_end(
    images: Path,
    tmp_path: Path,
    reference: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    *,
    module: Any,
    name: str,
    call: int,
    place: tuple[int, int],
) -> None:
    config = settings(images, tmp_path, round_to="auto")
    timings = RunPaths(tmp_path, reference.run.name).checkpoints / "timings.json"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, signalling(getattr(module, name), call=call))
        read = granularity._read  # so that both choose alike
        patch.setattr(granularity, "_read", lambda path: read(reference.run.checkpoints / "timings.json"))
        result = invoke(*arguments(config))
    progress = load_checkpoint(RunPaths(tmp_path, reference.run.name).last).progress
    assert (progress.epoch, progress.step) == place
    assert (result.exit_code, result.stderr) == (143 if place < (4, 0) else 0, "")
    if place < (4, 0):
        assert result.stdout.splitlines()[-1].startswith("stopped; resume with: prunetrain train --resume ")
    timings.write_bytes((reference.run.checkpoints / "timings.json").read_bytes())  # so that both choose alike
    assert_same_run(resume_run(RunPaths(tmp_path, reference.run.name).last, {}, Recorder()).run, reference.run)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (Environment, "load_data"),
        (creation, "build_with_weights"),
        (creation, "trace_and_check"),
        (pairs, "save_checkpoint"),
        (creation, "load_state"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_leaves_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, module: Any, name: str, number: signal.Signals
) -> None:
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **named: (os.kill(os.getpid(), number), function(*args, **named))[1])
    result = invoke(*arguments(settings(images, tmp_path / "runs")))
    assert (result.exit_code, result.output) == (exit_code(number), "")
    assert [path for path in (tmp_path / "runs").rglob("*") if path.name not in ("generated_nets", "checkpoints")] == []


@pytest.mark.parametrize("name", ["_warning_before_training", "note_run", "Pacer"])
def test_a_signal_between_creation_and_the_first_step_stops_after_that(
    images: Path, tmp_path: Path, reference: Outcome, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, name, signalling(getattr(run, name)))
        stopped = start_run(settings(images, tmp_path), Recorder())
    assert stopped.stopped_by == signal.SIGTERM
    progress = load_checkpoint(stopped.run.last).progress
    assert (progress.epoch, progress.step) == (0, 1)
    assert resume_run(stopped.run.last, {}, Recorder()).finished


def test_requests_are_deferred_no_longer_than_a_run(images: Path, tmp_path: Path) -> None:
    """So that Ctrl-C ends the loading of what a study trains next."""
    with stopping_on_signals() as requests:
        start_run(settings(images, tmp_path, epochs=1), Recorder())
        with pytest.raises(StopRequested):
            signal.raise_signal(signal.SIGTERM)
        assert requests.asked == signal.SIGTERM


def test_a_signal_where_nothing_is_left_to_train(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(images, tmp_path, name="x")
    whole = start_run(config, Recorder())
    before = whole.run.last.read_bytes()
    monkeypatch.setattr(run, "evaluate", signalling(run.evaluate))
    result = invoke(*arguments(config), "--resume", "auto")
    assert (result.exit_code, result.stderr) == (143, "")
    assert whole.run.last.read_bytes() == before


def test_a_second_signal_ends_at_once(images: Path, tmp_path: Path) -> None:
    class Impatient(Recorder):
        def stepped(self, epoch: int, step: int) -> None:
            super().stepped(epoch, step)
            if (epoch, step) == (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    recorder = Impatient()
    with pytest.raises(StopRequested):
        start_run(settings(images, tmp_path), recorder)
    assert recorder.steps == [(1, 1), (1, 2), (1, 3)]
    assert not list(tmp_path.rglob("last.pt"))


class Workers:
    """A data set of files, and a real process that trains on it with a worker."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        for number, name in enumerate(("train/a", "train/b", "val/a", "val/b") * 12):
            path = folder / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        config = settings(folder / "images", folder, dataset="folder", image_size=16, batch_size=4, epochs=10_000, workers=1)
        command = [sys.executable, "-m", "prunetrain", *arguments(config)]
        environment = {**os.environ, "PYTHONPATH": str(TOP)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def signal_all(self, number: signal.Signals) -> tuple[int, str, str]:
        """Wait for the first line of an epoch, then send a signal to the process and its workers, as a terminal or a cluster does."""
        assert self.process.stdout is not None
        while "/10000" not in self.process.stdout.readline():
            assert self.process.poll() is None
        os.killpg(self.process.pid, number)
        out, err = self.process.communicate()
        return self.process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    code, out, err = Workers(tmp_path).signal_all(number)
    assert (code, err) == (exit_code(number), "")
    assert out.splitlines()[-1].startswith("stopped; resume with: ")


def test_a_terminal_that_closes(images: Path, tmp_path: Path) -> None:
    """What is printed later goes nowhere; the step is finished and the checkpoint written all the same."""
    config = settings(images, tmp_path, name="x", epochs=10_000)
    terminal, inside = os.openpty()
    shell = ["sh", "-c", f'exec 0<> {os.ttyname(inside)} "$@"', "sh"]  # which makes it the terminal of the new session
    process = subprocess.Popen(
        [*shell, sys.executable, "-m", "prunetrain", *arguments(config)],
        env={**os.environ, "PYTHONPATH": str(TOP)},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    seen = b""
    while b"/10000" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait() == exit_code(signal.SIGHUP)
    run = RunPaths(tmp_path, "x")
    progress = load_checkpoint(run.last).progress
    assert progress.epoch >= 1
    assert [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()] == [line["epoch"] for line in progress.history]


def test_workers_end_when_their_parent_says_so_and_only_then() -> None:
    ready, wait = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and newer: forking beside threads; the child needs none of them
        child = os.fork()
    if child == 0:
        worker_signals.leave_signals_to_parent(0)
        os.write(wait, b"x")
        while True:
            time.sleep(1)
    os.read(ready, 1)
    for number in (*SIGNALS, signal.SIGTERM):
        if number != signal.SIGTERM:
            os.kill(child, number)
    stranger = subprocess.run([sys.executable, "-c", f"import os; os.kill({child}, 15)"], check=True)
    assert stranger.returncode == 0
    time.sleep(0.1)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == 0
    os.close(ready)
    os.close(wait)
