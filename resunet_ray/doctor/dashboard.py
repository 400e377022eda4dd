"""The cluster's dashboard with the Jobs API, and the token that it asks for."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator

from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

from resunet_ray.config import DoctorConfig
from resunet_ray.doctor.finding import Finding, Status, describe, failed, not_asked, ok, warning

ADDRESS = "RAY_API_SERVER_ADDRESS"

_SECONDS = 5.0
_MOST_BYTES = 2**20
_DONE = 200
_REFUSALS = {
    401: "none was sent",
    403: "refuses the one that is here",
}  # HTTP's codes, as Ray's dashboard uses them
_COPY = (
    "`export RAY_AUTH_MODE=token`, and put what `ray get-auth-token` prints on the head into RAY_AUTH_TOKEN or "
    "~/.ray/auth_token, here and on every node"
)
_OPEN = (
    "`ray get-auth-token --generate` once, give all machines that token and `RAY_AUTH_MODE=token`, and start the cluster anew "
    "(KubeRay: authOptions.mode: token)"
)
_DASHBOARD = (
    "Start the head with `ray start --head --include-dashboard true` (ray[default] installed), forward its port "
    "(`ssh -L 8265:localhost:8265 HEAD`, `kubectl port-forward svc/NAME-head-svc 8265`), and name it in "
    f"{ADDRESS}"
)


def find_address() -> str | None:
    """Where `ray job submit` would go from here; None: this is no machine that submits, or it joins the cluster itself."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        return address
    return None if address else os.environ.get(ADDRESS)


def examine(config: DoctorConfig) -> Iterator[Finding]:  # noqa: ARG001 (every group is called alike)
    """What a machine that submits jobs meets."""
    address = find_address()
    assert address is not None
    yield from check_address(address, silent="failed")


def check_address(address: str, *, silent: Status) -> Iterator[Finding]:
    """The token and the dashboard, as found at an address.

    Args:
        address: `http://HOST:PORT`.
        silent: how bad it is if nobody answers.
    """
    try:
        mode = json.loads(_get(address, "/api/authentication_mode")[1])["authentication_mode"]
        status, _ = _get(address, "/api/jobs/")
    except (OSError, ValueError, KeyError) as error:
        yield not_asked("token", "the dashboard did not answer")
        yield judge_dashboard(
            f"nothing that is Ray's answers at {address}: {describe(error)}", status=silent
        )
        return
    if status in _REFUSALS:
        yield judge_refusal(f"{address} asks for a token, and {_REFUSALS[status]}")
        yield ok("dashboard", f"answers at {address}")
        return
    yield judge_mode(mode)
    if status == _DONE:
        yield ok("dashboard", f"answers at {address}, and takes jobs")
    else:
        yield judge_dashboard(f"{address}/api/jobs/ answers with {status}", status=silent)


def judge_dashboard(found: str, *, status: Status) -> Finding:
    """There is none, or none that works."""
    return Finding(
        check="dashboard",
        status=status,
        found=found,
        expected="Ray's dashboard, which takes jobs",
        fix=_DASHBOARD,
    )


def judge_refusal(found: str) -> Finding:
    """What is here does not open the dashboard."""
    mode = os.environ.get("RAY_AUTH_MODE") or "not set"
    return failed(
        "token", f"{found}; RAY_AUTH_MODE is {mode}", expected="the cluster's own token", fix=_COPY
    )


def judge_mode(mode: str) -> Finding:
    """Whether a cluster asks for a token."""
    if mode.lower() == "token":
        return ok("token", "asked for, and here")
    return warning(
        "token",
        f"not asked for (RAY_AUTH_MODE is {mode or 'not set'})",
        expected="token authentication: without it, whoever reaches the head's ports runs code there",
        fix=_OPEN,
    )


def _get(address: str, path: str) -> tuple[int, str]:
    request = urllib.request.Request(
        f"{address.rstrip('/')}{path}", headers=get_auth_headers_if_auth_enabled({})
    )  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:  # noqa: S310 (the address is the user's own)
            return reply.status, reply.read(_MOST_BYTES).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
