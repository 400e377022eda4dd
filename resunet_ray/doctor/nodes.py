"""The nodes of the cluster, and what is asked of each, within a time: a busy node answers, since nothing here needs a CPU."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from resunet_ray.doctor import node_facts
from resunet_ray.doctor.finding import describe


@dataclass(frozen=True)
class Node:
    """A node that Ray calls alive."""

    id: str
    name: str
    """For people."""
    resources: Mapping[str, float] = field(compare=False)
    """All that it has, as Ray counts it: memory in bytes."""

    @property
    def cpus(self) -> float:
        """CPUs to schedule by."""
        return self.resources.get("CPU", 0.0)

    @property
    def gpus(self) -> float:
        """GPUs that Ray gives away."""
        return self.resources.get("GPU", 0.0)

    @property
    def store_bytes(self) -> float:
        """What its object store may hold."""
        return self.resources.get("object_store_memory", 0.0)


@dataclass
class Answers:
    """What came back in time."""

    values: dict[Node, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    """By the name of the node."""
    seconds: dict[Node, float] = field(default_factory=dict)
    """When each value came."""


def list_nodes() -> list[Node]:
    """The nodes that Ray calls alive, by name."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    nodes = []
    for node in alive:
        address = node["NodeManagerAddress"]
        name = address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:8]})"
        nodes.append(Node(node["NodeID"], name, node["Resources"]))
    return sorted(nodes, key=lambda node: node.name)


def travel_by_value() -> None:
    """From now on the code of `node_facts` travels with what is asked, to nodes that cannot import it as well."""
    ray.cloudpickle.register_pickle_by_value(node_facts)


def ask(node: Node, module: str, function: str, *arguments: Any) -> Any:
    """Runs a function on a node, in a process that imports its module there; the reference of its answer.

    Args:
        node: where.
        module: of the function, in full.
        function: its name.
        arguments: of the call.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(node_facts.call)
    return task.options(scheduling_strategy=_only_on(node)).remote(module, function, arguments)


def start_node_probes(nodes: Iterable[Node]) -> dict[Node, Any]:
    """A process on each node that answers as soon as it has started."""
    node_probe = ray.remote(num_cpus=0)(node_facts.NodeProbe)
    return {node: node_probe.options(scheduling_strategy=_only_on(node)).remote() for node in nodes}


def _only_on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)


def gather(asked: Mapping[Node, Any], *, until: float, silent: str) -> Answers:
    """The answers that are there in time.

    Args:
        asked: the reference of each node's answer.
        until: by `time.monotonic`.
        silent: what is said of a node that did not answer.
    """
    answers, begun = Answers(), time.monotonic()
    owner = {reference: node for node, reference in asked.items()}
    waiting = list(owner)
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(0.0, until - time.monotonic()))
        if not done:
            answers.errors.update({owner[reference].name: silent for reference in waiting})
            break
        node = owner[done[0]]
        try:
            answers.values[node] = ray.get(done[0])
            answers.seconds[node] = time.monotonic() - begun
        except Exception as error:  # noqa: BLE001 (whatever went wrong there is what is asked for)
            answers.errors[node.name] = describe(error)
    return answers


def measure_offsets(
    node_probes: Mapping[Node, Any], *, rounds: int, until: float
) -> dict[Node, tuple[float, float]]:
    """How far each node's clock is ahead of this one's, and by how much that may be wrong, seconds.

    A question's way there and back is timed: the node's clock was read somewhere in between, so the middle is off by half of it
    at most. The quickest of several questions counts, so no wait for a process to be scheduled is taken for a clock that is off.

    Args:
        node_probes: of each node.
        rounds: questions to each.
        until: by `time.monotonic`; beyond it, `ray.exceptions.GetTimeoutError` is raised.
    """
    return {
        node: min(_ask_time(node_probe, until=until) for _ in range(rounds))[::-1]
        for node, node_probe in node_probes.items()
    }


def _ask_time(node_probe: Any, *, until: float) -> tuple[float, float]:
    """By how much the offset may be wrong, and the offset."""
    sent = time.time()
    theirs = ray.get(node_probe.now.remote(), timeout=max(0.1, until - time.monotonic()))
    received = time.time()
    return (received - sent) / 2, theirs - (sent + received) / 2
