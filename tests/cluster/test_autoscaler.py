"""A cluster that shrank to its head between jobs grows again when one is submitted."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import free_port

HEAD = "f" * 51 + "00000"
"""The id that Ray's fake node provider gives its head."""

ASK = """
import logging, ray
from resunet_ray.cluster import connect, wait_for_resources
from resunet_ray.errors import ResourceError
logging.basicConfig(level=logging.INFO, format="%(message)s")
connect()
print(ray.cluster_resources().get("GPU", 0))
worker = {"CPU": 2, "GPU": 1}
wait_for_resources([worker, worker, {"CPU": 1}], what="two workers")
print(ray.cluster_resources()["GPU"])
held = ray.util.placement_group([worker])
ray.get(held.ready())
try:
    wait_for_resources([worker, worker], what="two more", nodes_seconds=8, busy_seconds=8)
except ResourceError as error:
    print(error)
ray.util.remove_placement_group(held)
try:
    wait_for_resources([worker] * 3, what="three workers")
except ResourceError as error:
    print(error)
"""


pytestmark = pytest.mark.campaign


@pytest.fixture
def autoscaled() -> Iterator[dict[str, str]]:
    """A cluster whose autoscaler may add two nodes with a GPU each, as processes of this machine.

    Yields the environment that is needed to join it.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, because it contains sockets
    port = free_port()
    empty: dict[str, Any] = {
        f"{name}commands": []
        for name in ("initialization_", "setup_", "head_setup_", "worker_setup_")
    }
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD,
            "launch_multiple": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 2, "GPU": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1,
        "idle_timeout_minutes": 5,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        **empty,
    }
    (folder / "config.json").write_text(json.dumps(config))
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    fake = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    ids = {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--num-cpus=1",
        f"--port={port}",
    ]
    command += [
        "--include-dashboard=false",
        f"--temp-dir={folder}",
        f"--autoscaling-config={folder / 'config.json'}",
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, env={**environment, **fake, **ids}, stdout=log, stderr=subprocess.STDOUT
        ) as head,
    ):
        try:
            yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            head.terminate()
            head.wait(timeout=60)
            kill_what_names(folder)
            shutil.rmtree(folder, ignore_errors=True)


def kill_what_names(folder: Path) -> None:
    """Kill the processes that have a folder in their command line.

    Nodes that the autoscaler started outlive the head.
    """
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{folder}/".encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # it has ended meanwhile
            continue


def test_an_autoscaler_is_asked_for_missing_nodes_and_only_impossible_demands_are_refused(
    autoscaled: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=autoscaled,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Nothing is logged about the two workers if their nodes join within a few seconds.
    assert (
        "waiting up to 1800 s for three workers: 6 CPUs needed, 5 available; "
        "3 GPUs needed, 2 available" in done.stderr
    )
    before, after, busy, refused = [
        line for line in done.stdout.splitlines() if "(autoscaler" not in line
    ]
    assert (before, after) == ("0", "2.0")
    assert "had no room for two more in 8 s: other jobs hold what it needs" in busy
    assert refused == (
        "the Ray cluster's autoscaler may not add enough nodes for three workers: 6 CPUs needed, "
        "5 available; 3 GPUs needed, 2 available. Ask for less, or raise the autoscaler's limits"
    )
