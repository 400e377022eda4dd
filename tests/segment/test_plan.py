"""The plan is the listing less what is done, each image once, however many there are."""

import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from resunet_ray import storage
from resunet_ray.config import SegmentConfig
from resunet_ray.schema import IMAGES
from resunet_ray.segment import layout
from resunet_ray.segment.planning.ledger import Ledger, SeenIds, read_ledger
from resunet_ray.segment.planning.listed import ListedImage
from resunet_ray.segment.planning.plan import Plan, list_new, read_chunk, write_plan
from resunet_ray.segment.planning.slides import SlidePlanner
from resunet_ray.segment.planning.survey import Surveyor
from resunet_ray.segment.rows import PlannedRegion

NOTHING = Ledger(np.empty(0, "S16"), {})


def images(count: int, *, start: int = 0) -> Iterator[ListedImage]:
    return (ListedImage(f"/in/{number}.png", "1") for number in range(start, start + count))


def plan_images(
    folder: Path, listing: Iterable[ListedImage], *, ledger: Ledger = NOTHING, retry: bool = False
) -> Plan:
    plan = Plan()
    write_plan(str(folder), list_new(listing, plan, ledger=ledger, retry_failed=retry), plan)
    return plan


def read_uris(folder: Path, chunk: int) -> list[str]:
    return [region.image.image_uri for region in read_chunk(str(folder), chunk)]


def test_every_image_is_in_one_chunk(tmp_path: Path) -> None:
    plan = plan_images(tmp_path, images(5000))
    chunks = [read_uris(tmp_path, chunk) for chunk in range(plan.chunks)]
    assert [uri for chunk in chunks for uri in chunk] == [
        f"/in/{number}.png" for number in range(5000)
    ]
    assert (plan.regions, plan.chunks) == (5000, 313)
    assert not (tmp_path / "plan" / f"{plan.chunks // 128 + 1:05d}.parquet").exists()


def test_a_chunk_never_mixes_archives(tmp_path: Path) -> None:
    def found() -> Iterator[ListedImage]:
        for archive in ("a.zip", "b.tar.gz"):
            yield from (ListedImage(archive, "1", member=f"{number}.png") for number in range(40))
        yield from images(3)

    plan = plan_images(tmp_path, found())
    chunks = [set(read_uris(tmp_path, chunk)) for chunk in range(plan.chunks)]
    assert [chunk for chunk in chunks if chunk & {"a.zip", "b.tar.gz"}] == [{"a.zip"}] * 3 + [
        {"b.tar.gz"}
    ] * 3


def test_what_is_listed_twice_is_planned_once(tmp_path: Path) -> None:
    plan = plan_images(tmp_path, [*images(100_000), *images(100_000), *images(5)])
    assert (plan.regions, plan.repeated) == (100_000, 100_005)


def test_the_ledger_knows_what_is_done_by_bundle_and_configuration(tmp_path: Path) -> None:
    names = [image.image_id.hex() for image in images(6)]
    bundles = ["b", "b", "b", "other", "b", "b"]
    statuses = ["ok", "empty", "failed", "ok", "partial", "failed"]
    rows = [
        {
            "image_id": name,
            "bundle_digest": bundle,
            "config_digest": "c",
            "status": status,
            "attempt": attempt,
        }
        for name, bundle, status, attempt in zip(
            names, bundles, statuses, [1, 1, 2, 1, 1, 1], strict=True
        )
    ]
    storage.write_table(
        str(tmp_path / layout.IMAGES / "run" / "0.parquet"),
        pa.Table.from_pylist(rows, schema=IMAGES),
    )
    ledger = read_ledger(str(tmp_path), bundle_digest="b", config_digest="c")
    plan = plan_images(tmp_path, images(8), ledger=ledger)
    assert (plan.regions, plan.done, plan.failed_before) == (3, 2, 3)
    assert read_uris(tmp_path, 0) == [
        "/in/3.png",
        "/in/6.png",
        "/in/7.png",
    ]
    plan = plan_images(tmp_path, images(8), ledger=ledger, retry=True)
    assert (plan.regions, sorted(plan.retried)) == (6, sorted([names[2], names[4], names[5]]))
    chunk = read_chunk(str(tmp_path), 0)
    assert {region.image.image_uri: region.attempt for region in chunk} == {
        "/in/2.png": 3, "/in/3.png": 1, "/in/4.png": 2,
        "/in/5.png": 2, "/in/6.png": 1, "/in/7.png": 1,
    }  # fmt: skip


def test_seen_ids_say_once_that_an_id_is_new() -> None:
    rng = np.random.default_rng(0)
    ids = np.array([number.tobytes() for number in rng.integers(0, 3000, (20_000, 2))], "S16")
    seen, new = SeenIds(), []
    for start in range(0, len(ids), 777):
        new += seen.add(ids[start : start + 777]).tolist()
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    np.testing.assert_array_equal(new, first)


def test_many_regions_of_many_slides_take_no_memory(tmp_path: Path) -> None:
    """Five slides of 4,000 regions each would take 50 MB at once. Plain images come last."""

    class Fake(Surveyor):
        def __call__(self, planned: PlannedRegion) -> Any:
            if "plain" in planned.image.image_uri:
                return iter([planned])
            place = replace(
                planned.place,
                height=512,
                width=512,
                num_regions=4000,
                slide_height=46_080,
                slide_width=46_080,
            )
            return (
                replace(
                    planned,
                    place=replace(
                        place, region_index=index, y=512 * (index // 90), x=512 * (index % 90)
                    ),
                )
                for index in range(4000)
            )

    config = SegmentConfig(input=("/in",), output=str(tmp_path), actors=0)
    surveyor = Fake(config, None, tile=512, context=64, resizes=False, stretches=False)
    slides = SlidePlanner(surveyor, folder=str(tmp_path / "survey"))
    names = ["/in/plain-0.tif", *(f"/in/{number}.tif" for number in range(5)), "/in/plain-1.tif"]
    plan = Plan()
    tracemalloc.start()
    listing = (ListedImage(name, "1") for name in names)
    images = list_new(listing, plan, ledger=NOTHING, retry_failed=False)
    write_plan(str(tmp_path), slides.plan(images), plan)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (plan.images, plan.regions) == (7, 20_002)
    assert peak < 20e6
    chunks = [sorted(set(read_uris(tmp_path, chunk))) for chunk in range(plan.chunks)]
    assert chunks[-1] == ["/in/plain-0.tif", "/in/plain-1.tif"]
    assert [len(names) for names in chunks[:-1]] == [1] * (plan.chunks - 1)
    assert [chunks[first] for first in plan.parts] == [
        [f"/in/{number}.tif"] for number in range(5)
    ] + [chunks[-1]]
