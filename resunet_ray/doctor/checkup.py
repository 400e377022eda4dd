"""All checks side by side: each group in a process of its own, within its time."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from resunet_ray import storage
from resunet_ray.config import DoctorConfig
from resunet_ray.doctor import dashboard
from resunet_ray.doctor.deadline import ProcessWithDeadline
from resunet_ray.doctor.finding import Finding, failed, not_asked

_MACHINE_CHECKS = (
    "packages",
    "code",
    "clocks",
    "gpus",
    "shared memory",
    "disk",
    "slide cache",
    "memory",
    "open files",
)
_ROOM_CHECKS = ("training", "segmentation", "waiting")
_PROBE_CHECKS = ("node storage", "shared storage", "node bundle")
_DASHBOARD_CHECKS = ("token", "dashboard")
_STORAGE_CHECKS, _BUNDLE_CHECKS = ("storage", "one writer"), ("bundle",)
_PAGE = (
    *("ray", *_DASHBOARD_CHECKS, "nodes", *_MACHINE_CHECKS, *_ROOM_CHECKS),
    *(*_STORAGE_CHECKS, "node storage", "shared storage", *_BUNDLE_CHECKS, "node bundle"),
)
"""Every check, as they stand on the page."""
_GROUPS = {
    "cluster": (
        "ray",
        "nodes",
        *_DASHBOARD_CHECKS,
        *_ROOM_CHECKS,
        *_MACHINE_CHECKS,
        *_PROBE_CHECKS,
    ),
    "dashboard": _DASHBOARD_CHECKS,
    "store": _STORAGE_CHECKS,
    "weights": _BUNDLE_CHECKS,
}
"""The checks of each module; the first of them that is missing is where it hung."""
_HANGING = {
    "cluster": "See that RAY_ADDRESS names the head of a running Ray (`ray status` there; port 6379 unless --port says another), "
    "and that no firewall swallows what is sent there. Where a machine is only busy, "
    "--connect-seconds and --check-seconds wait for longer",
    "dashboard": "See what listens at that address, and forward the dashboard's port anew",
    "store": "The storage takes connections and does not answer: try `curl -m 5 $AWS_ENDPOINT_URL` from here, and look at "
    "proxies and firewalls on the way; a folder may lie on a network file system that is away",
    "weights": "Try the storage that holds the bundle (`curl -m 5 $AWS_ENDPOINT_URL`), and time `python -c 'import torch'`",
}
_CRASHED = "Read the error: where a module is missing, `pip install -c constraints.txt .` in this environment"
_REFUSED = "InvalidAuthToken"  # in what Ray's own code writes to standard error while it tries again and again


def examine(config: DoctorConfig) -> list[Finding]:
    """Looks at everything that is asked; ends within a minute, whatever hangs.

    Returns:
        One finding for each check, in the order of the page.
    """
    found = {finding.check: finding for finding in _list_not_asked(config)}
    left_out = "dashboard" if dashboard.find_address() is None else "cluster"
    groups = {
        name: [check for check in checks if check not in found]
        for name, checks in _GROUPS.items()
        if name != left_out
    }
    with ThreadPoolExecutor(len(groups)) as threads:
        runs = [
            threads.submit(_run_group, name, checks, config)
            for name, checks in groups.items()
            if checks
        ]
        for run in runs:
            found |= run.result()
    return [_mask(found[check]) for check in _PAGE]


def _list_not_asked(config: DoctorConfig) -> Iterator[Finding]:
    if config.storage is None:
        yield from (
            not_asked(check, "give --storage")
            for check in (*_STORAGE_CHECKS, "node storage", "shared storage")
        )
    if config.bundle is None:
        yield from (not_asked(check, "give --bundle") for check in (*_BUNDLE_CHECKS, "node bundle"))
    if (address := dashboard.find_address()) is not None:
        why = f"from here jobs go to {address}: `ray job submit --working-dir . -- python jobs/doctor.py` looks from within"
        yield from (
            not_asked(check, why) for check in _GROUPS["cluster"] if check not in _DASHBOARD_CHECKS
        )


def _mask(finding: Finding) -> Finding:
    return replace(
        finding,
        found=storage.mask_credentials(finding.found),
        fix=storage.mask_credentials(finding.fix),
    )


def _run_group(name: str, checks: Sequence[str], config: DoctorConfig) -> dict[str, Finding]:
    """The findings of one group; where one does not come, a failure says so."""
    found: dict[str, Finding] = {}
    with ProcessWithDeadline(name, config) as process:
        problem = _listen(process, found, name=name, checks=checks, config=config)
        log = process.read_log()
    if _REFUSED in log:
        found.setdefault(
            "token",
            dashboard.judge_refusal(
                "the cluster refuses what comes from here (Ray's log: InvalidAuthToken)"
            ),
        )
    missing = [check for check in checks if check not in found]
    if missing and problem is not None:
        text, fix = problem
        first = missing.pop(0)
        found[first] = failed(first, text, expected="an answer", fix=fix)
    return found | {check: not_asked(check, "what it needs was not reached") for check in missing}


def _listen(
    process: ProcessWithDeadline,
    found: dict[str, Finding],
    *,
    name: str,
    checks: Sequence[str],
    config: DoctorConfig,
) -> tuple[str, str] | None:
    """Takes findings until all are there, no more come, or time is up; what went wrong, and what to do."""
    begun = time.monotonic()
    limit = config.connect_seconds if name == "cluster" else config.check_seconds
    while any(check not in found for check in checks):
        try:
            finding = process.read(until=begun + limit)
        except TimeoutError:
            process.kill()
            return f"nothing within {limit:.0f} s", _HANGING[name]
        if finding is None:
            code = process.wait()
            last = process.read_log().rpartition("\n")[2]
            return (
                (f"the process that looks ended with exit code {code}: {last}", _CRASHED)
                if code
                else None
            )
        found[finding.check] = finding
        if finding.check == "ray":  # from here on, there are nodes to wait for
            limit = time.monotonic() - begun + config.node_seconds + config.check_seconds
    return None
