"""Limits in every layout of cgroups, in made-up trees."""

from pathlib import Path

import pytest

from foldserve.service.host.cgroups import Limits, read_limits

QUOTA = {"cpu.cfs_quota_us": "200000\n", "cpu.cfs_period_us": "100000\n"}
NO_QUOTA = {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}


def v2(root: str = "/", point: str = "") -> str:
    """A line of mountinfo, its mount point below the made-up tree."""
    return f"30 23 0:26 {root} TREE{point} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"


def v1(controllers: str, root: str = "/", point: str = "") -> str:
    return f"33 32 0:30 {root} TREE/{point or controllers} rw - cgroup cgroup rw,{controllers}"


LAYOUTS = {
    "v2 in a container": ("0::/", [v2()], {"cpu.max": "200000 100000\n", "memory.max": "1000\n"}),
    "v2 of a systemd unit": (
        "0::/system.slice/a.service",
        [v2()],
        {"system.slice/a.service/cpu.max": "200000 100000", "system.slice/a.service/memory.max": "1000"},
    ),
    "v2 of a group above, with none of its own": (
        "0::/kubepods/pod/c",
        [v2()],
        {
            "kubepods/pod/c/cpu.max": "max 100000",
            "kubepods/pod/c/memory.max": "max",
            "kubepods/cpu.max": "200000 100000",
            "kubepods/pod/memory.max": "1000",
        },
    ),
    "v2 of a group above that allows less": (
        "0::/a/b",
        [v2()],
        {
            "a/b/cpu.max": "800000 100000",
            "a/cpu.max": "100000 50000",
            "a/b/memory.max": "5000",
            "a/memory.max": "1000",
        },
    ),
    "v2 of its own group that allows less": (
        "0::/a/b",
        [v2()],
        {
            "a/b/cpu.max": "200000 100000",
            "a/cpu.max": "800000 100000",
            "a/b/memory.max": "1000",
            "a/memory.max": "5000",
        },
    ),
    "v2 mounted at the container's group": (
        "0::/docker/c",
        [v2(root="/docker/c")],
        {"cpu.max": "200000 100000", "memory.max": "1000"},
    ),
    "v2 below the container's group": (
        "0::/docker/c/inner",
        [v2(root="/docker/c")],
        {"inner/cpu.max": "200000 100000", "memory.max": "1000"},
    ),
    "v2 with the host's path that is not seen": (
        "0::/docker/c",
        [v2()],
        {"cpu.max": "200000 100000", "memory.max": "1000"},
    ),
    "v2 outside of the namespace": (
        "0::/../other",
        [v2(root="/..")],
        {"cpu.max": "200000 100000", "memory.max": "1000"},
    ),
    "v1": (
        "4:cpu,cpuacct:/\n3:memory:/",
        [v1("cpu,cpuacct"), v1("memory")],
        {
            **{f"cpu,cpuacct/{name}": text for name, text in QUOTA.items()},
            "memory/memory.limit_in_bytes": "1000",
        },
    ),
    "v1 nested, with no limit at the leaf": (
        "4:cpuacct,cpu:/docker/c\n3:memory:/docker/c",
        [v1("cpuacct,cpu", point="cpu"), v1("memory")],
        {
            **{f"cpu/docker/c/{name}": text for name, text in NO_QUOTA.items()},
            **{f"cpu/docker/{name}": text for name, text in QUOTA.items()},
            "memory/docker/c/memory.limit_in_bytes": "9223372036854771712",
            "memory/docker/memory.limit_in_bytes": "1000",
        },
    ),
    "v1 mounted at the container's group": (
        "4:cpu:/docker/c\n3:memory:/docker/c",
        [v1("cpu", root="/docker/c"), v1("memory", root="/docker/c")],
        {**{f"cpu/{name}": text for name, text in QUOTA.items()}, "memory/memory.limit_in_bytes": "1000"},
    ),
    "hybrid, the controllers in v1": (
        "4:cpu:/u\n3:memory:/u\n1:name=systemd:/u\n0::/u",
        [v1("cpu"), v1("memory"), v1("name=systemd", point="systemd"), v2(point="/unified")],
        {**{f"cpu/u/{name}": text for name, text in QUOTA.items()}, "memory/u/memory.limit_in_bytes": "1000"},
    ),
    "hybrid, the CPU in v2": (
        "3:memory:/u\n0::/u",
        [v1("memory"), v2(point="/unified")],
        {"unified/u/cpu.max": "200000 100000", "memory/u/memory.limit_in_bytes": "1000"},
    ),
    "a mount point with a blank": (
        "0::/",
        [v2(point="/a\\040b")],
        {"a b/cpu.max": "200000 100000", "a b/memory.max": "1000"},
    ),
}


def limits(folder: Path, cgroup: str, mounts: list[str], files: dict[str, str]) -> Limits:
    proc, tree = folder / "proc", folder / "tree"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup + "\n")
    unrelated = "22 28 0:20 / /proc rw shared:5 - proc proc rw"
    (proc / "mountinfo").write_text("\n".join([unrelated, *mounts]).replace("TREE", str(tree)) + "\n")
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return read_limits(proc)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_limit_is_found_wherever_the_layout_has_it(layout: str, tmp_path: Path) -> None:
    assert limits(tmp_path, *LAYOUTS[layout]) == Limits(2.0, 1000)


def test_limits_of_other_processes_groups_and_of_other_controllers_do_not_count(tmp_path: Path) -> None:
    files = {
        "memory/a/cpu.cfs_quota_us": "100000",
        "memory/a/cpu.cfs_period_us": "100000",
        "cpu/b/cpu.cfs_quota_us": "100000",
        "cpu/b/cpu.cfs_period_us": "100000",
        "cpuset/a/memory.limit_in_bytes": "5",
    }
    mounts = [v1("cpu"), v1("memory"), v1("cpuset")]
    assert limits(tmp_path, "4:cpu:/a\n3:memory:/a\n2:cpuset:/a", mounts, files) == Limits(None, None)


@pytest.mark.parametrize("text", ["max 100000", "", "nonsense", "200000", "200000 0", "-1 100000", "1 2 3"])
def test_file_that_states_no_quota_sets_none(text: str, tmp_path: Path) -> None:
    assert limits(tmp_path, "0::/", [v2()], {"cpu.max": text}) == Limits(None, None)


@pytest.mark.parametrize(
    "line", ["", "30 23", "30 23 0:26 / /x rw - cgroup2", "garbage - cgroup cgroup cpu", "\0"]
)
def test_lines_that_are_none_are_passed_over(line: str, tmp_path: Path) -> None:
    assert limits(tmp_path, "0::/\n::\nnonsense", [line, v2()], {"cpu.max": "100000 100000"}).cores == 1


def test_without_proc_there_is_no_limit(tmp_path: Path) -> None:
    assert read_limits(tmp_path / "none") == Limits(None, None)
