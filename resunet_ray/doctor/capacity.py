"""Whether jobs would find room: what the defaults take, what waits for what is not there, and what the dead still hold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray._private import state
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util import placement_group_table

from resunet_ray.cluster import count_gpus, has_autoscaler, wait_for_resources
from resunet_ray.config import DoctorConfig, SegmentConfig, TrainConfig
from resunet_ray.doctor.finding import Finding, count, failed, ok, warning
from resunet_ray.doctor.nodes import Node
from resunet_ray.errors import ResourceError
from resunet_ray.train.capacity import wait_for_workers

_RPC_SECONDS = 5
_ID_DIGITS = 8  # of a job, at the end of its placement groups' ids
_IN_GROUP = "_group_"  # in the names of resources that a placement group holds
_MOST_SHOWN = 4
_REMOVE = (
    "`python -c \"import ray; from ray.util.placement_group import *; ray.init('auto'); "
    "[remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(i))) for i in '{ids}'.split()]\"` on the head"
)


def examine_training(config: DoctorConfig, nodes: Sequence[Node]) -> Finding:
    """Whether the training workers fit, all together and each on one node."""
    workers, cpus = config.workers, config.cpus_per_worker
    batch = -(-TrainConfig.batch_size // workers) * workers
    training = TrainConfig(
        data=".", output=".", workers=workers, cpus_per_worker=cpus, batch_size=batch
    )
    asked = f"{count(workers, 'training worker')} of {count(cpus, 'CPU')}, with one CPU left for Ray Data"
    fix = "Give jobs/train.py fewer --workers or --cpus-per-worker, or add nodes"
    try:
        wait_for_workers(training, wait=False)
    except ResourceError as error:
        return _judge_small("training", str(error), expected=asked, fix=fix)
    places = sum(_count_places(node, cpus=cpus, gpu=count_gpus() > 0) for node in nodes)
    if places < workers:
        room = f"the nodes have room for {count(places, 'such worker')}, none of which may be split"
        return _judge_small("training", room, expected=asked, fix=fix)
    return _judge_free(
        "training", asked, needed={"CPU": workers * cpus + 1, "GPU": workers if count_gpus() else 0}
    )


def _count_places(node: Node, *, cpus: int, gpu: bool) -> int:
    return int(min(node.cpus // cpus, node.gpus if gpu else node.cpus))


def examine_segmentation() -> Finding:
    """Whether a segmentation with default settings fits."""
    cpus = SegmentConfig.cpus_per_actor
    asked = f"a segmenting actor of {count(cpus, 'CPU')}, with one CPU left for Ray Data"
    try:
        wait_for_resources([{"CPU": cpus}, {"CPU": 1}], what=asked, wait=False)
    except ResourceError as error:
        fix = "Add nodes, or start them with --num-cpus as many as they have"
        return _judge_small("segmentation", str(error), expected=asked, fix=fix)
    return _judge_free(
        "segmentation", asked, needed={"CPU": cpus + 1, "GPU": 1 if count_gpus() else 0}
    )


def _judge_small(check: str, found: str, *, expected: str, fix: str) -> Finding:
    """A cluster that is too small now, and may grow or not."""
    if has_autoscaler():
        return warning(
            check,
            found,
            expected=expected,
            fix="None, if its autoscaler may add the nodes: jobs wait for them",
        )
    return failed(check, found, expected=expected, fix=fix)


def _judge_free(check: str, asked: str, *, needed: Mapping[str, float]) -> Finding:
    free, total = ray.available_resources(), ray.cluster_resources()
    shown = {
        name: f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s are free" for name in needed
    }
    short = [name for name, amount in needed.items() if free.get(name, 0) < amount]
    if not short:
        return ok(check, f"there is room for {asked}; {shown['CPU']}")
    return warning(
        check,
        "; ".join(f"{shown[name]} now, {needed[name]:g} are needed" for name in short),
        expected=asked,
        fix="Wait for what runs (on the head, `ray status` and `ray list actors` say what), or remove what ended jobs hold",
    )


def examine_waiting(nodes: Sequence[Node]) -> Finding:
    """Demands that no node can ever meet, and placement groups whose job has ended."""
    left = _list_leftovers()
    stuck = [
        shape
        for shape in _list_demands()
        if not any(_covers(node.resources, shape) for node in nodes)
    ]
    if not left and not stuck:
        return ok(
            "waiting", "nothing waits for resources that no node has, and no ended job holds any"
        )
    found, fixes = [], []
    if left:
        held = "; ".join(
            f"{_describe(group['bundles'].values())} of job {group['placement_group_id'][-_ID_DIGITS:]}"
            for group in left
        )
        found.append(f"{count(len(left), 'placement group')} of ended jobs: {held}")
        fixes.append(_REMOVE.format(ids=" ".join(group["placement_group_id"] for group in left)))
    if stuck:
        found.append(f"waiting for ever, unless nodes are added: {_describe(stuck)}")
        fixes.append(
            "end the job that asks for more than any node has (`ray job list`, `ray job stop ID`), or add such a node"
        )
    return warning(
        "waiting",
        "; ".join(found),
        expected="no demand that no node can meet, and nothing held by jobs that have ended",
        fix="; ".join(fixes),
    )


def _list_demands() -> list[Mapping[str, float]]:
    """The shapes of what waits for resources of nodes; what waits for its own placement group is not among them."""
    demands = get_cluster_status(
        ray.get_runtime_context().gcs_address, timeout=_RPC_SECONDS
    ).resource_demands
    waiting = [*demands.ray_task_actor_demand, *demands.placement_group_demand]
    shapes = [shape.bundle for demand in waiting for shape in demand.bundles_by_count]
    return [shape for shape in shapes if not any(_IN_GROUP in name for name in shape)]


def _list_leftovers() -> list[dict[str, Any]]:
    """Placement groups that hold resources for, or wait on behalf of, a job that is no more."""
    ended = {job["JobID"] for job in state.jobs() if job["IsDead"]}
    groups = placement_group_table().values()
    return [
        item
        for item in groups
        if item["state"] != "REMOVED" and item["placement_group_id"][-_ID_DIGITS:] in ended
    ]


def _covers(resources: Mapping[str, float], demand: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in demand.items())


def _describe(bundles: Iterable[Mapping[str, float]]) -> str:
    shown = [
        " + ".join(f"{amount:g} {name}" for name, amount in bundle.items()) for bundle in bundles
    ]
    return ", ".join(shown[:_MOST_SHOWN]) + (", …" if len(shown) > _MOST_SHOWN else "")
