"""Fixtures shared by the tests.

Shape checks at every call, one local Ray, one S3 server, small generated data, and real data if
available.
"""

from jaxtyping import config, install_import_hook

# Not for modules whose inner functions travel to Ray's processes: the checking wrappers cannot be
# pickled.
install_import_hook(
    [
        f"resunet_ray.{name}"
        for name in (
            "bundle",
            "data.annotations",
            "data.arrays",
            "data.augment",
            "data.dataset",
            "data.images",
            "data.labelled",
            "data.labels",
            "data.polygons",
            "data.targets",
            "model",
            "pictures",
        )
    ],
    "beartype.beartype",
)

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
import ray
import torch
from botocore.exceptions import ClientError
from machine import MetadataService, metadata_service
from nodes import Nodes
from pipeline import Pipeline, submit_pipeline
from support import REAL_DATA
from xdist.scheduler import LoadFileScheduling

from resunet_ray.bundle import save_bundle
from resunet_ray.bundle_info import BundleInfo
from resunet_ray.cluster import connect
from resunet_ray.config import InstanceConfig, ModelConfig, PrepareConfig, PreprocessConfig
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import generate_image, write_images
from resunet_ray.model.resunet import build_network
from resunet_ray.storage import clients, files

S3_KEY, S3_SECRET = "tester", "only-on-loopback"

_COSTLY = ("nodes", "campaign", "ray")  # markers, most expensive first


class Sharing(LoadFileScheduling):  # type: ignore[misc]
    """Distributes tests over processes file by file, so that a file's fixtures are made once.

    All tests that need the cluster of several nodes count as one file: there is one such cluster.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "end_to_end" if "end_to_end/" in nodeid else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the most expensive files first, so that no process is left with a long one at the end."""
    for item in items:
        for fixtures, marker in ((("nodes",), "nodes"), (("cluster", "s3"), "ray")):
            if set(fixtures) & set(item.fixturenames):  # type: ignore[attr-defined]
                item.add_marker(marker)

    def rank(item: pytest.Item) -> int:
        return next(
            (number for number, name in enumerate(_COSTLY) if item.get_closest_marker(name)),
            len(_COSTLY),
        )

    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = min(rank(item), ranks.get(item.path, len(_COSTLY)))
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(scope="session", autouse=True)
def _trace_without_checks() -> Iterator[None]:
    """While torch traces a network, sizes are tensors, which the checks of shapes cannot read."""
    trace: Any = torch.jit.trace

    def trace_unchecked(*args: Any, **kwargs: Any) -> Any:
        config.update("jaxtyping_disable", True)
        try:
            return trace(*args, **kwargs)
        finally:
            config.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.jit, "trace", trace_unchecked)
        yield


@pytest.fixture(scope="session")
def cluster(s3: str) -> Iterator[str]:
    """A local Ray for tests that call the package in this process. Yields its address.

    Its processes inherit the S3 keys.
    """
    connect()
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 generated pairs with instances and metadata.csv."""
    folder = tmp_path_factory.mktemp("generated")
    write_images(str(folder), count=20, height=96, width=112, seed=3)
    return folder


@pytest.fixture(scope="session")
def dataset_uri(generated: Path, tmp_path_factory: pytest.TempPathFactory, cluster: str) -> str:
    """The generated pairs, prepared: 12 images for training, 4 for validation, 4 for testing."""
    uri = str(tmp_path_factory.mktemp("prepared"))
    prepare(
        PrepareConfig(
            input=(str(generated),),
            output=uri,
            metadata=str(generated / "metadata.csv"),
            rows_per_group=3,
            rows_per_shard=6,
        )
    )
    return uri


@pytest.fixture(scope="session")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small untrained network: what it finds is arbitrary, but always the same."""
    torch.manual_seed(0)
    model = ModelConfig(widths=(16, 32))
    info = BundleInfo(
        model=model,
        preprocess=PreprocessConfig(tile=64, context=16),
        instances=InstanceConfig(threshold=0.5, min_area=4),
        mpp=None,
        scores={},
    )
    uri = str(tmp_path_factory.mktemp("bundle"))
    sample, _ = generate_image(
        48, 40, modality="stained", num_nuclei=5, rng=np.random.default_rng(0)
    )
    save_bundle(uri, weights=build_network(model).state_dict(), info=info, sample=sample)
    return uri


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The labelled microscopy images next to the checkout."""
    if not REAL_DATA.exists():
        pytest.skip(f"no real images at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def nodes(s3: str) -> Iterator[Nodes]:
    """A cluster of a head and two workers. Its processes inherit the S3 keys from their nodes.

    A test that adds or removes nodes restores the cluster: see `Nodes.restore`.
    """
    cluster = Nodes(Path(tempfile.mkdtemp(prefix="ray-")))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="session")
def pipeline(s3: str, generated: Path, nodes: Nodes) -> Pipeline:
    """The generated pairs, prepared, trained on and scored by jobs submitted to that cluster."""
    return submit_pipeline(s3, images=generated, nodes=nodes)


@pytest.fixture(scope="session")
def s3(s3_server: subprocess.Popen[bytes]) -> str:
    """The URI of a new bucket."""
    for _ in range(30):
        with suppress(ClientError):  # the server answers before it can create buckets
            boto3.client("s3").create_bucket(Bucket="lab")
            return "s3://lab"
        time.sleep(1)
    pytest.fail("weed did not create a bucket within 30 s")


@pytest.fixture
def machine(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataService]:
    """A machine whose role is the only source of the keys. Nobody waits."""
    with metadata_service(S3_KEY, S3_SECRET) as service:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", "/nonexistent")  # its profiles do not count
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.endpoint)
        for module in (files, clients):
            monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: None))
        yield service


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """A SeaweedFS server on loopback. The environment of this process points to it."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = dict(zip(("master", "volume", "filer", "s3"), _free_ports(4), strict=True))
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": S3_KEY, "secretKey": S3_SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        str(Path(sys.executable).parent / "weed"),
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={folder}",
    ]
    command += [
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 'identities.json'}",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=20",
    ]
    for name, port in ports.items():
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={port + 10000}"]
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": S3_KEY,
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            _wait_for(endpoint, server=server, log=folder / "log")
            yield server
    finally:
        server.kill()  # a clean stop takes half a minute
        server.wait(timeout=30)


def _free_ports(count: int) -> list[int]:
    """Return free ports below 50000, since each server also takes the port 10000 above.

    The start depends on the process id, so that parallel test processes find different ports.
    """
    found: list[int] = []
    for port in range(20000 + 16 * os.getpid() % 20000, 50000):
        try:
            for number in (port, port + 10000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            break
    return found


def _wait_for(endpoint: str, *, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        assert server.poll() is None, f"weed ended: {log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(endpoint, timeout=1)
        except urllib.error.HTTPError:  # it answers that a signature is missing
            return
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"weed did not answer within a minute: {log.read_text()[-2000:]}")
