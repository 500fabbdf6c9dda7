"""Memory and cores that this process may use: a container or a job of a cluster often has less than its machine."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

# Files of a control group: limit, use, and the key of memory.stat for what the kernel takes back first (page cache).
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Returns free and all bytes of memory: the machine's, or those of the tightest control group of this process.

    Where free ones are not told, all. Reads the kernel's tables alone, so that profiles of Snakemake can ask too.

    Args:
        root: Folder that holds proc/ and sys/.
    """
    free, total = _machine(root)
    for limit, used in _limits(root):
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return free, total


def host_cpus(root: Path = Path("/")) -> int:
    """Returns how many CPU cores this process may use: those of its affinity, or of the tightest control group.

    Args:
        root: Folder that holds proc/ and sys/.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([cores, *(_quota(*group) for group in _groups(root, "cpu"))])))


def _machine(root: Path) -> tuple[int, int]:
    if (table := root / "proc/meminfo").is_file():
        sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", table.read_text(), re.MULTILINE))
        return 1024 * int(sizes["MemAvailable"]), 1024 * int(sizes["MemTotal"])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group that has a limit."""
    for group, is_first in _groups(root, "memory"):
        if found := _limit(group, *(V1 if is_first else V2)):
            yield found


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Folder of each control group of this process and of those above it, and whether it is of version 1.

    A container may see the paths of its host below a mount that begins at the container's own group: some folders are
    not there. The walk ends at the mount.
    """
    table = root / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if is_first := controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        elif not controllers:
            mount = root / "sys/fs/cgroup"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth]), is_first


def _limit(group: Path, limit: str, usage: str, reclaimable: str) -> tuple[int, int] | None:
    """Limit and use of a control group without its reclaimable page cache; None for one without a limit."""
    try:
        bound, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        table = (group / "memory.stat").read_text()
    except OSError:  # no such group in this mount, or one that says nothing of memory
        return None
    if bound == "max":
        return None
    cache = re.search(rf"^{reclaimable} (\d+)$", table, re.MULTILINE)
    return int(bound), used - (int(cache[1]) if cache else 0)


def _quota(group: Path, is_first: bool) -> float:
    """Cores that a control group may use at a time; infinity for one without a limit."""
    try:
        if is_first:
            used, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        else:
            used, period = (group / "cpu.max").read_text().split()
    except OSError:  # no such group in this mount, or one that says nothing of cores
        return math.inf
    return math.inf if used in ("max", "-1") else int(used) / int(period)
