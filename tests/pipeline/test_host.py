"""Memory and cores that a process may use: the tightest of the machine and of the control groups, of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ffp.pipeline import checks
from ffp.pipeline.host import host_cpus, host_memory

GB = 1000**3
UNLIMITED = 9223372036854771712  # what version 1 shows where nobody set a limit


def machine(root: Path, groups: str, free: int = 200 * GB, total: int = 256 * GB) -> None:
    """A machine whose process is in these control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  {total // 1024} kB\nMemAvailable:  {free // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)


def group(root: Path, path: str, limit: int | str, used: int, cache: int = 0) -> None:
    """A control group: of version 1 below memory/, else of version 2."""
    first = path.startswith("memory")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    own = f"inactive_file 7\ntotal_inactive_file {cache}" if first else f"inactive_file {cache}"
    (folder / "memory.stat").write_text(f"anon {used - cache}\n{own}\n")


def test_a_machine_without_limits_has_all_of_its_memory(tmp_path: Path) -> None:
    machine(tmp_path, "4:memory:/user\n0::/user\n")
    group(tmp_path, "memory/user", UNLIMITED, GB)
    group(tmp_path, "user", "max", GB)
    assert host_memory(tmp_path) == (200 * GB // 1024 * 1024, 256 * GB // 1024 * 1024)


def test_the_tightest_group_above_the_process_counts(tmp_path: Path) -> None:
    machine(tmp_path, "0::/slice/job/step\n")
    group(tmp_path, "slice/job/step", "max", GB)
    group(tmp_path, "slice/job", 8 * GB, 3 * GB, cache=2 * GB)
    group(tmp_path, "slice", 64 * GB, 60 * GB)
    group(tmp_path, "other", GB, GB)
    assert host_memory(tmp_path) == (4 * GB, 8 * GB)


def test_version_1_counts_the_cache_of_all_groups_below(tmp_path: Path) -> None:
    machine(tmp_path, "9:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    group(tmp_path, "memory/job", 8 * GB, 3 * GB, cache=GB)
    group(tmp_path, "memory", UNLIMITED, 9 * GB)
    assert host_memory(tmp_path) == (6 * GB, 8 * GB)


@pytest.mark.parametrize(
    ("line", "mount"), [("0::/", "."), ("0::/../../elsewhere", "."), ("4:memory:/docker/3f", "memory")]
)
def test_a_container_sees_its_own_group_as_the_mount(line: str, mount: str, tmp_path: Path) -> None:
    """With a namespace of its own its path is /; without one it is the host's, which the mount does not have."""
    machine(tmp_path, f"{line}\n")
    group(tmp_path, mount, 8 * GB, 9 * GB)
    assert host_memory(tmp_path) == (0, 8 * GB)


def test_a_limit_above_the_machine_changes_nothing_and_other_systems_have_no_groups(tmp_path: Path) -> None:
    machine(tmp_path, "0::/a\n", free=GB, total=2 * GB)
    group(tmp_path, "a", 8 * GB, 0)
    assert host_memory(tmp_path)[1] == 2 * GB // 1024 * 1024
    free, total = host_memory(tmp_path / "nothing")
    assert free == total > GB


def test_a_step_is_refused_by_the_limit_of_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, "0::/\n")
    group(tmp_path, ".", 8 * GB, 0)
    monkeypatch.setattr(checks, "host_memory", lambda: host_memory(tmp_path))
    cpu = checks.torch.device("cpu")
    checks.check_memory(7 * GB, cpu)
    with pytest.raises(checks.ConfigError, match=r"about 9\.0 GB of memory on cpu, which has 8\.0 GB for this process"):
        checks.check_memory(9 * GB, cpu)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a/b\n", {}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "max 100000"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "800000 100000"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "800000 100000"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000"}, 1),
        ("4:cpu,cpuacct:/docker/3f\n0::/\n", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 64),
        ("4:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_container_counts_the_cores_of_its_quota(groups, files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    machine(tmp_path, groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert host_cpus(tmp_path) == cores
