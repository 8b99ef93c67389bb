"""A film of a folder: what a crash at any instant would have left of it.

In: code that writes files. Out: the folder's states before and after every operation that changes it, in three kinds: of a killed process
(the system goes on, so that all that was written is there), and of a machine without power (only what was synced is there for sure).
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes | None]
"""Every file below a folder with its content; a folder has None."""


@dataclass(frozen=True)
class Instant:
    """What is left after a crash: `when` says which operation and which kind of crash."""

    when: str
    tree: Tree

    def write(self, folder: Path) -> None:
        """Make an empty folder look like it."""
        for name, content in self.tree.items():
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)


class Film:
    """States of a folder, without repetition. Files are known by inode, so that what a rename moves keeps what was synced of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instants: dict[str, Instant] = {}
        self.operations = 0
        self._numbers = count()
        self._identities: dict[int, int] = {}  # of inodes in use: an inode's number comes again after its file is gone
        self._synced: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, tuple[int, bool]]] = {}  # synced names in a folder: identity, and whether it is a folder

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, every operation is filmed."""
        with pytest.MonkeyPatch.context() as patched:
            for name in ("replace", "mkdir", "rmdir", "unlink"):
                patched.setattr(os, name, self._filmed(name, getattr(os, name)))
            patched.setattr(os, "fsync", self._fsync(os.fsync))
            yield
        self._take("the end")

    def assume_synced(self) -> None:
        """Take what is there for synced."""
        for path in (self.folder, *self.folder.rglob("*")):
            self._note_synced(path)

    def lasting(self) -> Tree:
        """What a machine without power has for sure."""
        tree: Tree = {}

        def visit(identity: int, prefix: str) -> None:
            for name, (child, is_folder) in sorted(self._entries.get(identity, {}).items()):
                tree[prefix + name] = None if is_folder else self._synced.get(child, b"")
                if is_folder:
                    visit(child, f"{prefix}{name}/")

        visit(self._identity(self.folder), "")
        return tree

    def present(self, content: Callable[[Path], bytes] = Path.read_bytes) -> Tree:
        """What a process sees now, with files as `content` has them."""
        paths = sorted(self.folder.rglob("*"))
        return {str(path.relative_to(self.folder)): None if path.is_dir() else content(path) for path in paths}

    def _filmed(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *args: Any, **named: Any) -> Any:
            self._take(f"before {name} {os.path.basename(path)}")
            if name in ("rmdir", "unlink") or (name == "replace" and os.path.exists(args[0])):
                self._forget(Path(path if name != "replace" else args[0]))
            return operation(path, *args, **named)

        return call

    def _fsync(self, operation: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            inode = os.fstat(descriptor).st_ino
            paths = [path for path in (self.folder, *self.folder.rglob("*")) if path.stat().st_ino == inode]
            assert paths, "something outside the folder was synced"
            self._take(f"before fsync {paths[0].name}", half=paths[0])
            operation(descriptor)
            self._note_synced(paths[0])

        return call

    def _note_synced(self, path: Path) -> None:
        if path.is_dir():
            self._entries[self._identity(path)] = {child.name: (self._identity(child), child.is_dir()) for child in path.iterdir()}
        else:
            self._synced[self._identity(path)] = path.read_bytes()

    def _take(self, when: str, half: Path | None = None) -> None:
        self.operations += 1
        self._keep(f"{when}, killed", self.present())
        self._keep(f"{when}, without power, names kept", self.present(lambda path: self._synced.get(self._identity(path), b"")))
        self._keep(f"{when}, without power", self.lasting())
        if half is not None and half.is_file():
            self._keep(
                f"{when}, killed while it was written", self.present(lambda path: self._half(path) if path == half else path.read_bytes())
            )

    def _half(self, path: Path) -> bytes:
        """A file's content when half of what is new in it is written."""
        content, old = path.read_bytes(), len(self._synced.get(self._identity(path), b""))
        return content[: old + (len(content) - old) // 2]

    def _keep(self, when: str, tree: Tree) -> None:
        digest = hashlib.sha256()
        for name, content in tree.items():
            digest.update(f"{name} {'folder' if content is None else len(content)} ".encode() + (content or b""))
        self.instants.setdefault(digest.hexdigest(), Instant(f"{self.operations}: {when}", tree))

    def _identity(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self._identities:
            self._identities[inode] = next(self._numbers)
        return self._identities[inode]

    def _forget(self, path: Path) -> None:
        self._identities.pop(path.stat().st_ino, None)
