"""The cluster: joined as every job joins it, and all of its nodes asked at the same time."""

import os
import socket
import time
from collections.abc import Iterable, Iterator

import ray
from ray._private.services import get_webui_url_from_internal_kv
from ray.exceptions import AuthenticationError

from resunet_ray.cluster import connect, disconnect
from resunet_ray.config import DoctorConfig
from resunet_ray.doctor import capacity, dashboard, machines, probes
from resunet_ray.doctor.finding import Check, Finding, count, describe, failed, judge, not_asked, ok
from resunet_ray.doctor.node_facts import list_facts
from resunet_ray.doctor.nodes import (
    Answers,
    Node,
    gather,
    list_nodes,
    measure_offsets,
    start_node_probes,
    travel_by_value,
)

_CONNECT_SECONDS = 5.0
_MARGIN_SECONDS = (
    2.0  # so that a node that is silent is named here, before this process is ended from without
)
_CLOCK_ROUNDS = 5
_START = (
    "See that its head runs (`ray status` there), that this machine reaches its port (6379 unless --port says another), and that "
    "RAY_ADDRESS is HEAD:PORT. From a laptop: `ray job submit --working-dir . -- python jobs/doctor.py`"
)


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """Joins the cluster and asks."""
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        _try_connection(address)
        connect()
    except Exception as error:  # noqa: BLE001 (whatever Ray says is what was found)
        if isinstance(error, AuthenticationError):
            yield dashboard.judge_refusal(describe(error))
        yield failed(
            "ray",
            f"RAY_ADDRESS={address}: {describe(error)}",
            expected="a cluster that answers",
            fix=_START,
        )
        return
    nodes = list_nodes()
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    where = "a local one" if address == "local" else f"at {address}"
    yield ok(
        "ray",
        f"Ray {ray.__version__}, {where}: {count(len(nodes), 'node')}, {count(cpus, 'CPU')}, {count(gpus, 'GPU')}",
    )
    for name, look in _list_checks(config, nodes, local=address == "local"):
        try:
            yield from look()
        except Exception as error:  # noqa: BLE001 (one check that goes wrong leaves the others alone)
            yield failed(
                name,
                describe(error),
                expected="an answer",
                fix="Read the error; where it is Ray's own, restart its head",
            )
    disconnect()


def _try_connection(address: str) -> None:
    """Raises OSError if nobody listens there: Ray itself would try for a long time."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _list_checks(config: DoctorConfig, nodes: list[Node], *, local: bool) -> Iterator[Check]:
    """The checks, in an order in which the nodes are at work while others are done."""
    requirements = machines.list_requirements()
    names = [item.name for item in requirements]
    travel_by_value()
    node_probes = start_node_probes(nodes)
    asked = {
        node: node_probe.list_facts.remote(names, config.cache)
        for node, node_probe in node_probes.items()
    }
    silent = f"runs nothing within {config.node_seconds:g} s, though Ray calls it alive"
    answers = gather(asked, until=time.monotonic() + config.node_seconds, silent=silent)
    facts = answers.values
    until = time.monotonic() + config.check_seconds - _MARGIN_SECONDS
    probing = probes.start_probes(
        config, {node: found["nvidia_devices"] for node, found in facts.items()}, until=until
    )
    yield "nodes", lambda: [_judge_nodes(answers, config)]
    yield "dashboard", lambda: _examine_head(local=local)
    yield "training", lambda: [capacity.examine_training(config, nodes)]
    yield "segmentation", lambda: [capacity.examine_segmentation()]
    yield "waiting", lambda: [capacity.examine_waiting(nodes)]
    if facts:
        here = list_facts(names, cache=config.cache, session=config.cache)
        yield "packages", lambda: [machines.judge_packages(facts, here, requirements)]
        yield "code", lambda: [machines.judge_code(facts, here)]
        yield "shared memory", lambda: machines.judge_machines(facts, config)
        willing = {node: node_probes[node] for node in facts}
        yield (
            "clocks",
            lambda: [
                machines.judge_clocks(
                    measure_offsets(willing, rounds=_CLOCK_ROUNDS, until=until), config
                )
            ],
        )
        yield from probing


def _judge_nodes(answers: Answers, config: DoctorConfig) -> Finding:
    """Whether each node that Ray calls alive does anything."""
    slowest = max(answers.seconds.values(), default=0.0)
    slow = {
        node.name: f"{seconds:.1f} s"
        for node, seconds in answers.seconds.items()
        if seconds > config.start_seconds
    }
    return judge(
        "nodes",
        answers.errors,
        poor=slow,
        otherwise=f"a process starts on {count(len(answers.values), 'node')}, on the slowest within {slowest:.1f} s",
        expected=f"a process that needs no CPU starts on every node that Ray calls alive, within {config.start_seconds:g} s",
        fix="Where none starts, read /tmp/ray/session_latest/logs/raylet.out and runtime_env_agent.log there, and start the node "
        "anew (`ray start --address=HEAD:6379`); where one starts slowly, put Python's packages on a local disk",
    )


def _examine_head(*, local: bool) -> Iterable[Finding]:
    """The token and the dashboard, as a process of the cluster meets them."""
    address = get_webui_url_from_internal_kv()
    if address:
        return dashboard.check_address(f"http://{address}", silent="warning")
    token = dashboard.judge_mode(
        os.environ.get("RAY_AUTH_MODE", "")
    )  # Ray sets it where it found a token by itself
    if local:
        return [token, not_asked("dashboard", "a local Ray has none, and needs none")]
    return [
        token,
        dashboard.judge_dashboard("the cluster was started without it", status="warning"),
    ]
