"""Both clients of S3 go the same way with the same credentials, which are fetched once."""

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from benchmarks.faulty import faulty_store
from machine import MetadataService

from resunet_ray import storage
from resunet_ray.errors import ConfigError, ResourceError
from resunet_ray.storage import clients, files
from resunet_ray.storage.lease import create_exclusively

AUTHORITIES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def use_both(folder: str) -> None:
    """Write, read and list: content by one client, conditions and listings by the other."""
    storage.write_bytes(f"{folder}/content", b"content")
    assert storage.read_bytes(f"{folder}/content") == b"content"
    create_exclusively(f"{folder}/exclusive", b"first")
    assert not create_exclusively(f"{folder}/exclusive", b"second")
    assert [file.path for file in storage.walk_files(folder)] == ["content", "exclusive"]


def test_a_process_asks_the_metadata_service_once(
    machine: MetadataService, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do threads that start together."""
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "30")  # a late answer is asked for again
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: use_both(f"{s3}/once/{number % 8}"), range(24)))
    assert machine.count_fetches() == 1
    assert len(machine.requests) == 3


def test_threads_share_connections(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyarrow writes and botocore asks in threads of their own: no more than two per thread."""
    threads = 4
    with faulty_store(os.environ["AWS_ENDPOINT_URL"]) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda number: use_both(f"{s3}/shared/{number % threads}"), range(24)))
        assert len(store.requests) > 100
        assert store.connections <= 2 * threads


def test_a_busy_metadata_service_is_asked_again(machine: MetadataService, s3: str) -> None:
    """It refuses seven of ten requests, in no order."""
    machine.decide = lambda number: 429 if (number * 7) % 10 < 7 else None
    use_both(f"{s3}/busy")
    assert machine.count_fetches() >= 1


@pytest.mark.parametrize("late", [0, 2], ids=["token", "credentials"])
def test_a_metadata_service_that_answers_late_is_asked_again(
    machine: MetadataService, s3: str, late: int
) -> None:
    """A token that is late is done without, which this service refuses."""
    machine.decide = lambda number: time.sleep(1.5) if number == late else None
    use_both(f"{s3}/late/{late}")


def test_a_metadata_service_that_stays_busy_is_named(machine: MetadataService, s3: str) -> None:
    machine.decide = lambda _: 429
    with pytest.raises(
        ResourceError, match=r"metadata service at 127.0.0.1:\d+.* is busy \(HTTP 429\)"
    ):
        storage.read_bytes(f"{s3}/never", pauses=())
    with pytest.raises(ResourceError, match="metadata service"):
        list(storage.walk_files(f"{s3}/never"))


def test_new_credentials_reach_both_clients_and_open_files(
    machine: MetadataService, s3: str
) -> None:
    """The store refuses the first ones, as if they had expired."""
    right, machine.secret = machine.secret, "expired"
    machine.decide = lambda number: setattr(machine, "secret", right) if number == 3 else None
    use_both(f"{s3}/renewed")
    reader = storage.Reader(f"{s3}/renewed/content")
    before = clients.connect("lab")
    clients.forget()
    assert reader.read_at(4, 3) == b"tent"
    after = clients.connect("lab")
    assert after is not before
    assert after.filesystem is not before.filesystem
    assert machine.count_fetches() == 3


def test_credentials_that_expire_soon_are_not_fetched_for_each_operation(
    machine: MetadataService, s3: str
) -> None:
    machine.valid = timedelta(minutes=5)
    for number in range(5):
        use_both(f"{s3}/soon/{number}")
    assert machine.count_fetches() <= 2


def test_without_credentials_requests_are_not_signed(
    machine: MetadataService, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public bucket would let them in; this one does not, and says so to both."""
    machine.decide = lambda _: 404
    monkeypatch.setattr(files, "_answered", set())
    with pytest.raises(ResourceError, match="does not let this account in"):
        storage.read_bytes(f"{s3}/private", pauses=())
    with pytest.raises(ResourceError, match="AccessDenied|Forbidden|403"):
        list(storage.walk_files(f"{s3}/private"))
    assert clients.connect("lab").credentials is None


@pytest.mark.parametrize("way", ["variable", "service", "profile"])
def test_both_clients_go_to_the_same_endpoint(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    with faulty_store(os.environ["AWS_ENDPOINT_URL"]) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        if way == "variable":
            monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        elif way == "service":
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
        else:
            monkeypatch.delenv("AWS_ENDPOINT_URL")
            monkeypatch.delenv("AWS_DEFAULT_REGION")
            file = tmp_path / "config"
            file.write_text(f"[profile lab]\nendpoint_url = {store.endpoint}\nregion = us-west-2\n")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
            monkeypatch.setenv("AWS_PROFILE", "lab")
            assert clients.connect("lab").settings["region"] == "us-west-2"
        use_both(f"{s3}/endpoint/{way}")
        assert any("list-type" in path for _, path in store.requests)
        assert any(method == "HEAD" for method, _ in store.requests)


@pytest.mark.parametrize("bypassed", [False, True])
def test_both_clients_take_the_proxy(
    s3: str, monkeypatch: pytest.MonkeyPatch, bypassed: bool
) -> None:
    with faulty_store(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1" if bypassed else "elsewhere")
        use_both(f"{s3}/proxy/{bypassed}")
    asked = {method for method, path in proxy.requests if path.startswith("http://")}
    assert asked == (set() if bypassed else {"POST", "PUT", "HEAD", "GET"})
    listings = [path for _, path in proxy.requests if "list-type" in path]
    assert len(listings) == (0 if bypassed else 1)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
@pytest.mark.parametrize("variable", AUTHORITIES)
def test_both_clients_trust_the_same_authority(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    file = tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=store"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", str(file)]
    subprocess.run(make, check=True, capture_output=True)
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], certificate=file) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        for name in AUTHORITIES:
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ResourceError, match="did not answer"):
            storage.read_bytes(f"{s3}/x", pauses=())
        monkeypatch.setenv(variable, str(file))
        use_both(f"{s3}/trust/{variable}")


@pytest.mark.parametrize(
    ("endpoint", "style", "expected"),
    [
        ("", "", ("s3.us-west-2.amazonaws.com", True)),
        ("", "path", ("s3.us-west-2.amazonaws.com", False)),
        ("http://minio:9000/", "", ("minio:9000", False)),
        ("http://minio:9000", "virtual", ("minio:9000", True)),
    ],
)
def test_buckets_are_addressed_as_botocore_does(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    endpoint: str,
    style: str,
    expected: tuple[str, bool],
) -> None:
    """The region of a bucket of AWS is not asked for here: there is no network."""
    (tmp_path / "config").write_text(
        "[default]\nregion = us-west-2\n"
        + (f"s3 =\n  addressing_style = {style}\n" if style else "")
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    client = clients._open_session().create_client("s3", endpoint_url=endpoint or None)
    found = clients._describe(client)
    assert (found["endpoint_override"], found["force_virtual_addressing"]) == expected
    assert found["region"] == "us-west-2"


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_both_clients_sign_for_the_same_region(
    s3: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(variable, "eu-west-1")
    found = clients.connect("lab")
    assert found.settings["region"] == found.s3.meta.region_name == "eu-west-1"
    assert found.filesystem.region == "eu-west-1"
    use_both(f"{s3}/region/{variable}")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AWS_PROFILE", "nobody"), ("AWS_ENDPOINT_URL", "no-url"), ("HTTP_PROXY", "socks5://no")],
)
def test_a_setting_that_is_not_valid_is_a_mistake_of_the_user(
    s3: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match="the settings for s3://lab are not valid"):
        storage.exists(f"{s3}/x")
