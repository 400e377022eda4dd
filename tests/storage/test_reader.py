"""A reader gives bytes of one content: the one that was listed, or none."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.faulty import Answer, faulty_store

from resunet_ray import storage
from resunet_ray.errors import ChangedError, InputError, ResourceError, UnclearError
from resunet_ray.storage import files
from resunet_ray.storage.reader import read_listed


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "file")
    return f"{request.getfixturevalue('s3')}/reader-{tmp_path.name}/file"


def test_it_reads_anywhere_and_to_the_end(uri: str) -> None:
    storage.write_bytes(uri, b"0123456789")
    listed = storage.look_up(uri).fingerprint
    with storage.Reader(uri, fingerprint=listed) as file:
        assert file.read_at(3, 7) == b"789"
        assert file.read_at(5, 8) == b"89"
        assert file.read_at(5, 10) == b""
        assert file.read_at(0, 2) == b""
        assert file.seek(-4, os.SEEK_END) == 6
        assert file.read() == b"6789"
    assert read_listed(uri, fingerprint=listed, max_bytes=10) == b"0123456789"
    with pytest.raises(InputError, match="has more than 9 bytes"):
        read_listed(uri, fingerprint=listed, max_bytes=9)
    storage.write_bytes(uri, b"")
    assert read_listed(uri, fingerprint=storage.look_up(uri).fingerprint, max_bytes=9) == b""
    storage.delete_file(uri)
    with pytest.raises(UnclearError, match="does not exist"):
        read_listed(uri, fingerprint=listed, max_bytes=9)


@pytest.mark.parametrize("fingerprint", [True, False])
def test_bytes_of_another_content_are_refused(uri: str, fingerprint: bool) -> None:
    """Also where the file is overwritten in place, and to a reader that was told of no content."""
    storage.write_bytes(uri, b"old content")
    listed = storage.look_up(uri).fingerprint if fingerprint else None
    with storage.Reader(uri, fingerprint=listed) as file:
        assert file.read(3) == b"old"
        if uri.startswith("s3"):
            storage.write_bytes(uri, b"new content!")
        else:
            with Path(uri).open("r+b") as other:
                other.write(b"new content!")
        with pytest.raises(ChangedError, match="file has changed since it was listed"):
            file.read(3)
    if listed is not None:
        with pytest.raises(ChangedError):
            read_listed(uri, fingerprint=listed, max_bytes=100)


def test_an_object_of_several_parts_is_read_under_the_etag_it_is_listed_with(s3: str) -> None:
    uri = f"{s3}/reader/parts"
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_output_stream(path) as stream:
        for number in range(3):
            stream.write(bytes([number]) * 6 * 2**20)
    listed = storage.look_up(uri)
    assert "-" in str(listed.etag)
    content = read_listed(uri, fingerprint=listed.fingerprint, max_bytes=2**26)
    assert content == b"".join(bytes([number]) * 6 * 2**20 for number in range(3))


def test_a_store_that_contradicts_itself_is_blamed(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all of its files would seem to change, in every run."""
    uri = f"{s3}/reader/contradicted"
    storage.write_bytes(uri, b"content")
    listed = storage.look_up(uri).fingerprint
    behind = os.environ["AWS_ENDPOINT_URL"]
    with faulty_store(behind, headers={"etag": '"another"'}) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        with pytest.raises(ResourceError, match="a store whose listings and reads disagree"):
            read_listed(uri, fingerprint=listed, max_bytes=100)


def test_a_store_that_is_away_or_denies_is_told_apart(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3}/reader/there"
    storage.write_bytes(uri, b"content")
    listed = storage.look_up(uri).fingerprint
    answers: list[Answer] = []
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=lambda _: None))

    def decide(method: str, path: str) -> Answer:
        return answers.pop(0) if answers and path.endswith("/there") else None

    with faulty_store(os.environ["AWS_ENDPOINT_URL"], decide) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        away: list[Answer] = [503, "reset", (400, "RequestTimeout")]
        refused: list[Answer] = [(400, "ExpiredToken"), 403]
        for passing in (away, refused):
            answers += passing
            assert read_listed(uri, fingerprint=listed, max_bytes=100) == b"content"
            assert not answers
        answers += [(403, "SignatureDoesNotMatch")] * 9
        with pytest.raises(ResourceError, match="refuses the credentials"):
            read_listed(uri, fingerprint=listed, max_bytes=100)
        answers[:] = [403] * 9
        with pytest.raises(UnclearError, match="cannot be read"):
            read_listed(uri, fingerprint=listed, max_bytes=100)
