"""What a storage did on one night is no verdict on an image: a later night mends it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from benchmarks.faulty import Answer, faulty_store
from machine import MetadataService
from support import read_output

from resunet_ray import storage
from resunet_ray.archive import segment_archive
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import encode_png
from resunet_ray.data.raster.planes import EVERYTHING
from resunet_ray.errors import ResourceError
from resunet_ray.schema import IMAGES
from resunet_ray.segment.planning.ledger import read_ledger
from resunet_ray.segment.rows import ImageRef, PlannedRegion
from resunet_ray.segment.run import SegmentationResult, segment
from resunet_ray.segment.work.sample import Sample, read_image
from resunet_ray.storage import files

IMAGES_OF_A_NIGHT = 10


class Store:
    """The storage, and how it answers requests for the images."""

    def __init__(self, images: str) -> None:
        self.images, self.answers = images, dict[str, list[Answer]]()
        self.answer_all: Callable[[], Answer] = lambda: None

    def decide(self, method: str, path: str) -> Answer:
        """Answer as told for a name, once for each entry; the last entry stays."""
        if method not in ("GET", "HEAD") or not path.endswith(".png"):
            return None
        answers = self.answers.get(path.rsplit("/", 1)[-1])
        return (
            self.answer_all()
            if not answers
            else answers[0]
            if len(answers) == 1
            else answers.pop(0)
        )


@pytest.fixture
def store(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Some good images in a bucket behind a faulty server; no pause takes time."""
    images = f"{s3}/nights-{tmp_path.name}"
    for number in range(IMAGES_OF_A_NIGHT):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        storage.write_bytes(f"{images}/{number}.png", encode_png(pixels))
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=lambda _: None))
    told = Store(images)
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], told.decide) as seen:
        monkeypatch.setenv("AWS_ENDPOINT_URL", seen.endpoint)
        yield told


def configure(store: Store, output: Path, bundle: str) -> SegmentConfig:
    return SegmentConfig(bundle=bundle, input=(store.images,), output=str(output), actors=0)


def run(config: SegmentConfig) -> SegmentationResult:
    return segment(config)[-1]


def rows(output: Path) -> pd.DataFrame:
    found = read_output(str(output), "images")
    assert found["image_id"].is_unique
    return found


def test_one_denied_image_is_tried_again_by_itself(
    store: Store, bundle_uri: str, tmp_path: Path
) -> None:
    config = configure(store, tmp_path / "out", bundle_uri)
    store.answers = {"3.png": [403]}
    first = run(config)
    assert (first.images, first.unclear) == ({"ok": 9, "failed": 1}, 1)
    (failed,) = rows(tmp_path / "out").query("status == 'failed'").itertuples()
    assert failed.image_uri.endswith("/3.png")
    assert (failed.error_kind, failed.error_stage) == ("unclear", "read")
    store.answers = {}
    second = run(config)
    assert (second.images, second.done_before) == ({"ok": 1}, 9)
    assert rows(tmp_path / "out")["status"].tolist() == ["ok"] * IMAGES_OF_A_NIGHT


def test_a_night_that_finds_nothing_new_still_tells_of_failed_images(
    store: Store, bundle_uri: str, tmp_path: Path
) -> None:
    config = configure(store, tmp_path / "out", bundle_uri)
    store.answers = {"3.png": [403]}
    statuses = [segment_archive(config) for _ in range(3)]
    assert [done.status for done in statuses] == ["too many errors"] * 3
    assert [done.result.failed_before for done in statuses] == [0, 0, 1], "the third comes too soon"
    assert rows(tmp_path / "out")["attempt"].max() == 2


def test_credentials_that_are_renewed_in_time_leave_no_trace(
    store: Store, bundle_uri: str, tmp_path: Path
) -> None:
    store.answers = {f"{number}.png": [400, 400, None] for number in range(IMAGES_OF_A_NIGHT)}
    assert run(configure(store, tmp_path / "out", bundle_uri)).images == {"ok": IMAGES_OF_A_NIGHT}


def test_credentials_that_expire_end_the_run_without_a_row(
    store: Store, bundle_uri: str, tmp_path: Path
) -> None:
    """The same command finishes it once they are renewed."""
    config = configure(store, tmp_path / "out", bundle_uri)
    store.answers = {f"{number}.png": [(400, "ExpiredToken")] for number in (6, 7, 8, 9)}
    with pytest.raises(ResourceError, match="refuses the credentials.*Renew them"):
        run(config)
    assert not (tmp_path / "out" / "images").exists()
    store.answers = {}
    finished, nothing = segment(config)
    assert (finished.images, nothing.images) == ({"ok": IMAGES_OF_A_NIGHT}, {})
    assert rows(tmp_path / "out")["status"].tolist() == ["ok"] * IMAGES_OF_A_NIGHT


@pytest.mark.parametrize(
    ("answer", "first", "last"),
    [(503, 15, 60), ((400, "ExpiredToken"), 15, 10**6), (403, 0, 10**6)],
    ids=str,
)
def test_what_broke_one_night_is_made_good_by_the_next(
    store: Store, bundle_uri: str, tmp_path: Path, answer: Answer, first: int, last: int
) -> None:
    """From one request for an image to another, each is answered so."""
    for number in range(IMAGES_OF_A_NIGHT, 40):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        storage.write_bytes(f"{store.images}/{number}.png", encode_png(pixels))
    config = configure(store, tmp_path / "out", bundle_uri)
    asked = iter(range(10**9))
    store.answer_all = lambda: answer if first <= next(asked) < last else None
    with suppress(ResourceError):
        run(config)
    assert next(asked) > first
    store.answer_all = lambda: None
    assert segment_archive(config).status == "done"
    assert rows(tmp_path / "out")["status"].tolist() == ["ok"] * 40


def test_a_busy_metadata_service_costs_no_image(
    machine: MetadataService, store: Store, bundle_uri: str, tmp_path: Path
) -> None:
    """It refuses seven of ten requests all night, and gives out what is soon to expire."""
    machine.decide = lambda number: 429 if (number * 7) % 10 < 7 else None
    machine.valid = timedelta(minutes=5)
    assert segment_archive(configure(store, tmp_path / "out", bundle_uri)).status == "done"
    assert rows(tmp_path / "out")["status"].tolist() == ["ok"] * IMAGES_OF_A_NIGHT
    assert machine.count_fetches() <= 6


def test_when_most_images_are_denied_none_of_them_is_to_blame(
    store: Store, bundle_uri: str, tmp_path: Path
) -> None:
    """The store lets this process in, but to one of ten images only."""
    config = configure(store, tmp_path / "out", bundle_uri)
    store.answers = {f"{number}.png": [403] for number in range(1, IMAGES_OF_A_NIGHT)}
    with pytest.raises(ResourceError, match="9 of 10 images that were to be read together are"):
        run(config)
    assert not (tmp_path / "out" / "images").exists()
    finished, nothing = segment(replace(config, max_unclear_fraction=1))
    assert (finished.images, finished.unclear) == ({"ok": 1, "failed": 9}, 9)
    assert nothing.images == {}, "they are not tried twice by one command"
    store.answers = {}
    assert run(config).images == {"ok": 9}
    assert rows(tmp_path / "out")["status"].tolist() == ["ok"] * IMAGES_OF_A_NIGHT


def test_a_share_that_is_gone_says_nothing_about_its_images(tmp_path: Path) -> None:
    """A single file that is gone is unclear."""
    cache = storage.Cache.of(SegmentConfig(input=("a",), output=str(tmp_path)))
    (tmp_path / "share").mkdir()

    def read(name: str) -> Sample:
        image = ImageRef(image_id="0", image_uri=f"{tmp_path}/share/{name}")
        planned = PlannedRegion(image=image)
        return read_image(
            planned, cache=cache, max_pixels=10**6, measure=False, selection=EVERYTHING
        )

    failure = read("a.png").failure
    assert failure is not None
    assert (failure.error_kind, failure.error_stage) == ("unclear", "read")
    (tmp_path / "share" / "b.png").write_bytes(b"no image")
    verdict = read("b.png").failure
    assert verdict is not None
    assert (verdict.error_kind, verdict.error_stage) == ("image", "decode")
    shutil.rmtree(tmp_path / "share")
    with pytest.raises(ResourceError, match="share is gone: is its disk or share still mounted"):
        read("a.png")


def test_a_manifest_s_missing_files_are_unclear(tmp_path: Path, bundle_uri: str) -> None:
    (tmp_path / "images.csv").write_text(f"uri\n{tmp_path}/a.png\n{tmp_path}/none/b.png\n")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(encode_png(pixels))
    table, output = str(tmp_path / "images.csv"), str(tmp_path / "out")
    config = SegmentConfig(bundle=bundle_uri, input=(table,), output=output, actors=0)
    assert (run(config).images, run(config).failed_before) == ({"ok": 1, "failed": 1}, 0)
    (failed,) = rows(tmp_path / "out").query("status == 'failed'").itertuples()
    assert (failed.error_kind, failed.error_stage, failed.attempt) == ("unclear", "list", 2)


def test_an_image_is_tried_again_three_times_at_growing_distances(tmp_path: Path) -> None:
    """Those of kind `image`, and those of earlier versions, are not."""
    now, hours = datetime.now(UTC), (1, 19, 21, 67, 69, 1000)
    wanted = {(1, 1), *((2, hour) for hour in hours[2:]), (3, 69), (3, 1000)}
    wanted |= {(1, hour) for hour in hours}
    known: dict[str, tuple[str | None, int, int]] = {}
    for kind in ("unclear", "image", None):
        for attempt in (1, 2, 3, 4):
            for hour in hours:
                known[f"{len(known):030x}ff"] = kind, attempt, hour
    base = {"bundle_digest": "b", "config_digest": "c", "status": "failed"}
    table = [
        {
            "image_id": name,
            "error_kind": kind,
            "attempt": attempt,
            "finished_at": now - timedelta(hours=hour),
            **base,
        }
        for name, (kind, attempt, hour) in known.items()
    ]
    storage.write_table(f"{tmp_path}/images/r/0.parquet", pa.Table.from_pylist(table, IMAGES))
    ledger = read_ledger(str(tmp_path), bundle_digest="b", config_digest="c")
    due = {known[name.hex()] for name in ledger.due}
    assert due == {("unclear", *key) for key in wanted}
    assert len(ledger.failed) == len(known)
    never = read_ledger(str(tmp_path), bundle_digest="b", config_digest="c", retries=0)
    assert not never.due
