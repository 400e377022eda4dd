"""What the infrastructure does is told apart from what is wrong with one file."""

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.faulty import RESET, Answer, faulty_store

from resunet_ray import storage
from resunet_ray.errors import InputError, ResourceError, UnclearError
from resunet_ray.storage import faults, files


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=lambda _: None))


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", 503),  # without a body, as the answer to HEAD always is
        ("HEAD", 400),  # also what an expired token is answered
        ("GET", (400, "ExpiredToken")),
        ("PUT", RESET),
    ],
    ids=str,
)
def test_a_store_that_is_away_or_refuses_credentials_says_nothing_about_a_file(
    s3: str, monkeypatch: pytest.MonkeyPatch, method: str, answer: Answer
) -> None:
    """It is asked again; if that does not help, the storage is blamed."""
    uri = f"{s3}/faults/there"
    storage.write_bytes(uri, b"content")
    left: Iterator[Answer] = itertools.repeat(answer)

    def decide(verb: str, path: str) -> Answer:
        return next(left, None) if verb == method and "/faults/" in path else None

    def use() -> None:
        if method == "PUT":
            storage.write_bytes(uri, b"content", pauses=())
        else:
            files.attempt(uri, lambda store, path: store.open_input_file(path).read(), pauses=())

    with faulty_store(os.environ["AWS_ENDPOINT_URL"], decide) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        with pytest.raises(ResourceError, match="the storage of s3://lab/faults/"):
            use()
        left = iter([answer])
        storage.write_bytes(uri, b"content")
        assert storage.read_bytes(uri) == b"content"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("AWS Error UNKNOWN (HTTP status 502) during HeadObject operation", faults.AwayError),
        ("AWS Error SLOW_DOWN during PutObject operation: Slow down", faults.AwayError),
        ("AWS Error NETWORK_CONNECTION during GetObject: curlCode: 6", faults.AwayError),
        ("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation", faults.AwayError),
        ("AWS Error UNKNOWN (HTTP status 400) in HeadObject: No body", faults.RefusedError),
        ("AWS Error UNKNOWN: Unable to parse ExceptionName: ExpiredToken", faults.RefusedError),
        ("AWS Error INVALID_ACCESS_KEY_ID during HeadObject operation", faults.RefusedError),
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject operation", faults.RefusedError),
        ("AWS Error REQUEST_TIME_TOO_SKEWED during GetObject operation", faults.RefusedError),
        ("AWS Error ACCESS_DENIED during HeadObject operation", faults.DeniedError),
        ("When reading 'Expired': AWS Error ACCESS_DENIED during HeadObject", faults.DeniedError),
        ("AWS Error INVALID_OBJECT_STATE during GetObject operation", InputError),
    ],
)  # fmt: skip
def test_what_pyarrow_says_of_an_object_store(text: str, kind: type[Exception]) -> None:
    assert type(faults.explain("s3://b/k", OSError(text), text=text, answers=True)) is kind


def test_one_file_that_is_denied_or_gone_is_unclear(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("denied", "there"):
        storage.write_bytes(f"{s3}/unclear/{name}", b"content")
    behind = os.environ["AWS_ENDPOINT_URL"]
    with faulty_store(behind, lambda _, path: 403 if "denied" in path else None) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        monkeypatch.setattr(files, "_answered", set())
        with pytest.raises(ResourceError, match="does not let this account in"):
            storage.read_bytes(f"{s3}/unclear/denied")
        assert storage.read_bytes(f"{s3}/unclear/there") == b"content"
        for name in ("denied", "gone"):
            with pytest.raises(UnclearError, match=name):
                storage.read_bytes(f"{s3}/unclear/{name}")
            storage.require_folder(f"{s3}/unclear/{name}")
        with pytest.raises(ResourceError, match="s3://lab/nowhere is gone: is its disk"):
            storage.require_folder(f"{s3}/nowhere/file")


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_share_that_went_away_is_asked_again(tmp_path: Path, code: int) -> None:
    left = iter([code])

    def call(*_: object) -> str:
        for number in left:
            raise OSError(number, os.strerror(number))
        return "read"

    assert files.attempt(str(tmp_path), call) == "read"
    with pytest.raises(ResourceError, match="the storage of .* did not answer"):
        files.attempt(str(tmp_path), lambda *_: (_ for _ in ()).throw(OSError(code, "x")))


@pytest.mark.parametrize(("code", "away"), [(errno.ESTALE, True), (errno.EACCES, False)])
def test_a_folder_of_a_share_that_went_away_is_no_damaged_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, away: bool
) -> None:
    def scan(_: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.scandir", scan)
    if away:
        with pytest.raises(ResourceError, match="the storage of .* did not answer: Stale file"):
            list(storage.walk_files(str(tmp_path)))
    else:
        (found,) = storage.walk_files(str(tmp_path))
        assert isinstance(found.error, PermissionError)


def test_what_is_wrong_with_a_file_is_not_asked_again(tmp_path: Path) -> None:
    calls = []

    def call(*_: object) -> None:
        calls.append(1)
        raise OSError(errno.EISDIR, "Is a directory")

    with pytest.raises(InputError) as caught:
        files.attempt(str(tmp_path), call)
    assert not isinstance(caught.value, UnclearError)
    assert len(calls) == 1
    assert not faults.may_pass(caught.value, attempt=0)


def test_a_process_has_one_client_of_a_bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new client for each operation would open a connection and fetch credentials each time."""
    with faulty_store(os.environ["AWS_ENDPOINT_URL"]) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        for number in range(30):
            storage.write_bytes(f"{s3}/client/{number}", b"content")
            assert storage.read_bytes(f"{s3}/client/{number}") == b"content"
        assert len(store.requests) >= 60
        assert store.connections <= 3
