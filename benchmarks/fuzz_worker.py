"""Runs cases of `fuzz.py` one after the other, in a separate process that limits its memory and monitors itself.

    python benchmarks/fuzz_worker.py FOLDER SEED KIND:NUMBER ...

In: a folder to work in, and cases. Out: lines of JSON on standard output: the case before it starts, and its outcome.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

FREE = 2**30  # bytes of free memory that prunetrain is told
MOST = 3 * 2**30  # bytes that it may use beyond those at the start
LIMIT = 60  # seconds of CPU time for a command
UNSPOILT = "unspoilt"
_STARTS = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.connect", "pty.spawn"})
_WRITES = frozenset({"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "shutil.rmtree"})


class Watch:
    """Detects forbidden actions of a command: starting programs, and writing outside a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _STARTS:
            self.seen.append(f"{event} {arguments[:1]!r}"[:200])
        elif event in _WRITES or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
                real = os.path.join(os.path.realpath(folder), name) if event != "open" else os.path.realpath(os.fsdecode(path))
                if not f"{real}/".startswith(f"{self.folder}/case/") or real.startswith(f"{self.folder}/case/outside/"):
                    self.seen.append(f"{event} {real}"[:200])


def main() -> None:
    """Run the cases that the command line names."""
    folder, seed, *cases = sys.argv[1:]
    work = Path(folder).resolve()
    _prepare(work)
    watch = Watch(work)
    out = os.fdopen(os.dup(1), "w")
    originals = {name: work / name for name in ("sgd", "adamw")}
    for name, path in originals.items():
        if not path.exists():
            from fuzz_originals import build_originals

            path.mkdir(parents=True)
            os.chdir(path)
            build_originals(path, work / "canary", optimizer=name)
    for number in range(2):  # imports and set-up at first use are not counted
        unspoilt = run_case(work, originals, seed, f"{UNSPOILT}:{number}", watch)
    if unspoilt["problems"] or unspoilt["refused"]:
        raise RuntimeError(f"unspoilt files do not work: {unspoilt}")
    _limit_memory()
    for case in cases:
        print(json.dumps({"case": case}), file=out, flush=True)
        started = time.perf_counter()
        outcome = run_case(work, originals, seed, case, watch)
        print(json.dumps(outcome | {"case": case, "seconds": time.perf_counter() - started}), file=out, flush=True)


def _prepare(work: Path) -> None:
    """Import everything that commands use, and set the free memory that prunetrain sees."""
    sys.dont_write_bytecode = True
    work.mkdir(parents=True, exist_ok=True)
    import torch

    import prunetrain.report.progress
    import prunetrain.training.evaluation
    import prunetrain.training.export
    import prunetrain.training.offline_reconfiguration  # noqa: F401
    from prunetrain.foreign import memory

    torch.set_num_threads(1)
    memory.MEMINFO = work / "meminfo"
    memory.MEMINFO.write_text(f"MemAvailable: {FREE // 1024} kB\n")


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MOST, used + MOST))


def run_case(work: Path, originals: dict[str, Path], seed: str, case: str, watch: Watch) -> dict[str, Any]:
    """Run one case: damage files, run the commands and check everything."""
    from fuzz_kinds import EVERY_COMMAND, KINDS

    rng = random.Random(f"{seed}/{case}")
    folder, canary = work / "case", work / "canary"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(rng.choice(list(originals.values())), folder)
    os.chdir(folder)
    kind = case.partition(":")[0]
    commands = [command.split() for command in EVERY_COMMAND] if kind == UNSPOILT else KINDS[kind](rng, str(canary))
    problems: list[str] = []
    lines: list[str] = []
    for command in commands:
        before = _contents(folder)
        code, stdout, stderr = _run(command, work, watch)
        lines.append(f"{' '.join(command)} -> {code}: {stderr.strip()[-300:]}")
        problems += problems_of(code, stdout, stderr, before, _contents(folder))
        problems += [f"did {seen}" for seen in watch.seen]
        watch.seen.clear()
    if canary.exists():
        problems.append("foreign code ran")
        shutil.rmtree(canary) if canary.is_dir() else canary.unlink()
    os.chdir(work)
    return {"problems": problems, "lines": lines, "refused": any(": error: " in line or "-> 2" in line for line in lines)}


def _run(command: list[str], work: Path, watch: Watch) -> tuple[object, str, str]:
    """Run a command; return its exit code, output and errors, including those from C++."""
    import torch

    from prunetrain.commands import main as command_line

    torch.manual_seed(0)
    code: object = 0
    with _into(1, work / "stdout"), _into(2, work / "stderr"):
        signal.signal(signal.SIGPROF, _too_long)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        watch.on = True
        try:
            command_line(command, prog_name="prunetrain")
        except SystemExit as end:
            code = end.code
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        finally:
            watch.on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
    stdout, stderr = ((work / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr"))
    return code, stdout, stderr


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"longer than {LIMIT} seconds")  # an OSError: seen as an error line, so `problems_of` looks for it


@contextlib.contextmanager
def _into(descriptor: int, path: Path) -> Any:
    stream = sys.stdout if descriptor == 1 else sys.stderr
    stream.flush()
    saved = os.dup(descriptor)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, descriptor)
    os.close(target)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(saved, descriptor)
        os.close(saved)


def _contents(folder: Path) -> dict[str, object]:
    """The content of a folder: the bytes of files, the targets of links, the sizes of huge files."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = path.read_bytes() if path.stat().st_size < 2**24 else path.stat().st_size
        else:
            found[str(path)] = path.lstat().st_mode
    return found


def problems_of(code: object, stdout: str, stderr: str, before: dict[str, object], after: dict[str, object]) -> list[str]:
    """The violations by a command, according to its exit code, its output, and the folder before and after."""
    problems = []
    if code not in (0, 2):
        problems.append(f"exit code {code}: {stderr.strip()[-1500:]}")
    if "Traceback" in stdout + stderr:
        problems.append("a traceback")
    if code == 2 and not (stderr.startswith("error: ") and stderr.endswith("\n") and stderr.count("\n") == 1):
        problems.append(f"not one line: {stderr[:500]!r}")
    if code == 0 and stderr:
        problems.append(f"words on stderr: {stderr[:500]!r}")
    if not (stdout + stderr).replace("\n", "").isprintable():
        problems.append("characters that steer a terminal")
    if "longer than 60 seconds" in stderr:
        problems.append("too slow")
    if "out of memory" in stderr:
        problems.append(f"memory ran out before sizes were checked: {stderr[:300]}")
    left = [path for path in after if path.endswith(".tmp")]
    if left:
        problems.append(f"left {left}")
    changed = sorted(path for path in after.keys() | before.keys() if after.get(path) != before.get(path))
    if "training diverged" in stderr:  # a run that began; its files so far must be complete
        changed = [path for path in changed if path in before]
    if code == 2 and changed:
        problems.append(f"failed, and changed {', '.join(changed)[:500]}")
    return problems


if __name__ == "__main__":
    main()
