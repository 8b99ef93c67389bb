"""Files appear whole or not at all, whatever fails; names of a run's files; two runs never share a name."""

import errno
import os
import threading
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest
import torch
from runs import largest_file

from prunetrain import paths
from prunetrain.errors import ConfigError, OutputError
from prunetrain.files import append_line, remove_leftovers, write_atomically, write_text
from prunetrain.paths import RunPaths, existing_run, find_run, new_run, newest_run, run_of_checkpoint

FULL = "the disk is full; free some space and run again"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full(*args: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "net.py"
    write_text(path, "dense")
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert names(path.parent) == ["net.py"]


def test_file_keeps_its_old_content_until_the_new_is_whole_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(path.read_text()), fsync(descriptor)))

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["old", "old", "new"]  # while written; synced before the rename; the folder synced after it
    assert path.read_text() == "new"


@pytest.mark.parametrize("when", ["writing", "syncing"])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")
    if when == "syncing":
        monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OutputError) as error:
        write_atomically(path, disk_full if when == "writing" else lambda file: file.write(b"new"))
    assert str(error.value) == f"cannot write {path}: {FULL}"
    assert (path.read_text(), names(tmp_path)) == ("old", ["last.pt"])


def test_torch_save_tells_what_the_system_said(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with largest_file(30_000), pytest.raises(OutputError) as error:
        write_atomically(path, lambda file: torch.save(torch.zeros(50_000), file))
    assert str(error.value) == f"cannot write {path}: file too large"
    assert names(tmp_path) == []


def test_interrupt_and_defects_pass_through(tmp_path: Path) -> None:
    def stop(file: BinaryIO) -> NoReturn:
        file.write(b"half")
        raise KeyboardInterrupt

    def defect(file: BinaryIO) -> NoReturn:
        raise RuntimeError("not the disk's fault")

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "last.pt", stop)
    with pytest.raises(RuntimeError, match="not the disk's fault"):
        write_atomically(tmp_path / "last.pt", defect)
    assert names(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^cannot write .*/file/x/net.py: not a directory$"):
        write_text(tmp_path / "file" / "x" / "net.py", "")
    with pytest.raises(OutputError, match=r"^cannot write .*/file/metrics.jsonl: "):
        append_line(tmp_path / "file" / "metrics.jsonl", "")


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    append_line(path, "one")
    append_line(path, "zwölf")
    assert path.read_bytes() == "one\nzwölf\n".encode()


def test_no_part_of_a_line_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, "x" * 60_000)
    with largest_file(60_010), pytest.raises(OutputError, match="file too large"):
        append_line(path, "y" * 1000)
    assert path.read_text() == "x" * 60_000 + "\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_device_that_is_always_full(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OutputError) as error:
        append_line(path, "one")
    assert str(error.value) == f"cannot write {path}: {FULL}"


def test_leftovers_of_a_killed_process_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(OutputError):
        patch.setattr(Path, "unlink", lambda path, missing_ok: None)  # as if nobody was left to clean up
        write_atomically(tmp_path / "last.pt", disk_full)
    assert len(names(tmp_path)) == 1
    for other in (".last.pt.tmp", ".hidden", "last.pt.0123abcd.tmp", "last.pt"):
        (tmp_path / other).write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", ".last.pt.tmp", "last.pt", "last.pt.0123abcd.tmp"]


def test_names_of_a_run() -> None:
    run = RunPaths(Path("out"), "mine")
    assert str(run.network(0)) == "out/generated_nets/mine/epoch_000.py"
    assert str(run.network(60)) == "out/generated_nets/mine/epoch_060.py"
    assert str(run.checkpoint(1000)) == "out/checkpoints/mine/epoch_1000.pt"
    assert str(run.last) == "out/checkpoints/mine/last.pt"
    assert str(run.metrics) == "out/checkpoints/mine/metrics.jsonl"


@pytest.mark.parametrize("name", ["a", "resnet20-digits", "0.5_x", "A" * 100])
def test_names_that_a_run_may_have(name: str) -> None:
    assert RunPaths(Path(), name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "a/b", "../a", "a b", "a\n", "A" * 101, "ä"])
def test_names_that_no_run_may_have(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a run"):
        RunPaths(Path(), name)


def test_files_of_a_run_count_by_epoch_and_other_files_do_not(tmp_path: Path) -> None:
    run = RunPaths(tmp_path, "run")
    assert (run.checkpoint_files(), run.newest_network(), run.network_files()) == ({}, run.network(0), {})
    for epoch in (0, 999, 1000, 20):
        write_text(run.network(epoch), "")
        write_text(run.checkpoint(epoch), "")
    for other in ("epoch_2000_edited.py", "epoch_zzzz.py", "epoch_01.py"):
        write_text(run.networks / other, "")
    write_text(run.checkpoints / "epoch_2000_copy.pt", "")
    assert list(run.network_files()) == [0, 20, 999, 1000]
    assert run.newest_network() == run.network(1000)
    assert list(run.checkpoint_files()) == [0, 20, 999, 1000]
    assert run.checkpoint_files()[1000] == run.checkpoint(1000)


def test_run_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunPaths(tmp_path.resolve(), "mine")
    write_text(run.last, "")
    assert run_of_checkpoint(run.last) == run
    monkeypatch.chdir(run.checkpoints)
    assert run_of_checkpoint(Path("last.pt")) == run


def test_new_runs_get_the_first_free_name(tmp_path: Path) -> None:
    write_text(RunPaths(tmp_path, "x-2").last, "")
    taken = []
    for _ in range(3):
        with new_run(tmp_path, "x") as run:
            taken.append(run.name)
    assert taken == ["x", "x-3", "x-4"]


def test_run_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    write_text(RunPaths(tmp_path, "x").network(0), "first")
    with pytest.raises(KeyboardInterrupt), new_run(tmp_path, "x") as run:
        write_text(run.network(0), "second")
        write_text(run.checkpoint(0), "second")
        raise KeyboardInterrupt
    assert names(tmp_path / "generated_nets") == ["x"]
    assert names(tmp_path / "checkpoints") == []
    assert RunPaths(tmp_path, "x").network(0).read_text() == "first"


def test_runs_that_start_at_once_get_names_of_their_own(tmp_path: Path) -> None:
    together, taken = threading.Barrier(8), []

    def start() -> None:
        together.wait()
        with new_run(tmp_path, "x") as run:
            taken.append(run.name)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == ["x", *(f"x-{number}" for number in range(2, 9))]


def test_name_that_was_free_a_moment_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(RunPaths(tmp_path, "x").network(0), "first")
    exists, asked = RunPaths.exists, []
    monkeypatch.setattr(RunPaths, "exists", lambda run: bool(asked.append(run.name) or len(asked) > 1) and exists(run))
    with new_run(tmp_path, "x") as run:
        assert run.name == "x-2"
        assert names(tmp_path / "checkpoints") == [".x-2.lock"]  # that of x is for whoever has it


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_output_dir_that_is_none(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "generated_nets").write_text("")
    else:
        (tmp_path / "generated_nets").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"^cannot write .*/generated_nets/x: "), new_run(tmp_path, "x"):
        pytest.fail("there is no folder to write to")


@pytest.mark.parametrize("linked", [["checkpoints"], ["generated_nets"], ["checkpoints", "generated_nets"]], ids=str)
def test_links_may_lead_to_another_disk_together_only(tmp_path: Path, linked: list[str]) -> None:
    for name in linked:
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / name).symlink_to(tmp_path / "disk" / name)
    if len(linked) == 2:
        with new_run(tmp_path / "here", "x") as run:
            write_text(run.network(0), "")
        assert names(tmp_path / "disk" / "generated_nets") == ["x"]
        return
    with pytest.raises(OutputError, match=r"a run's folders must lie side by side, .* so link the folder that holds both"):
        with new_run(tmp_path / "here", "x"):
            pytest.fail("it could not be read back")
    assert [names(path) for path in (tmp_path / "here").iterdir()] == [[], []]


def test_newest_run_is_the_last_of_which_anything_is_there(tmp_path: Path) -> None:
    assert newest_run(tmp_path, "x") is None
    for name in ("x", "x-2", "x-4"):
        write_text(RunPaths(tmp_path, name).last, "")
    assert newest_run(tmp_path, "x") == RunPaths(tmp_path, "x-2")
    RunPaths(tmp_path, "x-3").networks.mkdir(parents=True)
    assert newest_run(tmp_path, "x") == RunPaths(tmp_path, "x-4")


def test_existing_run(tmp_path: Path) -> None:
    write_text(RunPaths(tmp_path, "lr0.1").network(0), "")
    assert existing_run(tmp_path, "lr0.1") == RunPaths(tmp_path, "lr0.1")
    assert existing_run(tmp_path, "lr0.2") is None
    assert existing_run(tmp_path, "../x y") is None


@pytest.mark.parametrize("what", ["x", "x/", "./x", "generated_nets/x/", "checkpoints/x"])
def test_a_run_may_be_named_with_the_slash_of_a_folder(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(RunPaths(Path(), "x").network(0), "")
    write_text(RunPaths(Path(), "x").last, "")
    found = find_run(what, Path())
    assert found is not None and found.network(0).samefile(RunPaths(Path(), "x").network(0))


def test_templates_are_found() -> None:
    assert (paths.templates() / "network.py.jinja").is_file()
