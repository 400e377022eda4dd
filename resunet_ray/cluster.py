"""The Ray cluster: joining or starting one, and checking that it has what a job needs."""

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

from resunet_ray.config.model import Engine, has_openvino
from resunet_ray.errors import ConfigError, ResourceError
from resunet_ray.local_ray import prepare_quiet_worker, prepare_worker, require_short_sockets
from resunet_ray.progress import is_verbose

logger = logging.getLogger(__name__)

# Linux, control groups version 2: microseconds of CPU time per period of so many microseconds.
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_FORWARD = "RAY_LOG_TO_DRIVER"  # Ray's own variable: whether the driver shows the workers' output
_REMARKS = ("ray._private.authentication", "ray.data._internal.progress", "ray.data.exceptions")
"""Ray loggers that add nothing: local tokens, disabled progress bars, repeated exceptions."""
_DASHBOARD_SECONDS = 20
_SOON_SECONDS = 3  # that Ray takes to hand out free CPUs
_BUSY_SECONDS = 120
_AUTOSCALER_SECONDS = 1800  # to find a machine, pull its image and start Ray
_LEAST_LOCAL_CPUS = 3
"""CPUs that a local Ray claims at least, so that two training workers fit beside Ray Data."""

_MALLOC = {"MALLOC_ARENA_MAX": "1"}
MODEL_ENVIRONMENT = {
    "env_vars": _MALLOC | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
}
"""Runtime environment of processes in which torch runs a network on CPUs.

It makes the GNU C library keep the memory that tensors free. By default, it returns each large
block to the kernel and faults it in again. Measured on two cores with batches of 8 images of
256×256 in bf16: training 4.3 → 8.9 images/s, inference 19 → 35 images/s. The variables must be set
before the process starts: Ray works in threads, and no later call can change their arenas.
"""
_OPENVINO_ENVIRONMENT = {"env_vars": _MALLOC | {"MALLOC_TRIM_THRESHOLD_": str(2**27)}}

_session: dict[str, Any] = {}  # the address info that Ray returned on joining


def connect(*, dashboard: bool = False) -> None:
    """Join the cluster named by RAY_ADDRESS, or start a local Ray that ends with this process.

    `ray job submit` sets RAY_ADDRESS. Without it, a Ray that happens to run on this machine is not
    joined: it may belong to another program and would end with that program.

    Args:
        dashboard: start the dashboard of a local Ray. Ray Train needs it to free the resources of a
            run that was stopped from outside, which a sweep does all the time.

    Raises:
        ConfigError: RAY_ADDRESS is not an address of a cluster, or TMPDIR is too long.
        ResourceError: no cluster answers at RAY_ADDRESS.
    """
    if not ray.is_initialized():
        _start_or_join(dashboard=dashboard)
    # Show the user a task's own exception, not Ray Data's wrapper around it.
    ray.data.DataContext.get_current().raise_original_map_exception = True


def _start_or_join(*, dashboard: bool) -> None:
    level = logging.INFO if is_verbose() else logging.WARNING
    # Each process, this one included, reads Ray Data's log level from its environment.
    data_level = os.environ.setdefault("RAY_DATA_LOG_LEVEL", logging.getLevelName(level))
    environment: dict[str, Any] = {"env_vars": {"RAY_DATA_LOG_LEVEL": data_level}}
    shown: dict[str, Any] = {"logging_level": level}
    if _FORWARD not in os.environ:  # else Ray follows the variable
        shown["log_to_driver"] = is_verbose()
    if not is_verbose():
        for name in _REMARKS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        # Saves one process: this machine is not a spot node.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        require_short_sockets(dashboard=dashboard)
        prepare = prepare_worker if dashboard else prepare_quiet_worker
        context = ray.init(
            address="local",
            num_cpus=max(_LEAST_LOCAL_CPUS, count_cores()),
            include_dashboard=dashboard,
            **shown,
            runtime_env={**environment, "worker_process_setup_hook": prepare},
        )
        if dashboard:
            logger.info("Ray's dashboard: http://%s", context.dashboard_url)
    else:
        if address.startswith("http"):  # ConnectionError would say nothing of use
            raise ConfigError(f"RAY_ADDRESS={address} is for `ray job submit`: unset it, or submit")
        try:
            context = ray.init(address=address, **shown, runtime_env=environment)
        except ConnectionError as error:
            raise ResourceError(
                f"no Ray cluster answered at RAY_ADDRESS={address}: {error}"
            ) from None
    _session.update(context.address_info)
    logging.getLogger("ray.data").setLevel(data_level)


def log_folder() -> str | None:
    """Return the folder of the Ray processes' logs on each node, or None without Ray."""
    return str(Path(_session["session_dir"]) / "logs") if _session else None


def disconnect() -> None:
    """Leave the cluster, or stop the local Ray, if there is one."""
    ray.shutdown()


def environment_for(engine: Engine, *, gpu: bool) -> dict[str, dict[str, str]]:
    """Return the runtime environment of processes that segment.

    OpenVINO keeps its memory itself. What else is freed can go back to the kernel: a process on two
    cores then takes 1.27 GiB at most, not 1.53.
    """
    on_openvino = not gpu and engine != "torch" and has_openvino()
    return _OPENVINO_ENVIRONMENT if on_openvino else MODEL_ENVIRONMENT


def wait_for_resources(
    bundles: Sequence[Mapping[str, float]],
    *,
    what: str,
    memory_gib: float = 0,
    nodes_seconds: float | None = None,
    busy_seconds: float = _BUSY_SECONDS,
    wait: bool = True,
) -> None:
    """Wait until the cluster has room for some work, or raise where Ray would wait silently.

    The wait uses a placement group: autoscalers add nodes for it, and Ray removes it when this job
    ends in any way.

    Args:
        bundles: CPUs and GPUs of each process, in Ray's names, and those left for Ray Data. Each
            must fit on one node.
        what: the work, for the error message.
        memory_gib: memory of the processes and of the object store beside them, in GiB.
        nodes_seconds: how long to wait for nodes. None means half an hour if the cluster has an
            autoscaler, else not at all.
        busy_seconds: least time to wait for resources that other jobs hold.
        wait: false to check only whether the cluster is large enough.

    Raises:
        ResourceError: the cluster lacks something. The message lists everything that is missing.
    """
    lacking = _lacking(bundles, memory_gib=memory_gib)
    if nodes_seconds is None:
        nodes_seconds = _AUTOSCALER_SECONDS if has_autoscaler() else 0
    if lacking and not (wait and nodes_seconds):
        raise ResourceError(
            f"the Ray cluster is too small for {what}: {'; '.join(lacking)}. Ask for less, add "
            "nodes, or pass --nodes-seconds if nodes are added on demand"
        )
    if not wait:
        return
    share = int(memory_gib * 2**30 / len(bundles))
    memory = {"memory": share} if share else {}
    group = placement_group([{**bundle, **memory} for bundle in bundles])
    try:
        _wait_for(group, what=what, lacking=lacking, seconds=max(nodes_seconds, busy_seconds))
    finally:
        remove_placement_group(group)


def _wait_for(group: PlacementGroup, *, what: str, lacking: list[str], seconds: float) -> None:
    """Return once the cluster has room for a placement group."""
    why = "; ".join(lacking) or "other jobs hold what it needs, or no single node has that much"
    begun = time.monotonic()
    if not group.wait(_SOON_SECONDS):
        logger.info("waiting up to %g s for %s: %s", seconds, what, why)
    while not group.wait(_SOON_SECONDS):
        if _is_infeasible(group) and _is_idle():  # if not idle, it may fit once others finish
            raise ResourceError(
                f"the Ray cluster's autoscaler may not add enough nodes for {what}: {why}. Ask for "
                "less, or raise the autoscaler's limits"
            )
        if time.monotonic() - begun > seconds:
            raise ResourceError(
                f"the Ray cluster had no room for {what} in {seconds:g} s: {why}. Ask for less, "
                "or try again later"
            )


def _is_infeasible(group: PlacementGroup) -> bool:
    """Whether an autoscaler reports that no nodes it may add could hold the group."""
    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=_DASHBOARD_SECONDS))
    return any(
        group.id.hex() in request.details
        for request in reply.autoscaling_state.infeasible_gang_resource_requests
    )


def _is_idle() -> bool:
    """Whether all CPUs and GPUs are free."""
    free, total = ray.available_resources(), ray.cluster_resources()
    return all(free.get(name, 0) == total.get(name, 0) for name in ("CPU", "GPU"))


def _lacking(bundles: Sequence[Mapping[str, float]], *, memory_gib: float) -> list[str]:
    """Describe each resource that the whole cluster has too little of."""
    total = ray.cluster_resources()
    needed = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in ("CPU", "GPU")}
    return [
        f"{amount:g} {name} needed, {total.get(key, 0) / unit:.4g} available"
        for name, key, amount, unit in (
            ("CPUs", "CPU", needed["CPU"], 1),
            ("GPUs", "GPU", needed["GPU"], 1),
            ("GiB of memory", "memory", memory_gib, 2**30),
        )
        if amount > total.get(key, 0) / unit
    ]


def require_dashboard(why: str) -> None:
    """Check that the cluster's dashboard answers. Without it, the work would hang silently.

    Args:
        why: what needs the dashboard, for the error message.

    Raises:
        ResourceError: the dashboard did not answer.
    """
    overriding = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # they take precedence over `address`
    removed = {name: os.environ.pop(name) for name in overriding if name in os.environ}
    try:
        list_nodes(address=ray.get_runtime_context().gcs_address, timeout=_DASHBOARD_SECONDS)
    except (RayStateApiException, OSError, ValueError) as error:
        raise ResourceError(
            f"the Ray cluster's dashboard did not answer ({error}), and {why}: start the head with "
            "its dashboard"
        ) from None
    finally:
        os.environ.update(removed)


def has_autoscaler() -> bool:
    """Whether version 2 of Ray's autoscaler manages this cluster. Version 1 cannot be detected."""
    return bool(is_autoscaler_v2(fetch_from_server=True))


def count_cores() -> int:
    """Return how many CPU cores this process may use, given its affinity and container quota."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except OSError:  # not a control group of version 2
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def count_gpus() -> int:
    """Return the number of GPUs in the whole cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def count_cpu_nodes() -> int:
    """Return the number of nodes that have CPUs for work."""
    return sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())


def this_node() -> str:
    """Return the id of this process's node, empty without Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def is_lost(node: str) -> bool:
    """Whether the node with that id (see `this_node`) has left the cluster."""
    return (
        bool(node)
        and ray.is_initialized()
        and not any(found["NodeID"] == node and found["Alive"] for found in ray.nodes())
    )
