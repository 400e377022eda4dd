"""What is replaced between its listing and its reading gets no row before it is listed anew."""

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from benchmarks.faulty import Answer, faulty_store
from support import read_output, write_pyramid

from resunet_ray import storage
from resunet_ray.archive import segment_archive
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import encode_png
from resunet_ray.segment import commit
from resunet_ray.segment.rows import Region
from resunet_ray.segment.run import SegmentationResult, segment
from resunet_ray.segment.work.chunk_file import withdraw_changed
from resunet_ray.segment.work.segmenter import Segmenter
from resunet_ray.segment.work.sums import ChunkResult

OLD, NEW = (40, 50), (60, 70)
"""Sizes of an image before and after it is replaced."""
WIDE, WIDER = (100, 500), (110, 510)
"""Sizes of a slide, which is read in two chunks."""


class Swapping(Segmenter):
    """Calls what was set before it reads a chunk; on a cluster, anything may happen there."""

    before: dict[int, Callable[[], None]]

    def segment_chunk(self, chunk: int) -> ChunkResult:
        self.before.pop(chunk, lambda: None)()
        return super().segment_chunk(chunk)


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[[], None]]:
    """What happens before each chunk is read, once."""
    told: dict[int, Callable[[], None]] = {}
    monkeypatch.setattr(Swapping, "before", told, raising=False)
    monkeypatch.setattr("resunet_ray.segment.work.actors.Segmenter", Swapping)
    monkeypatch.setattr("resunet_ray.segment.planning.grid.BLOCK", 256)
    return told


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "in")
    return f"{request.getfixturevalue('s3')}/changed-{tmp_path.name}"


def png(size: tuple[int, int], *, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return encode_png(pixels)


def pack(suffix: str, size: tuple[int, int]) -> bytes:
    """Return an archive of two images."""
    sink, members = io.BytesIO(), {f"{seed}.png": png(size, seed=seed) for seed in (1, 2)}
    if suffix == ".zip":
        with zipfile.ZipFile(sink, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        return sink.getvalue()
    with tarfile.open(fileobj=sink, mode="w:gz" if suffix.endswith("gz") else "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def slide(folder: Path, size: tuple[int, int]) -> bytes:
    """Return a slide of dark squares on white."""
    pixels = np.full((*size, 3), 255, np.uint8)
    for left in range(40, size[1] - 40, 60):
        pixels[60:80, left : left + 20] = 30
    write_pyramid(folder / "made.tiff", pixels)
    return (folder / "made.tiff").read_bytes()


def run(place: str, output: Path, bundle: str, **settings: str) -> list[SegmentationResult]:
    config = SegmentConfig(
        bundle=bundle,
        input=(place,),
        output=str(output),
        cache=str(output.parent / "cache"),
        actors=0,
        region=256,
        tissue="off",
        diameter="none",
        **settings,  # type: ignore[arg-type]
    )
    return segment(config)


def rows(output: Path, table: str = "images") -> pd.DataFrame:
    return read_output(str(output), table)


def check_all_are_new(place: str, output: Path, *, size: tuple[int, int]) -> None:
    """Each image has one row, of the content and under the fingerprint that its file has now."""
    images = rows(output)
    assert not images.duplicated(["image_uri", "member"]).any()
    assert images["status"].isin(["ok", "empty"]).all()
    now = {storage.join(place, file.path): file for file in storage.walk_files(place)}
    for row in images.to_dict("records"):
        expected = size if "swapped" in row["image_uri"] else OLD
        assert (row["height"], row["width"]) == expected
        file = now[row["image_uri"]]
        etag = None if pd.isna(row["source_etag"]) else row["source_etag"]
        assert (etag, row["source_mtime"]) == (file.etag, file.mtime)
    regions = rows(output, "regions")
    assert set(regions["image_id"]) == set(images["image_id"])
    assert not regions["region_id"].duplicated().any()


@pytest.mark.parametrize("suffix", [".png", ".zip", ".tar", ".tar.gz"])
def test_an_image_or_archive_that_was_replaced_is_listed_anew(
    place: str, bundle_uri: str, tmp_path: Path, before: dict[int, Callable[[], None]], suffix: str
) -> None:
    swapped = f"{place}/swapped{suffix}"

    def write(size: tuple[int, int]) -> None:
        content = png(size) if suffix == ".png" else pack(suffix, size)
        storage.write_bytes(swapped, content)

    storage.write_bytes(f"{place}/kept.png", png(OLD, seed=3))
    write(OLD)
    before[0] = lambda: write(NEW)
    (first,) = run(place, tmp_path / "out", bundle_uri)
    gone = 1 if suffix == ".png" else 2
    assert (first.images, first.unclear) == ({"ok": 1, "changed": gone}, 0)
    assert [Path(uri).name for uri in rows(tmp_path / "out")["image_uri"]] == ["kept.png"]
    assert len(rows(tmp_path / "out", "regions")) == 1
    (second,) = run(place, tmp_path / "out", bundle_uri)
    assert (second.images, second.done_before) == ({"ok": gone}, 1)
    check_all_are_new(place, tmp_path / "out", size=NEW)
    (third,) = run(place, tmp_path / "out", bundle_uri)
    assert (third.images, third.done_before) == ({}, 1 + gone)


def test_an_object_that_is_replaced_at_the_very_request_is_noticed(
    s3: str, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, waiting = f"{s3}/request-{tmp_path.name}", ["once"]
    for name in ("kept", "swapped"):
        storage.write_bytes(f"{place}/{name}.png", png(OLD))

    def decide(method: str, path: str) -> Answer:
        if method == "GET" and path.endswith("/swapped.png") and waiting:
            waiting.pop()
            storage.write_bytes(f"{place}/swapped.png", png(NEW))
        return None

    with faulty_store(os.environ["AWS_ENDPOINT_URL"], decide) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        (first,) = run(place, tmp_path / "out", bundle_uri)
        assert first.images == {"ok": 1, "changed": 1}
        (second,) = run(place, tmp_path / "out", bundle_uri)
        assert second.images == {"ok": 1}
    check_all_are_new(place, tmp_path / "out", size=NEW)


def test_a_mask_that_was_replaced_scores_nothing_it_was_not_listed_for(
    bundle_uri: str, tmp_path: Path, before: dict[int, Callable[[], None]]
) -> None:
    mask = tmp_path / "masks" / "swapped.png"
    storage.write_bytes(str(tmp_path / "in" / "swapped.png"), png(OLD))
    storage.write_bytes(str(mask), encode_png(np.zeros(OLD, np.uint8)))
    before[0] = lambda: storage.write_bytes(str(mask), encode_png(np.full(OLD, 255, np.uint8)))
    place, output = str(tmp_path / "in"), tmp_path / "out"
    assert run(place, output, bundle_uri, masks=str(mask.parent))[-1].images == {"changed": 1}
    assert run(place, output, bundle_uri, masks=str(mask.parent))[-1].images == {"ok": 1}
    (regions,) = rows(output, "regions").itertuples()
    assert (regions.tp + regions.fn, regions.fp + regions.tn) == (OLD[0] * OLD[1], 0)


def test_a_run_whose_only_image_was_replaced_is_a_run_like_any_other(
    bundle_uri: str, tmp_path: Path, before: dict[int, Callable[[], None]]
) -> None:
    """It ends well and has its report."""
    image = str(tmp_path / "in" / "swapped.png")
    storage.write_bytes(image, png(OLD))
    before[0] = lambda: storage.write_bytes(image, png(NEW))
    output = str(tmp_path / "out")
    config = SegmentConfig(bundle=bundle_uri, input=(image,), output=output, actors=0)
    done = segment_archive(config)
    assert (done.status, done.result.images) == ("done", {"changed": 1})
    assert b"changed" in storage.read_bytes(str(done.report))
    assert segment_archive(config).result.images == {"ok": 1}


@pytest.mark.parametrize("when", ["between", "within"])
def test_regions_of_two_contents_of_a_slide_never_stand_together(
    bundle_uri: str,
    tmp_path: Path,
    before: dict[int, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """The slide is replaced after its first chunk, or while its second is read."""
    path = tmp_path / "in" / "swapped.tiff"
    storage.write_bytes(str(path), slide(tmp_path, WIDE))

    def swap() -> None:
        storage.write_bytes(str(path), slide(tmp_path, WIDER))

    if when == "between":
        before[1] = swap
    else:
        swaps: list[Callable[[], None]] = []
        before[1] = lambda: swaps.append(swap)
        describe = Segmenter._describe_region

        def swap_and_describe(*arguments: Any) -> Region:
            if swaps:
                swaps.pop()()
            return describe(*arguments)

        monkeypatch.setattr(Swapping, "_describe_region", swap_and_describe)
    (first,) = run(str(tmp_path / "in"), tmp_path / "out", bundle_uri)
    assert (first.images, first.regions) == ({"changed": 1}, 2)
    for table in ("images", "regions", "instances"):
        assert rows(tmp_path / "out", table).empty
    (second,) = run(str(tmp_path / "in"), tmp_path / "out", bundle_uri)
    assert second.images == {"ok": 1}
    check_all_are_new(str(tmp_path / "in"), tmp_path / "out", size=WIDER)


def run_here(work: Callable[[int], pa.Table], *, count: int, **_: Any) -> pa.Table:
    return pa.concat_tables(work(number) for number in range(count))


def test_a_run_that_was_killed_says_once_that_a_slide_has_changed(
    bundle_uri: str,
    tmp_path: Path,
    before: dict[int, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It dies between the chunks of the slide, and again in the middle of the commit."""
    path = tmp_path / "in" / "swapped.tiff"
    storage.write_bytes(str(path), slide(tmp_path, WIDE))
    storage.write_bytes(str(tmp_path / "in" / "kept.png"), png(OLD))

    def swap_and_die() -> None:
        storage.write_bytes(str(path), slide(tmp_path, WIDER))
        raise KeyboardInterrupt

    def die(uri: str, ids: set[str]) -> None:
        withdraw_changed(uri, ids)
        raise KeyboardInterrupt

    before[2] = swap_and_die  # the plain image is the first chunk
    with pytest.raises(KeyboardInterrupt):
        run(str(tmp_path / "in"), tmp_path / "out", bundle_uri)
    assert len(rows(tmp_path / "out", "regions")) > 1, "the first chunk of the slide is there"
    with monkeypatch.context() as patch:
        patch.setattr(commit, "withdraw_changed", die)
        patch.setattr(commit, "run_tasks", run_here)  # even if this process has joined a cluster
        with pytest.raises(KeyboardInterrupt):
            run(str(tmp_path / "in"), tmp_path / "out", bundle_uri)
    finished, new = run(str(tmp_path / "in"), tmp_path / "out", bundle_uri)
    assert (finished.images, new.images) == ({"ok": 1, "changed": 1}, {"ok": 1})
    assert new.done_before == 1
    check_all_are_new(str(tmp_path / "in"), tmp_path / "out", size=WIDER)


@pytest.mark.parametrize("cached", [True, False])
def test_a_staged_slide_is_the_one_that_was_listed(
    s3: str,
    bundle_uri: str,
    tmp_path: Path,
    before: dict[int, Callable[[], None]],
    cached: bool,
) -> None:
    """From the cache the old content is read to its end; a node that lacks it reads none of it."""
    place = f"{s3}/staged-{tmp_path.name}"
    storage.write_bytes(f"{place}/swapped.tiff", slide(tmp_path, WIDE))
    (old,) = storage.walk_files(place)

    def swap() -> None:
        storage.write_bytes(f"{place}/swapped.tiff", slide(tmp_path, WIDER))
        if not cached:
            shutil.rmtree(tmp_path / "cache")

    before[1] = swap
    (first,) = run(place, tmp_path / "out", bundle_uri)
    if cached:
        assert first.images == {"ok": 1}
        (image,) = rows(tmp_path / "out").itertuples()
        assert (image.source_etag, (image.height, image.width)) == (old.etag, WIDE)
        assert len(rows(tmp_path / "out", "regions")) == image.num_regions
    else:
        assert first.images == {"changed": 1}
    (second,) = run(place, tmp_path / "out", bundle_uri)
    assert second.images == {"ok": 1}
    (now,) = storage.walk_files(place)
    images = rows(tmp_path / "out")
    new = images[images["source_etag"] == now.etag]
    assert new[["height", "width"]].to_numpy().tolist() == [list(WIDER)]
