"""A local Ray minds its own business, whatever other Rays run on the machine."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.utils import validate_socket_filepath
from ray.util.state.exception import RayStateApiException

from resunet_ray.cluster import MODEL_ENVIRONMENT, connect, environment_for
from resunet_ray.errors import ConfigError
from resunet_ray.local_ray import require_short_sockets

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


def test_memory_is_kept_for_torch_and_given_back_beside_openvino() -> None:
    pytest.importorskip("openvino", reason="the extra cpu is not installed")
    for engine, gpu in (("torch", False), ("auto", True), ("openvino", True)):
        assert environment_for(engine, gpu=gpu) == MODEL_ENVIRONMENT  # type: ignore[arg-type]
    for engine in ("auto", "openvino"):
        kept = environment_for(engine, gpu=False)["env_vars"]  # type: ignore[arg-type]
        assert "MALLOC_MMAP_MAX_" not in kept
        assert int(kept["MALLOC_TRIM_THRESHOLD_"]) < 2**30


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


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is that of Ray's own check of the path that it would use."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    date = datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S_%f")

    def fits(length: int) -> bool:
        folder = "/" + "x" * (length - 1)
        path = f"{folder}/ray/session_{date}_{os.getpid()}/sockets/plasma_store"
        with suppress(OSError):
            validate_socket_filepath(path)
            return True
        return False

    most = max(filter(fits, range(10, 100)))
    monkeypatch.setenv(variable, "/" + "x" * (most - 1))
    require_short_sockets(dashboard=False)
    monkeypatch.setenv(variable, "/" + "x" * most)
    with pytest.raises(ConfigError, match=f"^{variable}=/x+ is too long .* at most {most} bytes"):
        require_short_sockets(dashboard=False)


def test_a_job_says_so_instead_of_ray(generated: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/prepare.py", "--input", generated, "--output", tmp_path / "data"],
        env={**os.environ, "RAY_ADDRESS": "local", "TMPDIR": f"{tmp_path}/{'x' * 99}"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"] == "ConfigError"
    assert "Traceback" not in done.stderr
