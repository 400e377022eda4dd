"""The checks of storage and bundle, in the doctor's own process and on each node."""

import os
import time
from collections.abc import Collection, Mapping
from functools import cache

from resunet_ray import bundles, storage
from resunet_ray.doctor.check import Surroundings, Verdict, check, describe, rate
from resunet_ray.errors import ResUNetRayError

_SMALL, _LARGE = 64, 2**22  # bytes
_LEASE_SECONDS = 60.0
_ONE_WRITER = "a write that fails if the file exists (If-None-Match)"
_NO_LEASE = "Pass --no-lease to the jobs, and let one run at a time write to an output"
_EXPECTED = (
    "a location to write, read and delete in, within {storage_seconds:g} s for a small file and "
    "at {storage_mib_per_second:g} MiB/s or more; " + _ONE_WRITER
)
_FIX = (
    "Check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's "
    "role: read, write, list, delete) and that the bucket exists. If nothing answers, try `curl -m "
    "5 $AWS_ENDPOINT_URL` there, and check proxies, firewalls and network file systems. If it is "
    "only slow, use storage in the same region or network"
)


@check("storage", expected=_EXPECTED, fix=_FIX)
@check(
    "node storage",
    name="node storage",
    expected=_EXPECTED,
    fix=f"{_FIX}. Credentials that only the submitter has do not reach the nodes",
)
def _storage(place: Surroundings) -> Verdict:
    seconds, speed, mixed = _probe(place.folder, place.node.get("NodeID", "driver"))
    slow = seconds > place.config.storage_seconds or speed < place.config.storage_mib_per_second
    if mixed and place.node:
        return Verdict("failed", mixed, _NO_LEASE)
    return rate(f"a small file in {seconds * 1000:.0f} ms, {speed:.0f} MiB/s", doubtful=slow)


@check("storage", expected=_ONE_WRITER, fix=_NO_LEASE)
def _one_writer(place: Surroundings) -> Verdict:
    mixed = _probe(place.folder, "driver")[2]
    return rate(mixed or _ONE_WRITER, wrong=bool(mixed))


@cache
def _probe(folder: str, name: str) -> tuple[float, float, str]:
    """Write, read and remove files, and take a lease, which stays for others to see.

    Returns:
        Seconds for a small file, MiB/s of a large one, and why two runs could not be kept apart.
    """
    folder, seconds = storage.join(folder, name), []
    file = storage.join(folder, "file")
    for size in (_SMALL, _SMALL, _LARGE):  # the first makes the connection
        content, begun = os.urandom(size), time.perf_counter()
        storage.write_bytes(file, content, pauses=())
        if storage.read_bytes(file, pauses=()) != content:
            raise OSError(f"{file}: what was read differs from what was written")
        seconds.append(time.perf_counter() - begun)
    storage.delete_file(file)
    mixed = ""
    try:
        with storage.hold_lease(folder, seconds=_LEASE_SECONDS):
            pass
    except ResUNetRayError as error:
        mixed = describe(error)
    return seconds[1], _LARGE / 2**20 / seconds[2], mixed


@check(
    "shared storage",
    expected="one storage, which every node sees",
    fix="Give a location that all nodes share: s3://…, gs://…, or a network file system mounted "
    "at this path on every node",
)
def _shared_storage(seen: Collection[str], writers: Mapping[str, str]) -> Verdict:
    missing = [name for name, folder in writers.items() if folder not in seen]
    found = f"does not see what {', '.join(missing)} wrote" if missing else "sees what all wrote"
    return rate(found, wrong=bool(missing))


@check(
    "bundle",
    expected="a bundle whose files are whole and whose sample comes out as it did",
    fix="Name the folder that holds bundle.json (OUTPUT/train/bundle), or copy the bundle there "
    "again. If its output differs, install the versions that `provenance` in bundle.json names. If "
    "nothing answers, try `curl -m 5 $AWS_ENDPOINT_URL`, and time `python -c 'import torch'`",
)
@check(
    "node bundle",
    name="node bundle",
    expected="the same bundle on every node, and the same output from it",
    fix="Give a location that every node reads (s3://…, or a folder mounted on all), and install "
    "the versions that `provenance` in its bundle.json names",
    alike=True,
)
def _bundle(place: Surroundings) -> Verdict:
    from resunet_ray.bundle import load_bundle  # not above: torch may be slow or broken

    assert place.config.bundle is not None
    bundle = load_bundle(bundles.absolute(place.config.bundle))
    bundle.self_test()
    return Verdict("ok", f"whole, its sample comes out as it did; digest {bundle.digest[:12]}")
