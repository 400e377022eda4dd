"""Reads that are only signed give what botocore's client gives."""

import os
from collections import Counter

import pytest
from benchmarks.faulty import Answer, faulty_store

from resunet_ray import storage
from resunet_ray.errors import InputError
from resunet_ray.storage.reader import Reader, read_listed

NAMES = ("a", "deep/er/b c.png", "ü/ñ ~ + % & = ? # ! ' ( ) *.tif", "日本.png", "..a/.b")


@pytest.fixture
def folder(s3: str, request: pytest.FixtureRequest) -> str:
    return f"{s3}/{request.node.name}"


def test_any_name_and_any_part_are_read(folder: str) -> None:
    for number, name in enumerate(NAMES):
        content = bytes(range(256)) * number + name.encode()
        storage.write_bytes(f"{folder}/{name}", content)
        etag = storage.look_up(f"{folder}/{name}").fingerprint
        assert read_listed(f"{folder}/{name}", fingerprint=etag, max_bytes=10**4) == content
        with Reader(f"{folder}/{name}", fingerprint=etag) as reader:
            assert reader.read_at(5, 1) == content[1:6]
            assert reader.read_at(5, len(content)) == b""
    with pytest.raises(InputError, match="gone"):
        read_listed(f"{folder}/gone", fingerprint=None, max_bytes=10)


def test_a_store_that_wants_more_than_a_signature_is_asked_by_the_client(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each object is refused once."""
    asked: Counter[str] = Counter()

    def decide(method: str, path: str) -> Answer:
        asked[path] += 1
        return (403, "AccessDenied") if asked[path] == 1 else None

    for number in range(5):
        storage.write_bytes(f"{folder}/{number}", b"content")
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], decide) as seen:
        monkeypatch.setenv("AWS_ENDPOINT_URL", seen.endpoint)
        for number in range(5):
            assert read_listed(f"{folder}/{number}", fingerprint=None, max_bytes=10) == b"content"
        assert set(asked.values()) == {2}
