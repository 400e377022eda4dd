"""A compressed tar is expanded once per node, within the limit of the staging cache."""

import bz2
import gzip
import io
import lzma
import resource
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from resunet_ray import storage
from resunet_ray.data.archives import Entry, list_entries
from resunet_ray.errors import InputError, ResourceError
from resunet_ray.storage import Cache, Reader, staging

SIZE = 50_000


def write_tar(path: Path, *, members: int, mode: Any = "w:gz") -> dict[str, bytes]:
    """Write members of SIZE bytes that do not compress."""
    rng = np.random.default_rng(members)
    contents = {f"{number}.png": rng.bytes(SIZE) for number in range(members)}
    with tarfile.open(path, mode) as packed:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return contents


def entries(path: Path, cache: Cache) -> list[Entry]:
    return [entry for _, entry in list_entries(str(path), max_bytes=cache.max_bytes)]


def held(cache: Cache) -> int:
    return sum(file.stat().st_size for file in storage.cache_folder(cache.folder).glob("*/files/*"))


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".tar.gz", "w:gz"), (".TBZ2", "w:bz2"), (".txz", "w:xz")]
)
def test_members_are_read_from_one_expansion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, mode: str
) -> None:
    """Several threads read in reverse order; the archive is still expanded only once."""
    contents = write_tar(tmp_path / f"x{suffix}", members=12, mode=mode)
    cache = Cache(str(tmp_path / "cache"), 2**20)
    found = entries(tmp_path / f"x{suffix}", cache)
    expanded: list[Path] = []
    original = staging._expand

    def expand(source: Reader, *arguments: Any, part: Path, **named: Any) -> None:
        expanded.append(part)
        original(source, *arguments, part=part, **named)

    monkeypatch.setattr(staging, "_expand", expand)
    read: dict[str, bytes] = {}
    threads = [
        threading.Thread(
            target=lambda entry=entry: read.update({str(entry.member): entry.read(cache)})
        )
        for entry in reversed(found)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == contents
    assert len(expanded) == 1
    assert 12 * SIZE < held(cache) <= cache.max_bytes


def test_several_archives_together_stay_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_STEP", 2**17)
    cache = Cache(str(tmp_path / "cache"), 25 * SIZE)
    archives = [tmp_path / f"{number}.tar.gz" for number in range(3)]
    contents = [write_tar(path, members=10 + number) for number, path in enumerate(archives)]
    for _ in range(2):
        for path, expected in zip(archives, contents, strict=True):
            for entry in entries(path, cache):
                assert entry.read(cache) == expected[str(entry.member)]
            assert held(cache) <= cache.max_bytes


def test_an_archive_larger_than_the_cache_is_not_expanded_further(tmp_path: Path) -> None:
    """Two good members, then ten gigabytes of zeros that compress to ten megabytes."""
    path = tmp_path / "bomb.tar.gz"
    cache = Cache(str(tmp_path / "cache"), 3 * SIZE)
    contents = write_tar(path, members=2, mode="w:gz")
    good = gzip.decompress(path.read_bytes())[: 2 * (512 + -(-SIZE // 512) * 512)]
    bomb = tarfile.TarInfo("bomb.png")
    bomb.size = 10 * 2**30
    with gzip.open(path, "wb") as file:
        file.write(good + bomb.tobuf())
        for _ in range(20):
            file.write(bytes(2**20))
    found: list[Entry] = []
    with pytest.raises(
        InputError, match=r"bomb.png ends beyond the 150000 bytes .* holds: increase --cache-gib"
    ):
        found.extend(entry for _, entry in list_entries(str(path), max_bytes=cache.max_bytes))
    assert {str(entry.member): entry.read(cache) for entry in found} == contents
    assert held(cache) <= cache.max_bytes
    small = Cache(str(tmp_path / "small"), SIZE)
    with pytest.raises(ResourceError, match="increase --cache-gib"):
        found[1].read(small)


def test_members_before_the_damage_are_read(tmp_path: Path) -> None:
    contents = write_tar(tmp_path / "whole.tar.gz", members=10)
    packed = (tmp_path / "whole.tar.gz").read_bytes()
    cache = Cache(str(tmp_path / "cache"), 2**20)
    found = entries(tmp_path / "whole.tar.gz", cache)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(packed[: len(packed) // 2])
    cut_entries = [Entry(str(cut), entry.member, entry.offset, entry.size) for entry in found]
    readable = [entry for entry in cut_entries if (entry.offset or 0) < 3 * SIZE]
    assert {str(entry.member): entry.read(cache) for entry in readable} == {
        f"{number}.png": contents[f"{number}.png"] for number in range(3)
    }
    for entry in cut_entries[5:]:
        with pytest.raises(
            InputError, match=f"cut.tar.gz!{entry.member} cannot be read: it ends after"
        ):
            entry.read(cache)


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar.gz", members=3)
    cache = Cache(str(tmp_path / "cache"), 2**20)
    (first, *_) = entries(tmp_path / "x.tar.gz", cache)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * SIZE, hard))
    try:
        with pytest.raises(
            ResourceError, match=r"x.tar.gz cannot be staged in .*: .*Free some space there"
        ):
            first.read(cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert held(cache) == 0
    assert len(first.read(cache)) == SIZE


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_an_archive_is_what_its_bytes_say(tmp_path: Path, kind: str) -> None:
    contents = write_tar(tmp_path / "plain", members=3, mode="w")
    packed = COMPRESSED[kind]((tmp_path / "plain").read_bytes())
    cache = Cache(str(tmp_path / "cache"), 2**20)
    for name in ("x.tar", "x.TAR.GZ", "x.tgz", "x.tar.xz", "x.tzst", "x.zip"):
        (tmp_path / name).write_bytes(packed)
        found = entries(tmp_path / name, cache)
        assert {str(entry.member): entry.read(cache) for entry in found} == contents, name
    (tmp_path / "cut.tar").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match="cut.tar cannot be read as an archive"):
        entries(tmp_path / "cut.tar", cache)


def test_a_zip_is_one_whatever_its_name_says(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.tar.gz", "w") as packed:
        packed.writestr("images\\a.png", b"a")
    ((path, entry),) = list_entries(str(tmp_path / "x.tar.gz"), max_bytes=2**20)
    assert (path, entry.read(Cache(str(tmp_path), 2**20))) == ("images/a.png", b"a")


def test_links_and_sparse_members_are_not_taken_for_files(tmp_path: Path) -> None:
    """Their bytes are elsewhere: read at their place, others would be taken for them."""
    (tmp_path / "a.png").write_bytes(b"a" * 1000)
    (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
    with (tmp_path / "c.png").open("wb") as file:
        file.seek(2**20)
        file.write(b"end")
    names = ("a.png", "b.png", "c.png")
    command = ["tar", "--sparse", "--create", "--file", "x.tar", *names]
    subprocess.run(command, cwd=tmp_path, check=True)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        link = zipfile.ZipInfo("d.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, b"a.png")
    found = [
        (path, entry.unread)
        for name in ("x.tar", "x.zip")
        for path, entry in list_entries(str(tmp_path / name), max_bytes=2**20)
    ]
    assert found == [
        ("a.png", None),
        ("b.png", "link"),
        ("c.png", "sparse file"),
        ("d.png", "link"),
    ]


def test_a_zip_that_was_cut_short_is_not_read_as_a_zip_within_it(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("inner.png", b"pixels")
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("first.png", b"pixels")
        packed.writestr("inner.zip", inner.getvalue())
        packed.writestr("last.png", b"pixels" * 20)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"PK\x01\x02")])
    with pytest.raises(InputError, match="its first member is not in its directory"):
        list(list_entries(str(path), max_bytes=2**20))
    path.write_bytes(b"#!/bin/sh\n" + content)
    assert len(list(list_entries(str(path), max_bytes=2**20))) == 3
