"""Every image is segmented once: whatever its kind, whatever it holds, whenever the run is killed."""

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import duckdb
import geopandas
import numpy as np
import pandas as pd
import pytest
import ray
import shapely
from support import ROOT, run_job

from resunet_ray import storage
from resunet_ray.bundle import load_bundle
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import decode_image, decode_stored, encode_png
from resunet_ray.errors import InputError
from resunet_ray.model.instances import find_instances
from resunet_ray.report.segmentation import write_segmentation_report
from resunet_ray.segment.export import export_png
from resunet_ray.segment.run import Segmented, segment
from resunet_ray.segment.segmenter import Segmenter


@pytest.fixture(scope="module")
def archive(s3: str, generated: Path) -> str:
    """In object storage: ten images under a prefix, five in a zip, three in a tar, with names of every kind."""
    prefix = f"{s3}/archive"
    files = sorted((generated / "images").iterdir())
    for number, path in enumerate(files[:10]):
        storage.write_bytes(f"{prefix}/{'deep/ü b/' * (number % 2)}{path.name}", path.read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in files[10:15]:
            file.write(path, f"../{path.name}")
    storage.write_bytes(f"{prefix}/more.zip", packed.getvalue())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in files[15:18]:
            tar.add(path, f"/absolute/{path.name}")
    storage.write_bytes(f"{prefix}/and.tar", packed.getvalue())
    return prefix


@pytest.fixture(scope="module")
def first(archive: str, bundle_uri: str, s3: str, generated: Path, cluster: None) -> tuple[SegmentConfig, Segmented]:
    config = SegmentConfig(bundle=bundle_uri, input=(archive,), output=f"{s3}/segmented", labels=True, mpp=0.5, precision="fp32")
    (result,) = segment(config)
    return config, result


def table(output: str, folder: str, *, columns: list[str] | None = None) -> pd.DataFrame:
    parts = [
        storage.read_table(f"{output}/{folder}/{file.path}", columns=columns).to_pandas()
        for file in storage.walk_files(f"{output}/{folder}")
    ]
    return pd.concat(parts, ignore_index=True)


def test_each_image_is_there_once_with_the_mask_that_the_bundle_gives(
    first: tuple[SegmentConfig, Segmented], archive: str
) -> None:
    config, result = first
    assert result.images == {"ok": 18}, table(config.output, "images")["error_message"].tolist()
    assert 0 < result.model_busy_fraction <= 1
    images, regions = table(config.output, "images"), table(config.output, "regions")
    assert len(images) == len(regions) == 18
    assert images["image_id"].is_unique
    assert sorted(images["image_id"]) == sorted(regions["image_id"])
    bundle = load_bundle(config.bundle)
    for row in regions.itertuples():
        content = storage.read_bytes(row.image_uri)
        if row.image_uri.endswith(".zip"):
            content = zipfile.ZipFile(io.BytesIO(content)).read(row.member)
        elif row.image_uri.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                member = tar.extractfile(row.member)
                assert member is not None
                content = member.read()
        image = decode_image(content, name=row.image_uri)
        (probability,) = bundle.predict([image], batch_size=1, precision="fp32")
        labels = find_instances(probability, config=bundle.info.instances)
        np.testing.assert_array_equal(decode_stored(row.mask) > 0, labels > 0)
        np.testing.assert_array_equal(decode_stored(row.labels), labels)
        assert row.num_instances == labels.max()
    assert images.set_index("image_id")["num_nuclei"].to_dict() == regions.set_index("image_id")["num_instances"].to_dict()


def test_other_programs_read_the_tables(first: tuple[SegmentConfig, Segmented], tmp_path: Path) -> None:
    config, _ = first
    for folder in ("images", "instances"):
        for number, file in enumerate(storage.walk_files(f"{config.output}/{folder}")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.parquet").write_bytes(storage.read_bytes(f"{config.output}/{folder}/{file.path}"))
    found = duckdb.read_parquet(f"{tmp_path}/images/*").aggregate("sum(num_nuclei), sum(foreground_fraction * height * width)")
    nuclei, area = found.fetchall()[0]
    shapes = pd.concat([geopandas.read_parquet(path) for path in (tmp_path / "instances").iterdir()])
    assert len(shapes) == nuclei > 0
    assert shapes["instance_id"].is_unique
    assert shapes.geometry.area.sum() == pytest.approx(area)
    assert shapes["area_um2"].sum() == pytest.approx(area * 0.25)
    assert shapely.is_valid(shapes.geometry.to_numpy()).all()
    left = duckdb.read_parquet(f"{tmp_path}/instances/*").aggregate("sum(bbox.xmin)").fetchall()[0][0]
    assert shapes.geometry.bounds["minx"].sum() == pytest.approx(left)


def test_masks_become_files_that_any_viewer_opens(first: tuple[SegmentConfig, Segmented]) -> None:
    config, result = first
    assert export_png(config.output) == 36
    regions = table(config.output, "regions").set_index("image_id")
    for image_id, row in regions.iterrows():
        (name,) = (name for name, _ in files(config.output, str(result.run_id)) if f".{image_id[:8]}.mask" in name)
        assert storage.read_bytes(f"{config.output}/exports/png/{result.run_id}/{name}") == row["mask"]
    with pytest.raises(InputError, match="has no regions of run other: found"):
        export_png(config.output, run_ids=["other"])


def test_the_report_shows_images_wherever_they_lie(
    first: tuple[SegmentConfig, Segmented], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = first
    monkeypatch.setattr("resunet_ray.report.segmentation._SHOWN", 18)
    page = storage.read_bytes(write_segmentation_report(config.output, run_id=str(result.run_id))).decode()
    assert page.count("<img") == 18
    assert page.count("<svg") == 1
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "nothing is fetched from elsewhere"


def test_a_bad_row_of_a_manifest_is_one_failed_image(bundle_uri: str, generated: Path, tmp_path: Path, cluster: None) -> None:
    good, other, *_ = sorted((generated / "images").iterdir())
    rows = {good: "0.5", other: "0", tmp_path / "gone.png": "", "ftp://lab/a.png": "1"}
    (tmp_path / "list.csv").write_text("uri,mpp\n" + "".join(f"{uri},{mpp}\n" for uri, mpp in rows.items()))
    config = SegmentConfig(bundle=bundle_uri, input=(str(tmp_path / "list.csv"),), output=str(tmp_path / "out"))
    (result,) = segment(config)
    assert result.images == {"ok": 1, "failed": 3}
    found = table(config.output, "images").set_index("image_uri")
    assert "its mpp is 0: expected microns per pixel" in found.loc[str(other), "error_message"]
    assert found.loc[str(good), "nuclei_per_mm2"] > 0
    page = storage.read_bytes(write_segmentation_report(config.output, run_id=str(result.run_id))).decode()
    assert "gone.png" in page


def files(output: str, run_id: str) -> list[tuple[str, int]]:
    return list(storage.list_files(f"{output}/exports/png/{run_id}"))


def test_the_same_again_does_nothing_and_a_change_is_work(
    first: tuple[SegmentConfig, Segmented], archive: str, generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = first
    with monkeypatch.context() as patch:
        patch.setattr("resunet_ray.segment.run.Segmenter", None)  # no model is loaded
        (again,) = segment(config)
    assert (again.run_id, again.done_before, again.regions) == (None, 18, 0)
    (other,) = segment(SegmentConfig(**{**vars(config), "dry_run": True, "threshold": 0.6}))
    assert (other.done_before, other.regions) == (0, 18)
    content = sorted((generated / "images").iterdir())[-1].read_bytes()
    storage.write_bytes(f"{archive}/new.png", content)
    (result,) = segment(config)
    assert (result.images, result.done_before) == ({"ok": 1}, 18)
    assert len(table(config.output, "images")) == 19


def damaged(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Twelve ways to be no image, each with the stage at which it fails."""
    _, jpeg = cv2.imencode(".jpg", decode_stored(good))
    _, tiff = cv2.imencode(".tif", np.zeros((40, 50, 3), np.uint8))
    bomb = good[:16] + (50_000).to_bytes(4, "big") * 2 + good[24:29]
    bomb += __import__("zlib").crc32(bomb[12:29]).to_bytes(4, "big") + good[33:]
    return {
        "zero.png": (b"", "decode"),
        "cut.png": (good[: len(good) // 2], "decode"),
        "cut.jpg": (jpeg.tobytes()[:300], "decode"),
        "cut.tif": (tiff.tobytes()[: len(tiff) // 2], "decode"),
        "text.png": (b"hello, this is text", "decode"),
        "page.jpg": (b"<html><body>404</body></html>", "decode"),
        "noise.bmp": (bytes(range(256)) * 4, "decode"),
        "bomb.png": (bomb, "decode"),
        "header.webp": (b"RIFF\x00\x00\x00\x00WEBP", "decode"),
        "flipped.png": (good[:60] + bytes([good[60] ^ 255]) + good[61:], "decode"),
        "clear.png": (encode_rgba(), "decode"),
        "zip.jp2": (b"PK\x03\x04" + bytes(100), "decode"),
    }


def encode_rgba() -> bytes:
    _, content = cv2.imencode(".png", np.full((20, 30, 4), 100, np.uint8))
    return content.tobytes()


def test_damaged_files_among_good_ones(bundle_uri: str, generated: Path, tmp_path: Path, cluster: None) -> None:
    """Each is a row that says at which stage it failed and why; the exit code says that there were too many."""
    good = cv2.resize(decode_stored(next((generated / "images").iterdir()).read_bytes()), (40, 30))
    (tmp_path / "in").mkdir()
    for number in range(50):
        (tmp_path / "in" / f"good-{number}.png").write_bytes(encode_png(np.roll(good, number, axis=0)))
    kinds = damaged(encode_png(good))
    assert len(kinds) == 12
    for number in range(240):
        name = sorted(kinds)[number % 12]
        (tmp_path / "in" / f"{number}-{name}").write_bytes(kinds[name][0])
    flags = ["--bundle", bundle_uri, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    code, line, errors = run_job("segment", *flags)
    assert code == 3, errors
    assert line["images"] == {"ok": 50, "failed": 240}
    rows = table(str(tmp_path / "out"), "images")
    assert len(rows) == 290
    failed = rows[rows["status"] == "failed"]
    for row in failed.itertuples():
        name = Path(row.image_uri).name.split("-", 1)[1]
        assert row.error_stage == kinds[name][1], (name, row.error_message)
        assert row.image_uri in row.error_message
        assert row.error_type == "ImageError"
    assert rows[rows["status"] == "ok"]["image_uri"].str.contains("good-").all()
    for number in range(12):  # mended
        path = next((tmp_path / "in").glob(f"{number}-*"))
        path.write_bytes(encode_png(good))
    again = SegmentConfig(
        bundle=bundle_uri, input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), retry_failed=True, max_error_fraction=1
    )
    assert [result.images for result in segment(again)] == [{"ok": 12, "failed": 228}]
    rows = table(str(tmp_path / "out"), "images")
    assert rows["image_id"].is_unique
    assert (rows["status"] == "ok").sum() == 62
    assert len(rows[(rows["status"] == "failed") & (rows["attempt"] == 2)]) == 228


def test_killed_it_ends_with_the_same_rows(bundle_uri: str, tmp_path: Path, cluster: None) -> None:
    """SIGKILL to the driver, whenever another lot was done; the same command finishes what was begun."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(96):
        (tmp_path / "in" / f"{number}.png").write_bytes(encode_png(rng.integers(0, 256, (60, 70, 3), dtype=np.uint8)))
    command = ["--bundle", bundle_uri, "--input", str(tmp_path / "in"), "--precision", "fp32", "--readers", "1"]
    kill_after_a_lot([*command, "--output", str(tmp_path / "killed")], tmp_path / "killed" / "regions", tmp_path / "log")
    code, line, errors = run_job("segment", *command, "--output", str(tmp_path / "killed"))
    assert (code, line["status"], line["images"]) == (0, "done", {"ok": 96}), errors
    whole = SegmentConfig(bundle=bundle_uri, input=(str(tmp_path / "in"),), output=str(tmp_path / "whole"), precision="fp32")
    assert [result.images for result in segment(whole)] == [{"ok": 96}]
    assert "resuming run" in errors
    columns = ["image_id", "image_uri", "mask", "num_instances", "confidence_sum", "status"]
    one, other = (
        table(str(tmp_path / name), "regions", columns=columns).sort_values("image_id", ignore_index=True)
        for name in ("killed", "whole")
    )
    pd.testing.assert_frame_equal(one, other)
    assert len(one) == 96
    assert one["image_id"].is_unique
    assert len(list((tmp_path / "killed" / "runs").iterdir())) == 1
    images = table(str(tmp_path / "killed"), "images")
    assert sorted(images["image_id"]) == sorted(one["image_id"])


def kill_after_a_lot(flags: list[str], regions: Path, log: Path) -> None:
    before = count_files(regions)
    with log.open("ab") as file:
        driver = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "segment.py"), *flags, "--lease-seconds", "5"], stdout=file, stderr=file
        )
    while driver.poll() is None and count_files(regions) <= before:
        time.sleep(0.02)
    assert driver.poll() is None, log.read_text()
    driver.kill()
    driver.wait()
    time.sleep(7)  # its lease runs out


def count_files(folder: Path) -> int:
    return len(list(folder.glob("*/*.parquet"))) if folder.exists() else 0


def test_a_dead_actor_is_replaced(bundle_uri: str, tmp_path: Path, cluster: None, generated: Path) -> None:
    """SIGKILL to the actor in the middle of its work: the lot is done again, and each image is there once."""
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    for number in range(96):
        (tmp_path / "in" / f"{number}.png").write_bytes(encode_png(rng.integers(0, 256, (150, 170, 3), dtype=np.uint8)))
    killed: list[int] = []
    killer = watch(lambda: count_files(tmp_path / "out" / "regions") > 0, then=lambda: killed.extend(kill_actors()))
    (result,) = segment(SegmentConfig(bundle=bundle_uri, input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), readers=1))
    killer.join()
    assert killed
    assert result.images == {"ok": 96}
    assert table(str(tmp_path / "out"), "images")["image_id"].is_unique


class Poisoned(Segmenter):
    """Dies over one image, as a fault in a decoder would have it."""

    def _read(self, planned: dict[str, Any]) -> Any:
        if "poison" in planned["image_uri"]:
            os._exit(1)
        return super()._read(planned)


def test_an_image_that_kills_the_process_is_named_and_the_rest_completes(
    bundle_uri: str, tmp_path: Path, cluster: None, generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("resunet_ray.segment.run.Segmenter", Poisoned)
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted((generated / "images").iterdir())):
        (tmp_path / "in" / f"{'poison' if number == 7 else number}.png").write_bytes(path.read_bytes())
    (result,) = segment(SegmentConfig(bundle=bundle_uri, input=(str(tmp_path / "in"),), output=str(tmp_path / "out")))
    assert result.images == {"ok": 19, "failed": 1}
    rows = table(str(tmp_path / "out"), "images")
    (failed,) = rows[rows["status"] == "failed"].itertuples()
    assert (failed.error_stage, Path(failed.image_uri).name) == ("crash", "poison.png")
    assert "the process died 2 times over" in failed.error_message
    assert not (tmp_path / "out" / "runs" / str(result.run_id) / "attempts").exists()


def kill_actors() -> list[int]:
    """Ends this test's own actors; their ids."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if status.read_bytes().startswith(b"ray::MapWorker") and mine(pid := int(status.parent.name)):
                os.kill(pid, signal.SIGKILL)
                found.append(pid)
        except OSError:
            continue
    return found


def mine(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
    return False


def watch(condition: Callable[[], bool], *, then: Callable[[], Any]) -> Any:
    import threading

    def wait() -> None:
        for _ in range(3000):
            if condition():
                then()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_second_run_over_the_same_output_leaves_it_alone(bundle_uri: str, generated: Path, tmp_path: Path) -> None:
    flags = ["--bundle", bundle_uri, "--input", str(generated / "images"), "--output", str(tmp_path)]
    with storage.hold_lease(str(tmp_path), seconds=30) as lease:
        code, line, errors = run_job("segment", *flags)
    assert (code, line["status"]) == (0, "leased"), errors
    assert lease.holder in line["message"]
    code, line, errors = run_job("segment", *flags, "--dry-run")
    assert (code, line["status"], line["images"]) == (0, "planned", {"planned": 20}), errors
