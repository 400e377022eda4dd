"""What the nodes said of themselves, against what they should: one finding of each kind, about all of them."""

import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

import resunet_ray
from resunet_ray.config import DoctorConfig
from resunet_ray.doctor.finding import Finding, count, judge
from resunet_ray.doctor.node_facts import NodeFacts
from resunet_ray.doctor.nodes import Node

_ALIKE = ("ray", "torch", "numpy", "pyarrow", "opencv-python-headless")
"""Packages whose objects travel between nodes, or whose results are compared: the same version everywhere."""
_GIB = 2**30

Surveys = Mapping[Node, NodeFacts]


def list_requirements() -> list[Requirement]:
    """What the package needs: as its pyproject.toml says where that lies beside it, else as it was installed; none if neither."""
    file = Path(resunet_ray.__file__).parents[1] / "pyproject.toml"
    if file.is_file():
        lines = tomllib.loads(file.read_text())["project"]["dependencies"]
    else:
        try:
            lines = metadata.requires("resunet_ray") or []
        except metadata.PackageNotFoundError:
            lines = []
    return [
        item
        for item in map(Requirement, lines)
        if item.marker is None or item.marker.evaluate({"extra": ""})
    ]


def judge_packages(surveys: Surveys, here: NodeFacts, requirements: list[Requirement]) -> Finding:
    """Whether every package is there, new enough, and where it matters the same as here."""
    complaints = {}
    for name, found in {
        "this process": here,
        **{node.name: found for node, found in surveys.items()},
    }.items():
        if wrong := [*_unmet(found, requirements), *_unlike(found, here)]:
            complaints[name] = ", ".join(wrong)
    shown = ", ".join(f"{name} {here['packages'].get(name)}" for name in _ALIKE)
    return judge(
        "packages",
        complaints,
        otherwise=f"python {here['python']}, {shown}, the same on {count(len(surveys), 'node')}",
        expected="what pyproject.toml asks for, and the same versions of what travels between nodes",
        fix="Start these nodes from the same image or environment as the head, made with `pip install -c constraints.txt .`",
    )


def _unmet(found: NodeFacts, requirements: list[Requirement]) -> list[str]:
    wrong = []
    for item in requirements:
        version = found["packages"].get(item.name)
        if version is None:
            wrong.append(f"{item.name} is missing")
        elif not item.specifier.contains(version, prereleases=True):
            wrong.append(f"{item.name} {version} where {item.specifier} is asked for")
    return wrong


def _unlike(found: NodeFacts, here: NodeFacts) -> list[str]:
    """A build's own suffix does not count: +cpu on the head and +cu128 on GPU nodes is how it should be."""
    pairs: list[tuple[str, str | None, str | None]] = [("python", found["python"], here["python"])]
    pairs += [(name, found["packages"].get(name), here["packages"].get(name)) for name in _ALIKE]
    return [
        f"{name} {one} where {other} is here"
        for name, one, other in pairs
        if one and other and _public(one) != _public(other)
    ]


def _public(version: str) -> str:
    return Version(version).public


def judge_code(surveys: Surveys, here: NodeFacts) -> Finding:
    """Whether every node imports the code that stands here."""
    complaints = {}
    for node, found in surveys.items():
        if found["code"] is None:
            complaints[node.name] = "cannot import resunet_ray"
        elif found["code"] != here["code"]:
            complaints[node.name] = f"imports other code, from {found['code_folder']}"
    return judge(
        "code",
        complaints,
        otherwise=f"resunet_ray {resunet_ray.__version__}, digest {(here['code'] or '')[:12]}, on every node",
        expected=f"the code of {here['code_folder']} on every node",
        fix="Submit from the root of the repository with `ray job submit --working-dir .`, which brings it along, and uninstall "
        "what these nodes have installed; or install this version on all",
    )


def judge_clocks(offsets: Mapping[Node, tuple[float, float]], config: DoctorConfig) -> Finding:
    """Whether the nodes agree on the time; only what is certain counts.

    Args:
        offsets: by node, seconds ahead of this process's clock, and by how much that may be wrong.
        config: how much is too much.
    """
    complaints = {}
    for node, (offset, error) in offsets.items():
        if abs(offset) - error > config.clock_seconds:
            way = "ahead of" if offset > 0 else "behind"
            complaints[node.name] = (
                f"{abs(offset):.1f} s {way} this process's clock (measured to {error * 1000:.0f} ms)"
            )
    largest = max((abs(offset) for offset, _ in offsets.values()), default=0.0)
    return judge(
        "clocks",
        complaints,
        otherwise=f"{count(len(offsets), 'node')}, at most {largest * 1000:.0f} ms from this process's clock",
        expected=f"at most {config.clock_seconds:g} s: runs are ordered by the time in their names, and S3 refuses keys far off",
        fix="Switch time synchronisation on there (`timedatectl set-ntp true`, or chronyd), on the machine below any container",
    )


def judge_machines(surveys: Surveys, config: DoctorConfig) -> Iterator[Finding]:
    """Memory, disks and limits."""
    yield judge_shared_memory(surveys)
    yield judge_disks(surveys, config)
    yield judge_caches(surveys, config)
    yield judge_memory(surveys, config)
    yield judge_open_files(surveys, config)


def judge_shared_memory(surveys: Surveys) -> Finding:
    """Whether Ray's object stores fit /dev/shm; where not, Ray keeps objects on disk."""
    complaints = {
        node.name: f"{_gib(found['shared_memory'])} in /dev/shm, {_gib(node.store_bytes)} for the object store"
        for node, found in surveys.items()
        if found["shared_memory"] is not None and found["shared_memory"] < node.store_bytes
    }
    sizes = [
        found["shared_memory"] for found in surveys.values() if found["shared_memory"] is not None
    ]
    return judge(
        "shared memory",
        {},
        poor=complaints,
        otherwise=f"{_gib(min(sizes))} or more in /dev/shm, enough for every object store"
        if sizes
        else "not of this system",
        expected="room for the object store in /dev/shm: else Ray puts it on disk, and all data is slow",
        fix="Start the container with --shm-size, mount an emptyDir of medium Memory at /dev/shm, or start the node with a "
        "smaller --object-store-memory",
    )


def judge_disks(surveys: Surveys, config: DoctorConfig) -> Finding:
    """Whether Ray can put objects on disk when memory is full."""
    full, little = {}, {}
    for node, found in surveys.items():
        disk = found["session"]
        used = 1 - disk["free"] / max(1, disk["total"])
        text = f"{disk['folder']}: {_gib(disk['free'])} of {_gib(disk['total'])} free"
        if used >= config.disk_fraction:
            full[node.name] = text
        elif disk["free"] < config.disk_gib * _GIB:
            little[node.name] = text
    least = min(found["session"]["free"] for found in surveys.values())
    return judge(
        "disk",
        full,
        poor=little,
        otherwise=f"{_gib(least)} or more free under Ray's own folder",
        expected=f"less than {config.disk_fraction:.0%} used (beyond, Ray's tasks fail), and {config.disk_gib:g} GiB free",
        fix="Make room there (old /tmp/ray/session_* first), or start the node with --temp-dir on a larger disk",
    )


def judge_caches(surveys: Surveys, config: DoctorConfig) -> Finding:
    """Whether slides can be staged."""
    closed, small = {}, {}
    for node, found in surveys.items():
        room = found["cache"]["free"] + found["cache_held"]
        if not found["cache_writable"]:
            closed[node.name] = f"{config.cache} cannot be written"
        elif room < config.cache_gib * _GIB:
            small[node.name] = f"{config.cache} has room for {_gib(room)}"
    return judge(
        "slide cache",
        closed,
        poor=small,
        otherwise=f"{config.cache} has room for {config.cache_gib:g} GiB",
        expected=f"room for {config.cache_gib:g} GiB, as --cache-gib says; needed for slides in object storage only",
        fix="Give jobs/segment.py (and this) another --cache, or a smaller --cache-gib that still holds its largest slide",
    )


def judge_memory(surveys: Surveys, config: DoctorConfig) -> Finding:
    """Whether there is memory left."""
    full, little = {}, {}
    for node, found in surveys.items():
        free = found["memory"] - found["memory_used"]
        text = f"{_gib(free)} of {_gib(found['memory'])} free"
        if found["memory_used"] > config.memory_fraction * found["memory"]:
            full[node.name] = text
        elif free < config.memory_gib * _GIB:
            little[node.name] = text
    least = min(found["memory"] - found["memory_used"] for found in surveys.values())
    return judge(
        "memory",
        full,
        poor=little,
        otherwise=f"{_gib(least)} or more free",
        expected=f"less than {config.memory_fraction:.0%} used (beyond, Ray ends processes), and {config.memory_gib:g} GiB free",
        fix="End what else runs there (`ray memory` and `top` say what), or give the node more memory",
    )


def judge_open_files(surveys: Surveys, config: DoctorConfig) -> Finding:
    """Whether processes may open as many files and sockets as Ray needs."""
    low = {
        node.name: str(found["open_files"])
        for node, found in surveys.items()
        if found["open_files"] < config.open_files
    }
    least = min(found["open_files"] for found in surveys.values())
    return judge(
        "open files",
        {},
        poor=low,
        otherwise=f"{least} or more",
        expected=f"at least {config.open_files}",
        fix=f"`ulimit -n {config.open_files}` (or --ulimit nofile of the container) before the node is started",
    )


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
