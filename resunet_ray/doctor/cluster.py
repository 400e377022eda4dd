"""The checks of the cluster: joining it, token and dashboard, its nodes, room for jobs."""

import json
import os
import socket
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import ray

# The public client of the Jobs API has no timeout.
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

# The public list of jobs comes from the dashboard, which may hang; this one from the GCS.
from ray._private.state import jobs
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util import placement_group_table

from resunet_ray.cluster import connect, has_autoscaler
from resunet_ray.config import SegmentConfig
from resunet_ray.doctor.check import Surroundings, Verdict, check, count, describe, rate
from resunet_ray.errors import ResourceError

_ANSWER_SECONDS = 5.0
_DONE, _REFUSALS = 200, {401: "none was sent", 403: "refuses the one sent"}  # HTTP's codes
_CLOCK_SECONDS = 2.0
_ID_DIGITS = 8  # of a job, at the end of the ids of its placement groups
_MOST_BYTES = 2**20
_MOST_SHOWN = 4  # kinds of demands
_BUSY = "wait for what runs (`ray status` and `ray list actors` on the head show it)"
_REMOVE = (
    "`python -c \"import ray; from ray.util.placement_group import *; ray.init('auto'); "
    "[remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(i))) "
    "for i in '{}'.split()]\"` on the head"
)


def find_address() -> str | None:
    """Return where jobs are submitted to from here; None if they join the cluster from here."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        return address
    return None if address else os.environ.get("RAY_API_SERVER_ADDRESS")


def list_nodes() -> dict[str, dict[str, Any]]:
    """Return what Ray says about each node that it calls alive, by address and part of its id."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return {f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})": node for node in alive}


@check(
    "ray",
    expected="a cluster that answers",
    fix="Check that RAY_ADDRESS names the head of a running Ray (`ray status` there) as HEAD:PORT, "
    "the port 6379 unless --port says another, and that no firewall is in between. If a machine is "
    "only busy, raise --connect-seconds. From a laptop, use `ray job submit --working-dir . -- "
    "python jobs/doctor.py`",
)
def _ray(_place: Surroundings) -> Verdict:
    address = os.environ.get("RAY_ADDRESS", "local")
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit() and "://" not in address:  # Ray itself would keep trying
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
        connect()
    except Exception as error:  # noqa: BLE001 (whatever Ray says is what was found)
        raise ResourceError(f"RAY_ADDRESS={address}: {describe(error)}") from None
    total = Counter(ray.cluster_resources(), node=len(list_nodes()))
    size = ", ".join(count(total[name], name) for name in ("node", "CPU", "GPU"))
    return Verdict("ok", f"Ray {ray.__version__} at {address}: {size}")


@check(
    "dashboard",
    expected="a token: without one, anybody who reaches the head's ports can run code there",
    fix="Run `ray get-auth-token --generate` on the head; put its output into RAY_AUTH_TOKEN or "
    "~/.ray/auth_token, and set RAY_AUTH_MODE=token, here and on every node. Restart a cluster "
    "that ran without (KubeRay: authOptions.mode: token)",
)
def _token(_place: Surroundings) -> Verdict:
    address, mode, status, error = _ask_dashboard()
    if error:
        return Verdict("not asked", "the dashboard did not answer")
    if status in _REFUSALS:
        own = os.environ.get("RAY_AUTH_MODE", "not set")
        found = f"{address} asks for a token, and {_REFUSALS[status]}; RAY_AUTH_MODE is {own}"
        return Verdict("failed", found)
    if mode == "token":
        return Verdict("ok", "asked for, and accepted")
    return Verdict("warning", f"not asked for (RAY_AUTH_MODE is {mode})")


@check(
    "dashboard",
    expected="Ray's dashboard, which takes jobs",
    fix="Start the head with `ray start --head --include-dashboard true` (ray[default] installed), "
    "forward its port (`ssh -L 8265:localhost:8265 HEAD`, `kubectl port-forward "
    "svc/NAME-head-svc 8265`), and set RAY_API_SERVER_ADDRESS to it",
)
def _dashboard(_place: Surroundings) -> Verdict:
    address, _, status, error = _ask_dashboard()
    if not address and os.environ.get("RAY_ADDRESS", "local") == "local":
        return Verdict("not asked", "a local Ray has none, and needs none")
    if address and not error and status in {_DONE, *_REFUSALS}:
        return Verdict("ok", f"answers at {address}")
    found = f"no Ray dashboard answered at {address}: {error or f'status {status}'}"
    found = found if address else "the cluster was started without it"
    return Verdict("failed" if find_address() else "warning", found)


@cache
def _ask_dashboard() -> tuple[str, str, int, str]:
    """Return address, mode of authentication, status of the list of jobs, and what went wrong."""
    address = find_address()
    if address is None:
        url = ray.init(ignore_reinit_error=True).dashboard_url
        if not url:  # Ray sets the mode if it finds a token itself
            return "", os.environ.get("RAY_AUTH_MODE", "not set"), _DONE, ""
        address = f"http://{url}"
    try:
        mode = json.loads(_get(address, "/api/authentication_mode")[1])["authentication_mode"]
        return address, mode.lower(), _get(address, "/api/jobs/")[0], ""
    except (OSError, ValueError, KeyError) as error:
        return address, "", 0, describe(error)


def _get(address: str, path: str) -> tuple[int, bytes]:
    headers = get_auth_headers_if_auth_enabled({})
    request = urllib.request.Request(address.rstrip("/") + path, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as reply:  # noqa: S310
            return reply.status, reply.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        return error.code, b""


@check(
    "nodes",
    expected="a process starts on every node that Ray calls alive, within {start_seconds:g} s",
    fix="Where none starts, read raylet.out and runtime_env_agent.log in "
    "/tmp/ray/session_latest/logs there, and restart the node (`ray start --address=HEAD:6379`); "
    "where one starts slowly, put Python's packages on a local disk",
)
def _nodes(seconds: float, limit: float) -> Verdict:
    return rate(f"a process starts within {seconds:.1f} s", doubtful=seconds > limit)


@check(
    "clocks",
    expected=f"at most {_CLOCK_SECONDS:g} s off: the times in the names of runs give their order",
    fix="Turn on time synchronisation (`timedatectl set-ntp true`), on the machine itself",
)
def _clocks(offset: float, error: float) -> Verdict:
    way = "ahead of" if offset > 0 else "behind"
    found = f"{abs(offset):.1f} s {way} this process's clock (measured to {error * 1000:.0f} ms)"
    return rate(found, wrong=abs(offset) - error > _CLOCK_SECONDS)  # only what is certain


@check(
    "room",
    expected="{workers} x {cpus_per_worker} CPUs, one for Ray Data; a GPU each, if there are any",
    fix=f"Give jobs/train.py fewer --workers or --cpus-per-worker, add nodes, or {_BUSY}",
)
def _training(place: Surroundings) -> Verdict:
    return _judge_room(place.config.workers, place.config.cpus_per_worker)


@check(
    "room",
    expected="the CPUs of one actor, one for Ray Data; a GPU, if there are any",
    fix=f"Add nodes, start them with a higher --num-cpus, or {_BUSY}",
)
def _segmentation(_: Surroundings) -> Verdict:
    return _judge_room(1, SegmentConfig.cpus_per_actor)


def _judge_room(number: int, cpus: int) -> Verdict:
    """Judge whether processes fit beside one CPU for Ray Data, none of them split over nodes."""
    free, total = Counter(ray.available_resources()), Counter(ray.cluster_resources())
    each = {"CPU": cpus, "GPU": 1} if total["GPU"] else {"CPU": cpus}
    needed = {name: number * amount + (name == "CPU") for name, amount in each.items()}
    nodes = [node["Resources"] for node in list_nodes().values()]
    places = sum(min(int(node.get(name, 0) // each[name]) for name in each) for node in nodes)
    small = places < number or any(total[name] < needed[name] for name in needed)
    found = [
        f"{amount} {name}s needed, {total[name]:g} available, {free[name]:g} free"
        for name, amount in needed.items()
    ]
    split = [f"the nodes have room for {places} of {number} processes"] * (places < number)
    busy = any(free[name] < needed[name] for name in needed)
    return rate(
        "; ".join(found + split), wrong=small and not has_autoscaler(), doubtful=small or busy
    )


@check("room", expected="no demand that no node can meet, and nothing held by ended jobs", fix="")
def _waiting(_: Surroundings) -> Verdict:
    ended = {job["JobID"] for job in jobs() if job["IsDead"]}
    left = {
        group: table
        for group, table in placement_group_table().items()
        if table["state"] != "REMOVED" and group[-_ID_DIGITS:] in ended
    }
    nodes = [node["Resources"] for node in list_nodes().values()]
    stuck = [
        demand
        for demand in _list_demands()
        if not any(all(node.get(name, 0) >= demand[name] for name in demand) for node in nodes)
    ]
    found, fixes = [], []
    if left:
        held = _show(bundle for table in left.values() for bundle in table["bundles"].values())
        owners = ", ".join(sorted({group[-_ID_DIGITS:] for group in left}))
        found.append(f"{count(len(left), 'placement group')} of ended jobs: {held} of job {owners}")
        fixes.append(_REMOVE.format(" ".join(left)))
    if stuck:
        found.append(f"waiting for what no node has: {_show(stuck)}")
        fixes.append("end the job that waits (`ray job list`, `ray job stop ID`), or add a node")
    return Verdict("warning" if found else "ok", "; ".join(found) or "nothing", "; ".join(fixes))


def _list_demands() -> list[Mapping[str, float]]:
    """Return what waits for nodes' resources, but not what waits for its own placement group."""
    address = ray.get_runtime_context().gcs_address
    demands = get_cluster_status(address, timeout=_ANSWER_SECONDS).resource_demands
    waiting = [*demands.ray_task_actor_demand, *demands.placement_group_demand]
    shapes = [shape.bundle for demand in waiting for shape in demand.bundles_by_count]
    return [shape for shape in shapes if not any("_group_" in name for name in shape)]


def _show(bundles: Iterable[Mapping[str, float]]) -> str:
    each = {" + ".join(f"{amount:g} {name}" for name, amount in item.items()) for item in bundles}
    return ", ".join(sorted(each)[:_MOST_SHOWN])
