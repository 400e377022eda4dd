"""The Ray cluster: joining one or starting one, and knowing beforehand whether it can give what a job asks for."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from resunet_ray.errors import ResourceError
from resunet_ray.progress import is_verbose

logger = logging.getLogger(__name__)

_CPU_QUOTA = Path(
    "/sys/fs/cgroup/cpu.max"
)  # Linux, control groups version 2: microseconds of CPU time, and in how many
_FORWARD = "RAY_LOG_TO_DRIVER"  # Ray's own: whether what workers say is shown here
_REMARKS = ("ray._private.authentication", "ray.data._internal.progress", "ray.data.exceptions")
"""Loggers of Ray that say what everybody knows: a local Ray has a token, bars are off, and what is in the exception as well."""
_NOWHERE = "http://127.0.0.1:1"  # a port that nobody listens on
_DASHBOARD_SECONDS = 20
_SOON_SECONDS = 3  # that free CPUs take to be given
_BUSY_SECONDS = 120
_AUTOSCALER_SECONDS = 1800  # a machine is found, its image fetched, Ray started
_LEAST_LOCAL_CPUS = 3
"""CPUs that a local Ray says it has, at least. Only numbers to schedule by: two training workers fit, beside Ray Data."""


MODEL_ENVIRONMENT = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
    }
}
"""The runtime environment of processes that hold a network on CPUs: the GNU C library keeps what tensors free, where it
would hand each large one back to the kernel and fault it in anew. Measured on two cores, batch 8 of 256×256 in bf16:
training 4.3 → 8.9 images/s, inference 19 → 35. It must stand in the environment before the process starts: Ray runs its work in
threads, whose own arenas no later call can change."""


_session: dict[str, Any] = {}  # what Ray said of itself when it was joined


def connect(*, dashboard: bool = False) -> None:
    """Joins the cluster that RAY_ADDRESS names (`ray job submit` sets it), or starts a local Ray that ends with this process.

    It never joins what merely runs on this machine: that may be another program's own, and would end with it.

    Args:
        dashboard: a local Ray gets its dashboard. Ray Train needs it to free what a run held that was ended from without:
            a sweep does that all the time.

    Raises:
        ResourceError: no cluster answers there.
    """
    if not ray.is_initialized():
        _start_or_join(dashboard=dashboard)
    # A task's own exception reaches the user, not Ray Data's remark that there was one.
    ray.data.DataContext.get_current().raise_original_map_exception = True


def _start_or_join(*, dashboard: bool) -> None:
    level = logging.INFO if is_verbose() else logging.WARNING
    # Ray Data takes its level from the environment of each process, this one among them.
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", logging.getLevelName(level))
    environment: dict[str, Any] = {
        "env_vars": {"RAY_DATA_LOG_LEVEL": os.environ["RAY_DATA_LOG_LEVEL"]}
    }
    shown: dict[str, Any] = {"logging_level": level}
    if _FORWARD not in os.environ:  # else Ray does as it says
        shown["log_to_driver"] = is_verbose()
    if not is_verbose():
        for name in _REMARKS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        os.environ.setdefault(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
        )  # one more process; nobody takes this machine away
        context = ray.init(
            address="local",
            num_cpus=max(_LEAST_LOCAL_CPUS, count_cores()),
            include_dashboard=dashboard,
            **shown,
            runtime_env={
                **environment,
                "worker_process_setup_hook": _prepare_worker
                if dashboard
                else _prepare_quiet_worker,
            },
        )
        if dashboard:
            logger.info("Ray's dashboard: http://%s", context.dashboard_url)
    else:
        try:
            context = ray.init(address=address, **shown, runtime_env=environment)
        except ConnectionError as error:
            raise ResourceError(
                f"no Ray cluster answers at RAY_ADDRESS={address}: {error}"
            ) from None
    _session.update(context.address_info)
    logging.getLogger("ray.data").setLevel(os.environ["RAY_DATA_LOG_LEVEL"])


def log_folder() -> str | None:
    """Where each node keeps what Ray's processes say; None where Ray was not joined."""
    return str(Path(_session["session_dir"]) / "logs") if _session else None


def disconnect() -> None:
    """Leaves the cluster, or ends the local Ray, if there is one."""
    ray.shutdown()


def _prepare_worker() -> None:
    """Where several Rays run on one machine, Ray Train's cleaner does not know which one to ask about its run."""
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def _prepare_quiet_worker() -> None:
    """Without a dashboard, keeps Ray Train's cleaner from all others.

    It would ask at this Ray's own address for one, where another Ray's may have begun to answer since: that knows nothing of the
    run, which is then taken for dead, and its workers end. On a cluster that dies with its driver it has no use, and else it
    only complains twice a second.
    """
    os.environ["RAY_API_SERVER_ADDRESS"] = _NOWHERE
    logging.getLogger(
        "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    ).setLevel(logging.CRITICAL)


def wait_for_resources(
    bundles: Sequence[Mapping[str, float]],
    *,
    what: str,
    memory_gib: float = 0,
    nodes_seconds: float | None = None,
    busy_seconds: float = _BUSY_SECONDS,
    wait: bool = True,
) -> None:
    """Refuses work that the cluster cannot take, where Ray would wait without a word.

    Waiting is done by a placement group: autoscalers add nodes for it, and it goes with this job, however that ends.

    Args:
        bundles: CPUs and GPUs of each process, as Ray calls them, with those left for Ray Data; each fits one node.
        what: the work, for the error.
        memory_gib: memory of its processes and of the object store beside them.
        nodes_seconds: how long to wait for nodes. None: half an hour if the cluster has an autoscaler, else not at all.
        busy_seconds: how long to wait for what other jobs hold, at least.
        wait: False: only say whether it is large enough.

    Raises:
        ResourceError: something is missing; the message says all that is.
    """
    lacking = _lacking(bundles, memory_gib=memory_gib)
    if nodes_seconds is None:
        nodes_seconds = _AUTOSCALER_SECONDS if has_autoscaler() else 0
    if lacking and not (wait and nodes_seconds):
        raise ResourceError(
            f"the Ray cluster is too small for {what}: {'; '.join(lacking)}. Ask for less, add nodes, or, where something adds "
            "them in time, say --nodes-seconds"
        )
    if not wait:
        return
    share = int(memory_gib * 2**30 / len(bundles))
    group = placement_group(
        [{**bundle, "memory": share} if share else dict(bundle) for bundle in bundles]
    )
    try:
        _wait_for(group, what=what, lacking=lacking, seconds=max(nodes_seconds, busy_seconds))
    finally:
        remove_placement_group(group)


def _wait_for(group: PlacementGroup, *, what: str, lacking: list[str], seconds: float) -> None:
    """Returns when the cluster has room for a placement group."""
    why = "; ".join(lacking) or "other jobs hold what it needs, or no one node has so much"
    begun = time.monotonic()
    if not group.wait(_SOON_SECONDS):
        logger.info("waiting up to %g s for %s: %s", seconds, what, why)
    while not group.wait(_SOON_SECONDS):
        if _is_infeasible(group) and _is_idle():  # else only what others hold is lacking
            raise ResourceError(
                f"the Ray cluster's autoscaler may not add what {what} take: {why}. Ask for less, or allow more"
            )
        if time.monotonic() - begun > seconds:
            raise ResourceError(
                f"the Ray cluster had no room for {what} in {seconds:g} s: {why}. Ask for less, or later"
            )


def _is_infeasible(group: PlacementGroup) -> bool:
    """Whether the autoscaler, if there is one, says that no nodes that it may add would do."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(
        GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(
            timeout_s=_DASHBOARD_SECONDS
        )
    )
    return any(
        group.id.hex() in request.details
        for request in reply.autoscaling_state.infeasible_gang_resource_requests
    )


def _is_idle() -> bool:
    """Whether nobody holds CPUs or GPUs."""
    free, total = ray.available_resources(), ray.cluster_resources()
    return all(free.get(name, 0) == total.get(name, 0) for name in ("CPU", "GPU"))


def _lacking(bundles: Sequence[Mapping[str, float]], *, memory_gib: float) -> list[str]:
    """What the whole cluster has too little of."""
    total = ray.cluster_resources()
    needed = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in ("CPU", "GPU")}
    return [
        f"{amount:g} {name} needed, {total.get(key, 0) / unit:.4g} there"
        for name, key, amount, unit in (
            ("CPUs", "CPU", needed["CPU"], 1),
            ("GPUs", "GPU", needed["GPU"], 1),
            ("GiB of memory", "memory", memory_gib, 2**30),
        )
        if amount > total.get(key, 0) / unit
    ]


def require_dashboard(why: str) -> None:
    """Refuses a cluster whose dashboard does not answer, where the work would hang without a word.

    Args:
        why: what needs it, for the error.

    Raises:
        ResourceError: it does not answer.
    """
    elsewhere = {
        name: os.environ.pop(name)
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        if name in os.environ
    }
    try:
        list_nodes(address=ray.get_runtime_context().gcs_address, timeout=_DASHBOARD_SECONDS)
    except (RayStateApiException, OSError, ValueError) as error:
        raise ResourceError(
            f"the Ray cluster's dashboard does not answer ({error}), and {why}: start its head with it"
        ) from None
    finally:
        os.environ.update(elsewhere)  # which go before the address that is asked for


def has_autoscaler() -> bool:
    """Whether Ray's autoscaler, version 2, adds nodes to this cluster; of version 1 nothing can be told."""
    return bool(is_autoscaler_v2(fetch_from_server=True))


def count_cores() -> int:
    """CPU cores that this process may use: those of its machine, as far as its affinity and its container's quota go."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except OSError:  # no control group of version 2
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def count_gpus() -> int:
    """GPUs of the whole cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def count_cpu_nodes() -> int:
    """Nodes that have CPUs for work."""
    return sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())


def this_node() -> str:
    """Id of the node that this process is on; empty without Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def is_lost(node: str) -> bool:
    """Whether a node of that id, once `this_node` of a process there, has left the cluster."""
    return (
        bool(node)
        and ray.is_initialized()
        and not any(found["NodeID"] == node and found["Alive"] for found in ray.nodes())
    )
