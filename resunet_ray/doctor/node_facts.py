"""What one node says of itself: its packages, its clock, its memory and disks.

Only the standard library and Ray are needed, and the module travels to the nodes by value: it also works where the package, or
what it needs, is missing.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import ray
from ray._private.utils import get_system_memory, get_used_memory

from resunet_ray import storage

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Ray keeps its objects, on Linux)
_DEVICES = Path("/dev")


class Disk(TypedDict):
    """The disk under a folder, bytes."""

    folder: str
    total: int
    free: int


class NodeFacts(TypedDict):
    """What a node says."""

    python: str
    packages: dict[str, str | None]
    code: str | None
    """Digest of the package that would be imported; None: there is none."""
    code_folder: str
    shared_memory: int | None
    """Bytes; None: this system has none."""
    session: Disk
    cache: Disk
    cache_held: int
    """Bytes that the cache holds already."""
    cache_writable: bool
    memory: int
    memory_used: int
    open_files: int
    nvidia_devices: int


def call(module: str, function: str, arguments: Sequence[Any]) -> Any:
    """What a function gives here, whose module is imported here and nowhere else."""
    return getattr(importlib.import_module(module), function)(*arguments)


class NodeProbe:
    """A process on a node that is asked."""

    def list_facts(self, packages: Sequence[str], cache: str) -> NodeFacts:
        """What the node says of itself."""
        return list_facts(
            packages,
            cache=cache,
            session=ray._private.worker.global_worker.node.get_session_dir_path(),
        )

    def now(self) -> float:
        """The node's clock, seconds since 1970."""
        return time.time()


def list_facts(packages: Sequence[str], *, cache: str, session: str) -> NodeFacts:
    """What this machine says of itself.

    Args:
        packages: whose versions are asked for.
        cache: folder for staged slides; need not be there.
        session: Ray's own folder.
    """
    digest, folder = digest_code()
    return NodeFacts(
        python=platform.python_version(),
        packages={name: _version(name) for name in packages},
        code=digest,
        code_folder=folder,
        shared_memory=shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.is_dir() else None,
        session=_disk(session),
        cache=_disk(cache),
        cache_held=_count_bytes(storage.cache_folder(cache)),
        cache_writable=os.access(_existing(str(storage.cache_folder(cache))), os.W_OK),
        memory=get_system_memory(),
        memory_used=get_used_memory(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        nvidia_devices=sum(path.name[6:].isdigit() for path in _DEVICES.glob("nvidia*")),
    )


def digest_code() -> tuple[str | None, str]:
    """Digest of the package's modules, as this process would import them, and where they are."""
    found = importlib.util.find_spec("resunet_ray")
    if found is None or not found.submodule_search_locations:
        return None, ""
    folder = Path(found.submodule_search_locations[0])
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest(), str(folder)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _existing(folder: str) -> Path:
    """It, or what is nearest above it."""
    return next(path for path in (Path(folder), *Path(folder).parents) if path.exists())


def _count_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # it may leave the cache at this moment
            total += path.stat().st_size if path.is_file() else 0
    return total


def _disk(folder: str) -> Disk:
    usage = shutil.disk_usage(_existing(folder))
    return Disk(folder=folder, total=usage.total, free=usage.free)
