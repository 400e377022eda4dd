"""The staging cache downloads each file once, never shows part of it, and keeps to its size."""

import os
import resource
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resunet_ray import storage
from resunet_ray.errors import InputError, ResourceError
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
    with storage.Cache(str(folder), max_bytes).stage(
        uri, fingerprint="1", companions=companions
    ) as path:
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
        path = held.enter_context(
            storage.Cache(str(tmp_path), 2500).stage(first, fingerprint="1", companions=())
        )
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
    with storage.Cache(str(tmp_path), 2500).stage(
        uri, fingerprint="1", companions=[folder]
    ) as path:
        assert (Path(path).with_suffix("") / "Data0001.dat").read_bytes() == b"pixels"
    storage.write_bytes(f"{s3}/staging/mirax/Data0002.dat", b"brought later")
    with storage.Cache(str(tmp_path), 2500).stage(
        uri, fingerprint="1", companions=[folder]
    ) as path:
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
                f"{place}/a.mrxs", fingerprint="1", companions=[f"{place}/lost"]
            ),
        ):
            pass
    with pytest.raises(InputError, match="none.svs does not exist"):
        stage(f"{s3}/staging/none.svs", tmp_path)
    local = tmp_path / "here.svs"
    local.write_bytes(b"on this disk")
    with storage.Cache(str(tmp_path / "cache"), 1).stage(
        str(local), fingerprint="1", companions=()
    ) as path:
        assert path == str(local)


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
def test_a_folder_that_is_not_private_to_this_user_is_refused(
    s3: str, tmp_path: Path, kind: str
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
    with pytest.raises(ResourceError, match=f"{own} is no.*give --cache another folder"):
        stage(put(s3, "one.svs"), tmp_path)
    assert staged(tmp_path) == set()


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
        with storage.Cache(str(tmp_path), 2500).stage(uri, fingerprint="1", companions=()) as path:
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
