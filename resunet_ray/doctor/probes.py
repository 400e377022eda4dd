"""What the nodes made of storage, bundle and GPUs: one finding of each kind, about all of them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from resunet_ray import bundles
from resunet_ray.config import DoctorConfig
from resunet_ray.doctor import store
from resunet_ray.doctor.finding import Check, Finding, count, judge, not_asked
from resunet_ray.doctor.nodes import Answers, Node, ask, gather

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
    gpus = {
        node: ask(node, f"{_PACKAGE}.gpu", "probe")
        for node, there in devices.items()
        if there or node.gpus
    }
    checks: list[Check] = [("gpus", lambda: [judge_gpus(wait(gpus), devices)])]
    if config.storage is not None:
        folder = store.new_folder(config.storage)
        written = {
            node: ask(node, f"{_PACKAGE}.store", "probe", folder, node.id) for node in devices
        }
        checks.append(
            ("node storage", lambda: _examine_storage(wait(written), folder, config, wait))
        )
    if config.bundle is not None:
        bundle = bundles.absolute(config.bundle)
        loaded = {node: ask(node, f"{_PACKAGE}.weights", "probe", bundle) for node in devices}
        checks.append(("node bundle", lambda: [judge_bundle(wait(loaded))]))
    return checks


def _examine_storage(
    written: Answers, folder: str, config: DoctorConfig, wait: Callable[[Any], Answers]
) -> Iterator[Finding]:
    """What the nodes wrote, and which of them see it; then it is removed, on each that may have its own."""
    yield judge_storage(written, config)
    if not written.values:
        yield not_asked("shared storage", "no node could write")
        return
    seen = {node: ask(node, f"{_PACKAGE}.store", "list_names", folder) for node in written.values}
    yield judge_sharing(wait(seen), [*written.values])
    removed = {node: ask(node, "resunet_ray.storage", "delete", folder) for node in written.values}
    gather(removed, until=time.monotonic() + _CLEANING_SECONDS, silent="")


def judge_storage(answers: Answers, config: DoctorConfig) -> Finding:
    """Whether every node can use the storage (see `store.probe`)."""
    probes = {node.name: found for node, found in answers.values.items()}
    unfit = {name: found for name, found in probes.items() if found.one_writer}
    if unfit and not answers.errors:
        return store.judge_one_writer("node storage", unfit)
    if probes and not answers.errors:
        return store.judge_speed("node storage", probes, config)
    return judge(
        "node storage",
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
        "shared storage",
        complaints,
        otherwise="only one node wrote there"
        if len(wrote) == 1
        else f"each of {len(wrote)} nodes sees what the others write",
        expected="one storage, which every node sees",
        fix="Give a location that all nodes share: s3://…, gs://…, or a folder of a network file system that is mounted at this "
        "path on every node",
    )


def judge_bundle(answers: Answers) -> Finding:
    """Whether every node loads the same bundle, and gets from it what is expected (see `weights.probe`)."""
    digests = {node.name: digest for node, digest in answers.values.items()}
    unlike = (
        {name: f"digest {digest[:12]}" for name, digest in digests.items()}
        if len(set(digests.values())) > 1
        else {}
    )
    return judge(
        "node bundle",
        {**unlike, **answers.errors},
        otherwise=f"{count(len(digests), 'node')} loaded it, and its sample comes out as it did",
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
    wrong = dict(answers.errors)
    for node, found in answers.values.items():
        known, seen = int(node.gpus), len(found["names"])
        built = f"torch {found['torch']} (CUDA {found['cuda']})"
        if found["errors"]:
            wrong[node.name] = f"{'; '.join(found['errors'])}, with {built}"
        elif seen < known:
            wrong[node.name] = f"Ray gives away {known} GPUs, {built} sees {seen}"
    idle = {
        node.name: f"{count(there, 'NVIDIA device')}, of which Ray knows none"
        for node, there in devices.items()
        if there and not node.gpus
    }
    names: list[str] = sorted(
        {name for found in answers.values.values() for name in found["names"]}
    )
    total = sum(node.gpus for node in devices)
    return judge(
        "gpus",
        wrong,
        poor=idle,
        otherwise=f"{total:g} of {', '.join(names)}, and all compute"
        if total
        else "none: models run on CPUs",
        expected="Ray knows every GPU, and torch sees it and computes on it",
        fix="There, look at `nvidia-smi`, install a torch built for that driver's CUDA (not +cpu), give the container its "
        "GPUs (--gpus all, or nvidia.com/gpu), or start the node with the right --num-gpus",
    )
