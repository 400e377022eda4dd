"""A Ray of this machine alone: the folder of its sockets, and its processes among other Rays'."""

import logging
import os
import sys

import ray
from ray._common.utils import get_default_system_temp_dir

from resunet_ray.errors import ConfigError

_NOWHERE = "http://127.0.0.1:1"  # nothing listens on this port
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # most in the path of a Unix socket


def require_short_sockets(*, dashboard: bool) -> None:
    """Check that the paths of Ray's sockets will not be too long, where Ray would fail obscurely.

    Args:
        dashboard: whether Ray will start its dashboard, which has the longest names.

    Raises:
        ConfigError: the name of the temporary folder is too long.
    """
    name = "dash_TaskEventsHead" if dashboard else "plasma_store"
    below = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/{name}"
    folder, most = get_default_system_temp_dir(), _SOCKET_BYTES - len(below)
    if len(os.fsencode(folder)) > most:
        variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        raise ConfigError(
            f"{variable}={folder} is too long for the sockets that Ray creates there: set "
            f"RAY_TMPDIR to a folder of at most {most} bytes, such as /tmp"
        )


def prepare_worker() -> None:
    """Point Ray Train's cleaner at this Ray.

    With several Rays on one machine, it would not know which one to ask about its run.
    """
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def prepare_quiet_worker() -> None:
    """Keep Ray Train's cleaner away from other Rays' dashboards if this Ray has none.

    The cleaner would ask for a dashboard at this Ray's address, where another Ray's may be
    answering by now. That one does not know the run, so the cleaner would take the run for dead and
    stop its workers. The cleaner has no purpose in a cluster that ends with its driver, and without
    an answer it only logs a complaint twice a second.
    """
    os.environ["RAY_API_SERVER_ADDRESS"] = _NOWHERE
    logging.getLogger(
        "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    ).setLevel(logging.CRITICAL)
