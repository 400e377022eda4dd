"""The checks that each node makes of itself: packages, code, memory, disks, limits, GPUs."""

import hashlib
import os
import platform
import resource
import shutil
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

# Nothing public counts memory as Ray does when it ends processes: up to the container's limit.
from ray._private.utils import get_system_memory, get_used_memory

import resunet_ray
from resunet_ray import storage
from resunet_ray.doctor.check import Place, Verdict, check, count, grade

_FOLDER = Path(resunet_ray.__file__).parent
_ALIKE = ("ray", "torch", "numpy", "pyarrow", "opencv-python-headless")
"""Packages whose objects travel between nodes, or whose results are compared."""
_GIB = 2**30
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Ray keeps its objects, on Linux)
_SIDE = 256  # of the matrices


@check(
    "machine",
    expected="what pyproject.toml asks for, and the same of what travels between nodes",
    fix="Start the node from the head's image, or run `pip install -c constraints.txt .` there",
    alike=True,
)
def _packages(_: Place) -> Verdict:
    versions, wrong = {}, []
    for item in _list_requirements():
        try:
            versions[item.name] = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{item.name} is missing")
            continue
        if not item.specifier.contains(versions[item.name], prereleases=True):
            wrong.append(f"{item.name} {versions[item.name]} where {item.specifier} is asked for")
    # A build's own suffix does not count: +cpu on the head goes with +cu128 on GPU nodes.
    alike = [f"{name} {Version(versions[name]).public}" for name in _ALIKE if name in versions]
    found = ", ".join(wrong or [f"python {platform.python_version()}", *alike])
    return grade(found, wrong=bool(wrong))


def _list_requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for; without that file, what the installed package does."""
    file = _FOLDER.parent / "pyproject.toml"
    if file.is_file():
        lines = tomllib.loads(file.read_text())["project"]["dependencies"]
    else:
        lines = metadata.requires("resunet_ray") or []
    found = [Requirement(line) for line in lines]
    return [item for item in found if not item.marker or item.marker.evaluate({"extra": ""})]


@check(
    "machine",
    expected="the same code on every node",
    fix="Submit from the repository's root with `ray job submit --working-dir .`, and uninstall "
    "what the nodes have installed; or install this version on all",
    alike=True,
)
def _code(_: Place) -> Verdict:
    digest = hashlib.sha256()
    for path in sorted(_FOLDER.rglob("*.py")):
        digest.update(path.relative_to(_FOLDER).as_posix().encode() + path.read_bytes())
    return Verdict("ok", f"resunet_ray {resunet_ray.__version__}, digest {digest.hexdigest()[:12]}")


@check(
    "machine",
    expected="room for the object store in /dev/shm: otherwise it is on disk, and slow",
    fix="Start the container with --shm-size (Kubernetes: an emptyDir of medium Memory at "
    "/dev/shm), or the node with a smaller --object-store-memory",
)
def _shared_memory(place: Place) -> Verdict:
    if not _SHARED_MEMORY.is_dir():
        return Verdict("ok", "this system has no /dev/shm")
    there = shutil.disk_usage(_SHARED_MEMORY).total
    store = place.node["Resources"].get("object_store_memory", 0)
    return grade(f"{_gib(there)} in /dev/shm, {_gib(store)} for objects", poor=there < store)


@check(
    "machine",
    expected="less than {disk_fraction:.0%} used (beyond, tasks fail), {disk_gib:g} GiB free",
    fix="Remove old /tmp/ray/session_*, or start the node with --temp-dir on a larger disk",
)
def _disk(place: Place) -> Verdict:
    session = place.node["ObjectStoreSocketName"].partition("/sockets/")[0]
    disk, config = shutil.disk_usage(_existing(Path(session))), place.config
    wrong = 1 - disk.free / max(1, disk.total) >= config.disk_fraction
    found = f"{session}: {_gib(disk.free)} of {_gib(disk.total)} free"
    return grade(found, wrong=wrong, poor=disk.free < config.disk_gib * _GIB)


@check(
    "machine",
    expected="room for {cache_gib:g} GiB (--cache-gib), needed for slides in object storage only",
    fix="Give jobs/segment.py and this job another --cache, or a smaller --cache-gib that still "
    "holds the largest slide",
)
def _slide_cache(place: Place) -> Verdict:
    config, folder = place.config, storage.cache_folder(place.config.cache)
    if not os.access(_existing(folder), os.W_OK):
        return Verdict("failed", f"{folder} cannot be written")
    room = shutil.disk_usage(_existing(folder)).free
    for path in folder.rglob("*"):  # what the cache holds already
        with suppress(FileNotFoundError):  # it may leave at this moment
            room += path.stat().st_size if path.is_file() else 0
    return grade(f"{config.cache} has room for {_gib(room)}", poor=room < config.cache_gib * _GIB)


@check(
    "machine",
    expected="less than {memory_fraction:.0%} used (beyond, Ray ends processes), "
    "{memory_gib:g} GiB free",
    fix="End what else runs there (`ray memory` and `top` show it), or give the node more memory",
)
def _memory(place: Place) -> Verdict:
    total, used, config = get_system_memory(), get_used_memory(), place.config
    wrong, poor = used > config.memory_fraction * total, total - used < config.memory_gib * _GIB
    return grade(f"{_gib(total - used)} of {_gib(total)} free", wrong=wrong, poor=poor)


@check(
    "machine",
    expected="at least {open_files}, as Ray recommends",
    fix="Run `ulimit -n {open_files}` (container: --ulimit nofile) before the node is started",
)
def _open_files(place: Place) -> Verdict:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return grade(str(limit), poor=limit < place.config.open_files)


@check(
    "gpus",
    expected="Ray knows every GPU, and torch sees it and computes on it",
    fix="There, check `nvidia-smi`, install a torch built for that driver's CUDA (not +cpu), give "
    "the container its GPUs (--gpus all, nvidia.com/gpu), or set the node's --num-gpus",
)
def _gpus(place: Place) -> Verdict:
    known = int(place.node["Resources"].get("GPU", 0))
    if not known:
        return judge_devices([path.name for path in Path("/dev").glob("nvidia*")])
    import torch  # not above: it may be slow or broken

    names, errors = [], []
    for index in range(torch.cuda.device_count()):
        names.append(torch.cuda.get_device_name(index))
        try:
            matrix = torch.full((_SIDE, _SIDE), 2.0, device=f"cuda:{index}")
            if (mean := float((matrix @ matrix).mean())) != 4.0 * _SIDE:
                errors.append(f"GPU {index}: a matrix product is {mean}, not {4.0 * _SIDE}")
        except RuntimeError as error:  # CUDA's own, or this build has no kernels for this GPU
            errors.append(f"GPU {index}: {str(error).splitlines()[0]}")
    if len(names) < known:
        errors.append(f"Ray gives away {known} GPUs, torch {torch.__version__} sees {len(names)}")
    return grade("; ".join(errors) or ", ".join(names), wrong=bool(errors))


def judge_devices(names: list[str]) -> Verdict:
    """Judge what is in /dev of a node where Ray knows no GPU."""
    devices = sum(name.removeprefix("nvidia").isdigit() for name in names)
    idle = f"{count(devices, 'NVIDIA device')}, of which Ray knows none"
    return grade(idle if devices else "none: models run on CPUs", poor=devices > 0)


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
