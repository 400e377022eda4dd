"""A local Ray minds its own business, whatever other Rays run on the machine."""

import os
import subprocess
import sys
from typing import Any

import ray
from ray.util.state.exception import RayStateApiException

from resunet_ray.cluster import connect

OTHER = """
import ray
print(ray.init(address="local", num_cpus=1, include_dashboard=True).dashboard_url, flush=True)
input()
"""


def ask_for_an_actor() -> Any:
    """Ask what Ray Train's cleaner asks each second, which ends workers if the run is gone."""
    from ray.train.v2._internal.state.util import is_actor_alive

    try:
        return is_actor_alive("0" * 31 + "1", timeout=5)
    except RayStateApiException:
        return "nobody answered"


def test_another_ray_s_dashboard_is_not_asked_about_our_runs(cluster: str) -> None:
    connect()
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert b":" in other.stdout.readline()
        answer = ray.get(ray.remote(num_cpus=0)(ask_for_an_actor).remote(), timeout=60)
        other.communicate(b"\n")
    assert answer == "nobody answered"


def test_the_address_for_submitting_jobs_is_no_cluster() -> None:
    code = "from resunet_ray.cluster import connect; connect()"
    environment = {**os.environ, "RAY_ADDRESS": "http://127.0.0.1:8265"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "ConfigError: RAY_ADDRESS=http://127.0.0.1:8265 is for `ray job submit`" in done.stderr
