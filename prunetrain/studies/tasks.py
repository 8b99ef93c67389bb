"""Running tasks one after the other or in several processes; one that fails does not stop the others.

In: tasks, each a function to call and the tasks that depend on it. Out: what each returned, or one line that says why it failed.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeAlias

from prunetrain.errors import PruneTrainError
from prunetrain.training.cores import cores


@dataclass(frozen=True)
class Task:
    """A picklable function without arguments, and the tasks that follow if it succeeds."""

    name: str
    call: Callable[[], Any]
    then: tuple["Task", ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """The result of a task, or one line that says why it failed."""

    name: str
    result: Any = None
    failure: str | None = None


Report: TypeAlias = Callable[[TaskResult], object]


def run_tasks(tasks: Iterable[Task], jobs: int, report: Report) -> None:
    """Run tasks, and those that follow them.

    Args:
        tasks: those to begin with.
        jobs: how many at once; if more than one, they run in processes of their own that share the cores evenly.
        report: called in this process with each task's result, in the order in which tasks end.

    Raises:
        StopRequested: if a signal came; the processes are told to stop as well.
    """
    if jobs == 1:
        waiting = list(tasks)
        while waiting:
            task = waiting.pop(0)
            done = _run_task(task.name, task.call)
            waiting = _report_result(task, done, report) + waiting
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _share_cores, (jobs,)) as pool:
        try:
            _run_in(pool, tasks, report)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # a run in training saves its state
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _run_in(pool: ProcessPoolExecutor, tasks: Iterable[Task], report: Report) -> None:
    running: dict[Future[TaskResult], Task] = {}

    def submit(task: Task) -> None:
        try:
            running[pool.submit(_run_task, task.name, task.call)] = task
        except BrokenProcessPool:
            _report_result(task, TaskResult(task.name, failure=_WORKER_DIED), report)

    for task in tasks:
        submit(task)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task = running.pop(future)
            error = future.exception()
            if isinstance(error, KeyboardInterrupt):
                raise error
            done = future.result() if error is None else TaskResult(task.name, failure=_error_line(error))
            for following in _report_result(task, done, report):
                submit(following)


_WORKER_DIED = "a process died without a message, perhaps out of memory: run again with fewer --jobs"


def _report_result(task: Task, done: TaskResult, report: Report) -> list[Task]:
    """Report a task's result; return the tasks that can run now. If it failed, those that follow fail as well."""
    report(done)
    if done.failure is None:
        return list(task.then)
    for following in task.then:
        _report_result(following, TaskResult(following.name, failure=f"needs {task.name}, which failed"), report)
    return []


def _run_task(name: str, call: Callable[[], Any]) -> TaskResult:
    try:
        return TaskResult(name, result=call())
    except Exception as error:
        return TaskResult(name, failure=_error_line(error))


def _error_line(error: BaseException) -> str:
    """Why a task failed, in one line; if the error is not the user's, also where it was raised."""
    if isinstance(error, BrokenProcessPool):
        return _WORKER_DIED
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, PruneTrainError):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{type(error).__name__}: {text}" + "".join(f" ({os.path.basename(frame.filename)}:{frame.lineno})" for frame in place)


def _share_cores(jobs: int) -> None:
    import torch

    torch.set_num_threads(max(1, cores() // jobs))
