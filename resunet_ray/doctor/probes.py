"""What the nodes made of storage, bundle and GPUs: one finding of each kind, about all of them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from resunet_ray import storage
from resunet_ray.config import DoctorConfig
from resunet_ray.doctor import store
from resunet_ray.doctor.finding import Check, Finding, judge, not_asked
from resunet_ray.doctor.nodes import Answers, Node, gather, submit

_PACKAGE = "resunet_ray.doctor"
_CLEANING_SECONDS = 3.0


def start_probes(config: DoctorConfig, devices: Mapping[Node, int], *, until: float) -> list[Check]:
    """Sets the nodes to work; each check waits for its own answers.

    Args:
        config: what is asked.
        devices: NVIDIA devices in /dev of each node.
        until: how long answers are waited for, by `time.monotonic`.
    """
    wait = partial(gather, until=until, silent=f"nothing within {config.check_seconds:g} s")
    gpus = submit([node for node, count in devices.items() if count or node.gpus], f"{_PACKAGE}.gpu", "probe")
    checks: list[Check] = [("gpus", lambda: [judge_gpus(wait(gpus), devices)])]
    if config.storage is not None:
        folder = store.new_folder(config.storage)
        written = submit(devices, f"{_PACKAGE}.store", "probe", folder, name_node=True)
        checks.append(("storage, nodes", lambda: _examine_storage(wait(written), folder, config, wait)))
    if config.bundle is not None:
        loaded = submit(devices, f"{_PACKAGE}.weights", "probe", storage.absolute(config.bundle))
        checks.append(("bundle, nodes", lambda: [judge_bundle(wait(loaded))]))
    return checks


def _examine_storage(written: Answers, folder: str, config: DoctorConfig, wait: Callable[[Any], Answers]) -> Iterator[Finding]:
    """What the nodes wrote, and which of them see it; then it is removed, on each that may have its own."""
    yield judge_storage(written, config)
    if not written.values:
        yield not_asked("storage, shared", "no node could write")
        return
    yield judge_sharing(wait(submit(written.values, f"{_PACKAGE}.store", "list_names", folder)), [*written.values])
    cleaning = submit(written.values, "resunet_ray.storage", "delete", folder)
    gather(cleaning, until=time.monotonic() + _CLEANING_SECONDS, silent="")


def judge_storage(answers: Answers, config: DoctorConfig) -> Finding:
    """Whether every node can use the storage (see `store.probe`)."""
    probes = {node.name: found for node, found in answers.values.items()}
    unfit = {name: found for name, found in probes.items() if found.one_writer}
    if unfit and not answers.errors:
        return store.judge_one_writer("storage, nodes", unfit)
    if probes and not answers.errors:
        return store.judge_speed("storage, nodes", probes, config)
    return judge(
        "storage, nodes",
        answers.errors,
        otherwise="",
        expected="every node writes, reads and deletes there",
        fix=f"On these nodes: {store.KEYS}. Keys that only the submitter has do not reach them",
    )


def judge_sharing(answers: Answers, wrote: Sequence[Node]) -> Finding:
    """Whether each node sees what all others wrote.

    Args:
        answers: the ids of the nodes whose probes each node sees.
        wrote: the nodes that wrote one.
    """
    complaints = dict(answers.errors)
    for node, seen in answers.values.items():
        if missing := [other.name for other in wrote if other.id not in seen]:
            complaints[node.name] = f"does not see what {', '.join(missing)} wrote"
    return judge(
        "storage, shared",
        complaints,
        otherwise="there is one node" if len(wrote) == 1 else f"{len(wrote)} nodes see what the others write",
        expected="one storage, which every node sees",
        fix="Give a location that all nodes share: s3://…, gs://…, or a folder of a network file system that is mounted at this "
        "path on every node",
    )


def judge_bundle(answers: Answers) -> Finding:
    """Whether every node loads the same bundle, and gets from it what is expected (see `weights.probe`)."""
    digests = {node.name: digest for node, digest in answers.values.items()}
    unlike = {name: f"digest {digest[:12]}" for name, digest in digests.items()} if len(set(digests.values())) > 1 else {}
    return judge(
        "bundle, nodes",
        {**unlike, **answers.errors},
        otherwise=f"{len(digests)} nodes load it, and its sample comes out as it did",
        expected="the same bundle on every node, and the same output from it",
        fix="Give a location that every node reads (s3://…, or a folder mounted on all), and install on every node the versions "
        "that `provenance` in its bundle.json names",
    )


def judge_gpus(answers: Answers, devices: Mapping[Node, int]) -> Finding:
    """Whether the GPUs that Ray gives away are there and compute (see `gpu.probe`).

    Args:
        answers: of the nodes that have any.
        devices: NVIDIA devices in /dev of every node.
    """
    complaints = dict(answers.errors)
    for node, found in answers.values.items():
        known, seen = int(node.gpus), len(found["names"])
        built = f"torch {found['torch']} (CUDA {found['cuda']})"
        if found["errors"]:
            complaints[node.name] = f"{'; '.join(found['errors'])}, with {built}"
        elif seen < known:
            complaints[node.name] = f"Ray gives away {known} GPUs, {built} sees {seen}"
    if complaints:
        return judge(
            "gpus",
            complaints,
            otherwise="",
            expected="torch sees, and computes on, every GPU that Ray gives away",
            fix="There, look at `nvidia-smi`, install a torch built for that driver's CUDA (not +cpu), give the container its "
            "GPUs (--gpus all, or nvidia.com/gpu), or start the node with the right --num-gpus",
        )
    idle = {
        node.name: f"{count} NVIDIA devices, of which Ray knows none"
        for node, count in devices.items()
        if count > 0 and not node.gpus
    }
    names: list[Any] = sorted({name for found in answers.values.values() for name in found["names"]})
    total = sum(node.gpus for node in devices)
    return judge(
        "gpus",
        idle,
        otherwise=f"{total:g} of {', '.join(names)}, and all compute" if total else "none: models run on CPUs",
        expected="Ray knows every GPU",
        fix="Start these nodes with `ray start --num-gpus N`",
        status="warning",
    )
