"""The process that makes the checks: each group in a thread, each verdict passed on at once."""

import json
import math
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from threading import Lock, Thread
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from resunet_ray import storage
from resunet_ray.cluster import disconnect
from resunet_ray.config import DoctorConfig, load_config
from resunet_ray.doctor.check import (
    CHECKS,
    NOT_REACHED,
    Surroundings,
    Verdict,
    describe,
    run_checks,
)
from resunet_ray.doctor.checkup import ALONE, find_flag
from resunet_ray.doctor.cluster import find_address, list_nodes

_ALARM_SECONDS = 10  # beyond all deadlines, should the parent be gone
_MARGIN_SECONDS = 2.0  # silent nodes are named before this process is stopped
_CLEANING_SECONDS = 1.0


class Checker:
    """One look at everything that is asked for."""

    def __init__(self, config: DoctorConfig, output: int) -> None:
        """Take the configuration, and the file descriptor that verdicts are written to."""
        folder = storage.join(config.storage or "", f".doctor-{uuid.uuid4().hex[:12]}")
        self._config, self._output, self._lock = config, output, Lock()
        self._place = Surroundings(config, storage.absolute(folder))
        self._nodes: dict[str, dict[str, Any]] = {}
        self._until = 0.0

    def run(self) -> None:
        """Make the checks."""
        threads = self._start(self._look_here, *ALONE)
        if find_address() is not None:
            self._look_here("dashboard")
        elif self._look_here("ray")["ray"].status == "ok":
            self._look_at_cluster()
        else:
            others = [check for check in CHECKS.values() if check.group not in ("ray", *ALONE)]
            self._say({check.name: NOT_REACHED for check in others})
        for thread in threads:
            thread.join()

    def _start(self, look: Callable[[str], Any], *groups: str) -> list[Thread]:
        asked = [group for group in groups if find_flag(group, self._config) is None]
        threads = [Thread(target=look, args=(group,), daemon=True) for group in asked]
        for thread in threads:
            thread.start()
        return threads

    def _say(self, verdicts: Mapping[str, Verdict]) -> None:
        with self._lock:
            for name, verdict in verdicts.items():
                os.write(self._output, f"{json.dumps([name, *verdict])}\n".encode())

    def _look_here(self, group: str) -> dict[str, Verdict]:
        place = self._place._replace(folder=f"{self._place.folder}-here")
        verdicts = run_checks(_list_judges(group), place)
        self._say(verdicts)
        if group == "storage":
            storage.delete_folder(place.folder)
        return verdicts

    def _look_at_cluster(self) -> None:
        config, self._nodes = self._config, list_nodes()
        self._until = time.monotonic() + config.node_seconds
        threads = self._start(self._look_here, "dashboard", "room")
        everywhere, slow = dict.fromkeys(self._nodes, ()), config.start_seconds
        started = self._ask(everywhere, time.time, lambda _, took: (took, slow))
        self._say({"nodes": CHECKS["nodes"].merge(started)})
        silent = {name for name, answer in started.items() if isinstance(answer, Verdict)}
        self._nodes = {name: self._nodes[name] for name in started.keys() - silent}
        self._until += config.check_seconds - _MARGIN_SECONDS
        self._look_at_clocks()
        threads += self._start(self._look_there, "machine", "gpus", "node storage", "node bundle")
        for thread in threads:
            thread.join()
        disconnect()

    def _look_at_clocks(self) -> None:
        """Ask the processes that run now for the time.

        A node reads its clock at some moment between question and answer, so the middle between
        them is off by at most half of the time between them.
        """
        asked, sent = dict.fromkeys(self._nodes, ()), time.time()
        read = self._ask(asked, time.time, lambda now, took: (now - sent - took / 2, took / 2))
        self._say({"clocks": CHECKS["clocks"].merge(read)})

    def _look_there(self, group: str) -> None:
        """Make the checks of a group on each node; a node without an answer fails the first."""
        judges = _list_judges(group)
        places = {name: self._place._replace(node=node) for name, node in self._nodes.items()}
        said: dict[str, dict[str, Verdict]] = {check: {} for check in judges}
        asked = {name: (judges, place) for name, place in places.items()}
        for name, answer in self._ask(asked, run_checks).items():
            first = {next(iter(judges)): answer}
            for check, verdict in (first if isinstance(answer, Verdict) else answer).items():
                said[check][name] = verdict
        self._say({check: CHECKS[check].merge(verdicts) for check, verdicts in said.items()})
        if group == "node storage":
            self._look_who_sees([name for name, it in said[group].items() if it.status != "failed"])

    def _look_who_sees(self, writers: list[str]) -> None:
        """See whether the nodes see what the others wrote; then remove it."""
        folder, ids = self._place.folder, {name: self._nodes[name]["NodeID"] for name in writers}
        asked = dict.fromkeys(writers, (folder,))
        seen = self._ask(asked, storage.list_folders, lambda folders, _: (folders, ids))
        self._say({"shared storage": CHECKS["shared storage"].merge(seen)})
        self._until += _CLEANING_SECONDS
        self._ask(dict.fromkeys(self._nodes, (folder,)), storage.delete_folder)

    def _ask(
        self,
        asked: Mapping[str, tuple[Any, ...]],
        function: Callable[..., Any],
        read: Callable[[Any, float], Any] = lambda answer, _: answer,
    ) -> dict[str, Any]:
        """Run a function on nodes, without a CPU, so that a busy node answers too.

        Args:
            asked: the function's arguments, by node.
            function: what to run.
            read: takes each answer, and the seconds until it came.

        Returns:
            What `read` makes of the answers, by node; a failure where none came in time.
        """
        begun, until, nodes = time.monotonic(), self._until, {}
        found: dict[str, Any] = {}
        task = ray.remote(num_cpus=0, max_retries=0)(lambda function, given: function(*given))
        for name, given in asked.items():
            only = NodeAffinitySchedulingStrategy(self._nodes[name]["NodeID"], soft=False)
            nodes[task.options(scheduling_strategy=only).remote(function, given)] = name
        waiting = [*nodes]
        while waiting:
            done, waiting = ray.wait(waiting, timeout=max(0.0, until - time.monotonic()))
            if not done:
                silent = Verdict("failed", f"nothing within {until - begun:.0f} s")
                return found | {nodes[late]: silent for late in waiting}
            try:
                found[nodes[done[0]]] = read(ray.get(done[0]), time.monotonic() - begun)
            except Exception as error:  # noqa: BLE001 (whatever went wrong there is the answer)
                found[nodes[done[0]]] = Verdict("failed", describe(error))
        return found


def _list_judges(group: str) -> dict[str, Callable[..., Verdict]]:
    return {check.name: check.judge for check in CHECKS.values() if check.group == group}


if __name__ == "__main__":
    config = load_config(sys.argv[1], kind=DoctorConfig, source="the doctor")
    waits = config.connect_seconds + config.node_seconds + config.check_seconds
    signal.alarm(math.ceil(waits) + _ALARM_SECONDS)
    verdicts = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed goes to the log
    Checker(config, verdicts).run()
    os._exit(0)  # what libraries still do at their end takes long, or hangs
