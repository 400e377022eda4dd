"""The staging cache: each file is brought once, is never seen in part, and the cache keeps to its size."""

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resunet_ray import storage
from resunet_ray.errors import InputError
from resunet_ray.storage import staging


def put(s3: str, name: str, size: int = 1000) -> str:
    uri = f"{s3}/staging/{name}"
    storage.write_bytes(uri, name.encode()[:1] * size)
    return uri


def staged(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def stage(uri: str, folder: Path, *, max_bytes: int = 2500, companions: tuple[str, ...] = ()) -> bytes:
    with storage.stage(uri, fingerprint="1", companions=companions, folder=str(folder), max_bytes=max_bytes) as path:
        return Path(path).read_bytes()


def test_many_at_once_bring_a_file_once(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(s3, "one.svs")
    brought: list[str] = []
    original = staging._bring

    def bring(wanted: list[tuple[str, str, int]], **rest: Any) -> None:
        brought.extend(uri for uri, _, _ in wanted)
        original(wanted, **rest)

    monkeypatch.setattr(staging, "_bring", bring)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(stage(uri, tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"o" * 1000] * 8
    assert brought == [uri]


def test_what_was_not_used_for_longest_leaves_and_what_is_in_use_stays(s3: str, tmp_path: Path) -> None:
    first, second, third, fourth = (put(s3, f"{name}.svs") for name in "abcd")
    stage(first, tmp_path)
    stage(second, tmp_path)
    stage(first, tmp_path)
    stage(third, tmp_path)
    assert staged(tmp_path) == {"a.svs", "c.svs"}
    with ExitStack() as held:
        path = held.enter_context(storage.stage(first, fingerprint="1", companions=(), folder=str(tmp_path), max_bytes=2500))
        stage(third, tmp_path)
        stage(fourth, tmp_path)
        assert staged(tmp_path) == {"a.svs", "d.svs"}
        assert Path(path).read_bytes() == b"a" * 1000
    with pytest.raises(InputError, match=r"big.svs takes 3000 bytes: the staging cache holds 2500. Give --cache-gib more"):
        stage(put(s3, "big.svs", 3000), tmp_path)


def test_a_crash_leaves_no_half_file(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(s3, "half.svs")

    def die(source: object, sink: object, size: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", die)
        with pytest.raises(KeyboardInterrupt):
            stage(uri, tmp_path)
    (tmp_path / "dead.1234.part").mkdir()
    (tmp_path / "dead.1234.part" / "half.svs").write_bytes(b"h")
    monkeypatch.setattr(staging, "_STALE_SECONDS", 0.0)
    assert stage(uri, tmp_path) == b"h" * 1000
    assert staged(tmp_path) == {"half.svs"}


def test_what_belongs_to_a_slide_comes_with_it(s3: str, tmp_path: Path) -> None:
    uri = put(s3, "mirax.mrxs")
    storage.write_bytes(f"{s3}/staging/mirax/Data0001.dat", b"pixels")
    folder = f"{s3}/staging/mirax"
    with storage.stage(uri, fingerprint="1", companions=[folder], folder=str(tmp_path), max_bytes=2500) as path:
        assert (Path(path).with_suffix("") / "Data0001.dat").read_bytes() == b"pixels"
    storage.write_bytes(f"{s3}/staging/mirax/Data0002.dat", b"brought later")
    with storage.stage(uri, fingerprint="1", companions=[folder], folder=str(tmp_path), max_bytes=2500) as path:
        assert (Path(path).with_suffix("") / "Data0002.dat").exists(), "what was staged before was not all of it"
    for place in (f"{s3}/staging", str(tmp_path)):
        with (
            pytest.raises(InputError, match=f"a.mrxs is not whole: {place}/lost is not there.* put it beside the file"),
            storage.stage(f"{place}/a.mrxs", fingerprint="1", companions=[f"{place}/lost"], folder=str(tmp_path), max_bytes=2500),
        ):
            pass
    with pytest.raises(InputError, match="none.svs is not there"):
        stage(f"{s3}/staging/none.svs", tmp_path)
    local = tmp_path / "here.svs"
    local.write_bytes(b"on this disk")
    with storage.stage(str(local), fingerprint="1", companions=(), folder=str(tmp_path / "cache"), max_bytes=1) as path:
        assert path == str(local)
