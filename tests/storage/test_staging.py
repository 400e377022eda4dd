"""The staging cache downloads each file once, never shows part of it, and keeps to its size."""

import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest

from resunet_ray import storage
from resunet_ray.errors import ChangedError, InputError, ResourceError
from resunet_ray.storage import space, staging


def put(s3: str, name: str, size: int = 1000) -> str:
    uri = f"{s3}/staging/{name}"
    storage.write_bytes(uri, name.encode()[:1] * size)
    return uri


def staged(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("resunet_ray-*/*/files/**/*") if path.is_file()}


def stage(
    uri: str, folder: Path, *, max_bytes: int = 2500, companions: tuple[str, ...] = ()
) -> bytes:
    with storage.Cache(str(folder), max_bytes).stage(uri, companions=companions) as path:
        return Path(path).read_bytes()


def test_concurrent_users_download_a_file_once(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put(s3, "one.svs")
    brought: list[str] = []
    original = staging._bring

    def bring(wanted: list[Any], **rest: Any) -> None:
        brought.extend(file.uri for file in wanted)
        original(wanted, **rest)

    monkeypatch.setattr(staging, "_bring", bring)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(stage(uri, tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"o" * 1000] * 8
    assert brought == [uri]


def test_the_least_recently_used_entry_is_evicted_unless_it_is_in_use(
    s3: str, tmp_path: Path
) -> None:
    first, second, third, fourth = (put(s3, f"{name}.svs") for name in "abcd")
    stage(first, tmp_path)
    stage(second, tmp_path)
    stage(first, tmp_path)
    stage(third, tmp_path)
    assert staged(tmp_path) == {"a.svs", "c.svs"}
    with ExitStack() as held:
        path = held.enter_context(storage.Cache(str(tmp_path), 2500).stage(first))
        stage(third, tmp_path)
        stage(fourth, tmp_path)
        assert staged(tmp_path) == {"a.svs", "d.svs"}
        assert Path(path).read_bytes() == b"a" * 1000
    with pytest.raises(
        InputError,
        match=r"big.svs takes 3000 bytes, but the staging cache holds 2500. Raise --cache-gib",
    ):
        stage(put(s3, "big.svs", 3000), tmp_path)


def test_a_crash_leaves_no_partial_file(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put(s3, "half.svs")

    def die(source: object, sink: object, size: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", die)
        with pytest.raises(KeyboardInterrupt):
            stage(uri, tmp_path)
    dead = storage.cache_folder(str(tmp_path)) / f"{'0' * 32}.{'1' * 32}.part" / "files"
    dead.mkdir(parents=True)
    (dead / "half.svs").write_bytes(b"h")
    monkeypatch.setattr(space, "_STALE_SECONDS", 0.0)
    assert stage(uri, tmp_path) == b"h" * 1000
    assert staged(tmp_path) == {"half.svs"}


def test_companions_are_staged_with_their_slide(s3: str, tmp_path: Path) -> None:
    uri = put(s3, "mirax.mrxs")
    storage.write_bytes(f"{s3}/staging/mirax/Data0001.dat", b"pixels")
    folder = f"{s3}/staging/mirax"
    with storage.Cache(str(tmp_path), 2500).stage(uri, companions=[folder]) as path:
        assert (Path(path).with_suffix("") / "Data0001.dat").read_bytes() == b"pixels"
    storage.write_bytes(f"{s3}/staging/mirax/Data0002.dat", b"brought later")
    with storage.Cache(str(tmp_path), 2500).stage(uri, companions=[folder]) as path:
        assert (Path(path).with_suffix("") / "Data0002.dat").exists(), (
            "the files staged before are no longer all of them"
        )
    for place in (f"{s3}/staging", str(tmp_path)):
        with (
            pytest.raises(
                InputError,
                match=f"a.mrxs is incomplete: {place}/lost does not exist.* next to the file",
            ),
            storage.Cache(str(tmp_path), 2500).stage(
                f"{place}/a.mrxs", companions=[f"{place}/lost"]
            ),
        ):
            pass
    with pytest.raises(InputError, match="none.svs does not exist"):
        stage(f"{s3}/staging/none.svs", tmp_path)
    local = tmp_path / "here.svs"
    local.write_bytes(b"on this disk")
    with storage.Cache(str(tmp_path / "cache"), 1).stage(str(local)) as path:
        assert path == str(local)


def test_an_entry_holds_what_was_listed_or_is_not_there(s3: str, tmp_path: Path) -> None:
    """A slide whose folder of pixels is replaced is another slide."""
    cache, folder = storage.Cache(str(tmp_path / "cache"), 2500), f"{s3}/staging/pinned"
    for place in (f"{s3}/staging/pinned", str(tmp_path / "pinned")):
        uri, pixels = f"{place}.mrxs", f"{place}/Data0001.dat"
        storage.write_bytes(uri, b"header")
        storage.write_bytes(pixels, b"old")
        first = storage.look_up(uri).fingerprint
        listed = storage.join_fingerprints(first, storage.walk_files(place))
        with cache.stage(uri, fingerprint=listed, companions=[place]) as path:
            assert (Path(path).with_suffix("") / "Data0001.dat").read_bytes() == b"old"
        storage.write_bytes(pixels, b"newer")
        if place == folder:
            with cache.stage(uri, fingerprint=listed, companions=[place]) as path:
                assert (Path(path).with_suffix("") / "Data0001.dat").read_bytes() == b"old"
        elsewhere = storage.Cache(str(tmp_path / "elsewhere"), 2500)
        with (
            pytest.raises(ChangedError, match="pinned.mrxs has changed since it was listed"),
            elsewhere.stage(uri, fingerprint=listed, companions=[place]),
        ):
            pass
    assert staged(tmp_path / "elsewhere") == set()


def test_nothing_else_in_the_folder_is_touched(s3: str, tmp_path: Path) -> None:
    own = storage.cache_folder(str(tmp_path))
    others = [tmp_path / "my_thesis", tmp_path / ("a" * 32), own / "kept"]
    stage(put(s3, "first.svs"), tmp_path)
    for folder in others:
        folder.mkdir()
        (folder / "chapter").write_bytes(b"x" * 5000)
    (own / ("b" * 32)).symlink_to(tmp_path / "my_thesis")
    for name in "cde":
        stage(put(s3, f"{name}.svs", 2000), tmp_path)
    assert staged(tmp_path) == {"e.svs"}
    assert all((folder / "chapter").read_bytes() == b"x" * 5000 for folder in others)
    assert (
        (own / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )


@pytest.mark.parametrize("kind", ["open", "link", "foreign", "file", "unmarked"])
def test_where_the_name_is_taken_this_user_gets_another_folder(
    s3: str, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = storage.cache_folder(str(tmp_path))
    if kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        own.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        own.touch(mode=0o600)
    else:
        own.mkdir(mode=0o700)
        if kind == "open":
            own.chmod(0o755)
        elif kind == "unmarked":
            (own / "mine").touch()
        elif os.geteuid() == 0:
            os.chown(own, 12345, -1)
        else:
            pytest.skip("only root can give a folder away")
    before = own.lstat()
    for name in ("one", "two"):
        assert stage(put(s3, f"{name}.svs"), tmp_path) == name.encode()[:1] * 1000
    other = own.with_name(f"{own.name}.1")
    assert {path.name for path in other.glob("*/files/*")} == {"one.svs", "two.svs"}
    assert stat.S_IMODE(other.stat().st_mode) == 0o700
    assert own.lstat().st_mtime == before.st_mtime, "nothing was written there"
    (said,) = [record.message for record in caplog.records if str(other) in record.message]
    assert f"the staging cache {own} cannot be used" in said


def test_where_nothing_can_be_written_or_locked_the_cache_is_elsewhere(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No file system without locks can be mounted here, so they are refused in its place."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    lacking, flock = tmp_path / "lacking", fcntl.flock

    def refuse(file: IO[str], kind: int) -> None:
        if file.name.startswith(str(lacking)):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert stage(put(s3, "one.svs"), lacking) == b"o" * 1000
    assert staged(tmp_path / "tmp") == {"one.svs"}
    assert "its file system has no locks. Using" in caplog.text
    assert stage(put(s3, "two.svs"), Path("/sys")) == b"t" * 1000, "no folder can be made there"
    assert staged(tmp_path / "tmp") == {"one.svs", "two.svs"}


def test_other_users_cannot_read_the_cache(s3: str, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        stage(put(s3, "one.svs"), tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(storage.cache_folder(str(tmp_path)).stat().st_mode) == 0o700


def test_a_file_changed_on_disk_is_downloaded_again(s3: str, tmp_path: Path) -> None:
    uri = put(s3, "one.svs")
    stage(uri, tmp_path)
    (file,) = storage.cache_folder(str(tmp_path)).glob("*/files/one.svs")
    file.write_bytes(b"short")
    assert stage(uri, tmp_path) == b"o" * 1000
    file.unlink()
    assert stage(uri, tmp_path) == b"o" * 1000


def test_concurrent_users_keep_to_the_size_together(s3: str, tmp_path: Path) -> None:
    """A second user waits until the first has finished reading."""
    uris = [put(s3, f"{name}.svs", 1500) for name in "abcd"]
    most: list[int] = []

    def read(uri: str) -> None:
        with storage.Cache(str(tmp_path), 2500).stage(uri) as path:
            time.sleep(0.1)
            most.append(
                sum(
                    file.stat().st_size
                    for file in storage.cache_folder(str(tmp_path)).glob("*/files/*")
                )
            )
            assert Path(path).stat().st_size == 1500

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, uris))
    assert len(most) == 4
    assert max(most) <= 2500


def test_a_full_disk_is_not_blamed_on_the_slide(s3: str, tmp_path: Path) -> None:
    uri = put(s3, "one.svs", 5000)
    stage(put(s3, "none.svs", 10), tmp_path, max_bytes=9000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            ResourceError, match=r"one.svs cannot be staged in .*: .*Free some space there"
        ):
            stage(uri, tmp_path, max_bytes=9000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert staged(tmp_path) == {"none.svs"}
    assert stage(uri, tmp_path, max_bytes=9000) == b"o" * 5000


def test_the_cache_keeps_to_its_disk(s3: str, tmp_path: Path) -> None:
    """Whatever is unused makes room; whoever is left without blames the disk.

    The disk of 32 MB is there for one process alone, which needs no privileges for it.
    """
    for name in "abc":
        put(s3, f"{name}.svs", 10**7)
    put(s3, "huge.svs", 4 * 10**7)
    script = f"""
import errno, logging, shutil, sys, threading, time
from pathlib import Path
from resunet_ray import storage
from resunet_ray.errors import ResourceError
from resunet_ray.storage import space

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
disk = Path({str(tmp_path)!r})
cache = storage.Cache(str(disk), 10**12)
held = lambda: sorted(path.name for path in disk.glob("*/*/files/*"))
stage = lambda name: cache.stage("{s3}/staging/" + name)

def stage_and_note(name):
    with stage(name) as path:
        assert Path(path).stat().st_size == 10**7
        noted.append(held())

def refused(name):
    try:
        with stage(name):
            pass
    except ResourceError as error:
        return str(error)

noted = []
stage_and_note("a.svs")
stage_and_note("b.svs")
stage_and_note("c.svs")
print(noted)
with stage("b.svs"), stage("c.svs"):
    waiting = threading.Thread(target=stage_and_note, args=("a.svs",))
    waiting.start()
    time.sleep(1)
    print(held())
waiting.join()
print(len(noted))
own = storage.cache_folder(str(disk))
space.evict_unused(own)
(disk / "other").write_bytes(bytes(12 * 10**6))  # another program's
stage_and_note("a.svs")
(disk / "more").write_bytes(bytes(8 * 10**6))
print(refused("huge.svs"))
print(refused("b.svs"), held())
(disk / "more").unlink()
space._SPARE_BYTES = -(10**9)  # as if the others wrote while a file is downloaded
stage_and_note("a.svs")
(disk / "more").write_bytes(bytes(10**7))
stage_and_note("c.svs")
print(held())
space.evict_unused(own)
(disk / "other").write_bytes(bytes(2 * 10**7))
print(refused("c.svs"))
"""
    mounted = f'mount -t tmpfs -o size=32m none {tmp_path} && exec "$@"'
    alone = ["unshare", "-rm", "sh", "-c", mounted, "sh", sys.executable, "-c", script]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=600, check=False)
    if "unshare" in done.stderr.partition(":")[0]:
        pytest.skip(f"no namespaces here, so no small disk: {done.stderr}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str([["a.svs"], ["a.svs", "b.svs"], ["b.svs", "c.svs"]])
    assert lines[1] == str(["b.svs", "c.svs"]), "it waits for what is in use"
    assert "waiting for room in the staging cache" in done.stderr
    assert lines[2] == "4"
    own = tmp_path / "resunet_ray-0"  # in its own namespace, the process is root
    for line in (lines[3], lines[4]):
        assert line.startswith(f"the disk of the staging cache {own} is full: ")
    assert lines[4].endswith("[]"), "all that was unused has gone first"
    assert lines[5] == str(["c.svs"])
    assert f"c.svs cannot be staged in {own}: [Errno 28] No space left" in lines[6]
