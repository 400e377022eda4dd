"""The checkup: a child process makes the checks and is stopped when its time is up.

A thread that is stuck in a socket or inside Ray cannot be stopped. A process can.
"""

import json
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import IO

from resunet_ray.config import DoctorConfig, save_config
from resunet_ray.doctor import access, cluster, machine, store  # noqa: F401 (they declare the checks)
from resunet_ray.doctor.check import CHECKS, NOT_REACHED, Check, Finding, Verdict

ALONE = ("access to storage", "storage", "bundle")
"""Groups that need no cluster."""

_FAREWELL_SECONDS = 4.0  # for the removal of probes, and for Ray's shutdown, which may hang
_KILLED_SECONDS = 1.0
_CRASHED = "Read the error; if a module is missing, run `pip install -c constraints.txt .` here"
_REFUSED = re.compile("InvalidAuthToken|AuthenticationError")  # Ray says so again and again
_OUTSIDE = (
    "jobs go from here to {}: `ray job submit --working-dir . -- python jobs/doctor.py` looks from "
    "within"
)
_GROUPS = (
    *("ray", "dashboard", "nodes", "clocks", "machine", "gpus", "room"),
    *("access to storage", "storage", "node storage", "shared storage", "bundle", "node bundle"),
)
"""In the order of the page."""


def list_checks() -> list[Check]:
    """Return the checks in the order of the page."""
    return sorted(CHECKS.values(), key=lambda check: _GROUPS.index(check.group))


def find_flag(group: str, config: DoctorConfig) -> str | None:
    """Return the flag that a group needs and does not have."""
    flag = group.rpartition(" ")[2]
    return flag if flag in ALONE and getattr(config, flag) is None else None


def examine(config: DoctorConfig) -> list[Finding]:
    """Check everything that is asked for; end by the deadlines, whatever hangs.

    Returns:
        A finding for each check, in the order of the page.
    """
    checks, verdicts = list_checks(), {}
    for check in checks:
        if (flag := find_flag(check.group, config)) is not None:
            verdicts[check.name] = Verdict("not asked", f"give --{flag}")
        elif (address := cluster.find_address()) and check.group not in ("dashboard", *ALONE):
            verdicts[check.name] = Verdict("not asked", _OUTSIDE.format(address))
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "resunet_ray.doctor.child", save_config(config)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, bufsize=0)  # noqa: S603
        assert child.stdout is not None
        _listen(child.stdout, checks, verdicts, config)
        code = _end(child)
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
    crash = f"the checking process exited with code {code}: {said.rpartition(chr(10))[2]}"
    _give_up(checks, verdicts, crash, fix=_CRASHED)
    refused = _REFUSED.search(said + verdicts["ray"].found)
    if refused and verdicts["ray"].status == "failed":
        found = f"the cluster refuses what is sent from here (Ray: {refused[0]})"
        verdicts["token"] = Verdict("failed", found)
    return [check.conclude(verdicts[check.name], config) for check in checks]


def _listen(
    output: IO[bytes], checks: list[Check], verdicts: dict[str, Verdict], config: DoctorConfig
) -> None:
    """Take verdicts until all are there, time is up, or no more come."""
    begun = time.monotonic()
    limits = {
        check.group: config.check_seconds if check.group in ALONE else config.connect_seconds
        for check in checks
    }
    while missing := [check for check in checks if check.name not in verdicts]:
        seconds = min(limits[check.group] for check in missing)
        wait = max(0.0, begun + seconds - time.monotonic())
        if not select.select([output], [], [], wait)[0]:
            late = [check for check in missing if limits[check.group] <= seconds]
            _give_up(late, verdicts, f"nothing within {seconds:.0f} s")
        elif line := output.readline():
            name, *verdict = json.loads(line)
            verdicts[name] = Verdict(*verdict)
            if name == "ray":  # from here on, there are nodes to wait for
                joined = time.monotonic() - begun
                more = joined + config.node_seconds + config.check_seconds
                limits |= {group: more for group in limits if group not in ALONE}
        else:
            return


def _give_up(
    checks: Iterable[Check], verdicts: dict[str, Verdict], found: str, fix: str = ""
) -> None:
    """Say of the first check of each group that it failed, unless Ray was not reached."""
    hung: set[str] = set()
    for check in checks:
        if check.name not in verdicts:
            first = check.group not in hung and (check.group in ALONE or "ray" not in hung)
            failed = Verdict("failed", found, fix)
            verdicts[check.name] = failed if first else NOT_REACHED
            hung.add(check.group)


def _end(child: subprocess.Popen[bytes]) -> int:
    """Return the exit code, once the process had a moment to end by itself."""
    try:
        return child.wait(_FAREWELL_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
    with suppress(subprocess.TimeoutExpired):  # the kernel may hang over a network file system
        child.wait(_KILLED_SECONDS)
    return -9
