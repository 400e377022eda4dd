"""Files appear whole or not at all, on disk and in object storage, and credentials never leak."""

from pathlib import Path

import pytest

from resunet_ray import storage
from resunet_ray.errors import ConfigError, InputError, ResourceError


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path)
        if request.param == "disk"
        else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    )


def test_files_can_be_written_read_listed_and_deleted(place: str) -> None:
    for name in ("a.bin", "deep/er/ü b.bin", "deep/c.tar.gz"):
        storage.write_bytes(storage.join(place, name), name.encode())
        assert storage.read_bytes(storage.join(place, name)) == name.encode()
    assert list(storage.list_files(place)) == [
        ("a.bin", 5),
        ("deep/c.tar.gz", 13),
        ("deep/er/ü b.bin", len("deep/er/ü b.bin".encode())),
    ]
    assert storage.is_file(storage.join(place, "a.bin"))
    assert not storage.is_file(storage.join(place, "deep"))
    storage.delete_folder(storage.join(place, "deep"))
    assert [name for name, _ in storage.list_files(place)] == ["a.bin"]
    storage.check_writable(place)
    assert [name for name, _ in storage.list_files(place)] == ["a.bin"], (
        "the probe leaves nothing behind"
    )


def test_the_error_names_a_missing_file(place: str) -> None:
    with pytest.raises(InputError, match="none.bin does not exist"):
        storage.read_bytes(storage.join(place, "none.bin"))
    assert not storage.exists(storage.join(place, "none"))


def test_a_failed_write_keeps_the_old_file_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.bin"
    storage.write_bytes(str(target), b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        ResourceError, match=r"a.bin cannot be written: No space left on device. Free some space"
    ):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_access_is_found_before_the_work(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"the output .*file/x cannot be used"):
        storage.check_writable(str(tmp_path / "file" / "x"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(ResourceError, match=r"the output s3://lab/x cannot be used") as caught:
        storage.check_writable(f"{s3}/x")
    assert "not-the-secret" not in str(caught.value)


@pytest.mark.parametrize("secret", ["very-secret", "very/secret"])
def test_credentials_in_a_uri_are_refused_without_repeating_them(secret: str) -> None:
    with pytest.raises(ConfigError, match="contains credentials") as caught:
        storage.open_filesystem(f"s3://key:{secret}@bucket/x")
    assert "very-" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert storage.mask_credentials(f"see s3://key:{secret}@bucket/x") == "see s3://***@bucket/x"
    assert storage.mask_credentials("s3://lab/a@b.png") == "s3://lab/a@b.png"
    with pytest.raises(ConfigError, match="is not valid"):
        storage.open_filesystem("floppy://a/b")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket?scheme=http&endpoint_override=127.0.0.1:1/key",
        "s3://bucket:9000/key",
        "s3://other@bucket/key",
        "s3://buck%65t/key",
        "s3:///key",
        "gs://bucket#x/key",
        "hdfs://host:8020/key",
        "file://host/key",
        "http://host/key",
    ],
)
def test_a_location_is_only_a_bucket_and_a_key(uri: str) -> None:
    """The parser of pyarrow would send the credentials wherever such a location says."""
    with pytest.raises(
        ConfigError,
        match=r"is not valid: expected a path, s3://BUCKET/KEY|contains credentials",
    ):
        storage.open_filesystem(uri)


def test_a_key_may_contain_what_a_bucket_may_not(s3: str) -> None:
    uri = f"{s3}/odd/a?b=c&d=1:2@x#y %41.bin"
    storage.write_bytes(uri, b"odd")
    assert storage.read_bytes(uri) == b"odd"
    assert [name for name, _ in storage.list_files(f"{s3}/odd")] == ["a?b=c&d=1:2@x#y %41.bin"]


def test_secrets_in_a_query_are_not_repeated() -> None:
    text = storage.mask_credentials(
        "see https://x/a?X-Amz-Signature=very-secret&part=7&access_key=very-secret and more"
    )
    assert "very-secret" not in text
    assert "part=7" in text


def test_a_relative_location_in_a_submitted_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray deletes the package after the job, and with it what was written there."""
    package = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_1"
    package.mkdir(parents=True)
    assert storage.absolute("runs/first").endswith("/runs/first")
    monkeypatch.chdir(package)
    with pytest.raises(ConfigError, match="the location runs/first is relative to the package"):
        storage.absolute("runs/first")
    assert storage.absolute("/data/runs") == "/data/runs"
    assert storage.absolute("s3://lab/runs") == "s3://lab/runs"
