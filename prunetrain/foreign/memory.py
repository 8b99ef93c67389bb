"""How much memory is available, so that the sizes that a file declares can be checked against it."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
_CONTAINERS = (  # limit and usage, in versions 2 and 1 of control groups
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int:
    """Return the bytes that this process can still allocate on the machine, or in its container if that has a limit.

    If the system does not report available memory (as on a Mac), the machine's total counts.
    """
    machine = _from_meminfo()
    if machine is None:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(left for left in map(_container_memory, _CONTAINERS) if left is not None)])


def format_bytes(size: int) -> str:
    """Format a number of bytes for people: 1.5 GB, 20 MB, 300 bytes."""
    for power, unit in ((15, "PB"), (12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size // 10 ** (power - 1) / 10:,.4g} {unit}" if size < 10**18 else "over 1,000 PB"
    return f"{size} bytes"


def _from_meminfo() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _container_memory(container: tuple[Path, Path]) -> int | None:
    """The bytes left in a container, at least a quarter of its limit, since its usage includes the system's file cache."""
    try:
        limit, used = (int(path.read_text()) for path in container)
    except (OSError, ValueError):  # no such container, or "max"
        return None
    return max(limit - used, limit // 4)
