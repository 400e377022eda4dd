"""No image is lost or there twice, whatever fails.

Damaged files, a killed driver, images that kill the process, a store that is away, a second run.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import ray
import tifffile
from support import ROOT, call_job, read_output, run_job, write_pyramid

from resunet_ray import storage
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import decode_stored, encode_png
from resunet_ray.data.synthetic import generate_image
from resunet_ray.segment.planning.survey import Surveyor
from resunet_ray.segment.rows import PlannedRegion
from resunet_ray.segment.run import segment
from resunet_ray.segment.work.segmenter import Segmenter


def damaged(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Twelve ways to be no image, each with the stage at which it fails."""
    _, jpeg = cv2.imencode(".jpg", decode_stored(good))
    _, tiff = cv2.imencode(".tif", np.zeros((40, 50, 3), np.uint8))
    bomb = good[:16] + (50_000).to_bytes(4, "big") * 2 + good[24:29]
    bomb += zlib.crc32(bomb[12:29]).to_bytes(4, "big") + good[33:]
    return {
        "zero.png": (b"", "decode"),
        "cut.png": (good[: len(good) // 2], "decode"),
        "cut.jpg": (jpeg.tobytes()[:300], "decode"),
        "cut.tif": (tiff.tobytes()[: len(tiff) // 2], "open"),
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


def test_damaged_files_among_good_ones(
    bundle_uri: str, generated: Path, tmp_path: Path, cluster: str
) -> None:
    """Each is a row with the stage and the reason; the exit code says that there were too many."""
    good = cv2.resize(decode_stored(next((generated / "images").iterdir()).read_bytes()), (40, 30))
    (tmp_path / "in").mkdir()
    for number in range(20):
        (tmp_path / "in" / f"good-{number}.png").write_bytes(
            encode_png(np.roll(good, number, axis=0))
        )
    kinds = damaged(encode_png(good))
    assert len(kinds) == 12
    for number in range(60):
        name = sorted(kinds)[number % 12]
        (tmp_path / "in" / f"{number}-{name}").write_bytes(kinds[name][0])
    flags = [
        "--bundle",
        bundle_uri,
        "--input",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "out"),
    ]
    code, line, errors = call_job("segment", *flags)
    assert code == 3, errors
    assert line["images"] == {"ok": 20, "failed": 60}
    rows = read_output(str(tmp_path / "out"), "images")
    assert len(rows) == 80
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
        bundle=bundle_uri,
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        retry_failed=True,
        max_error_fraction=1,
    )
    assert [result.images for result in segment(again)] == [{"ok": 12, "failed": 48}]
    rows = read_output(str(tmp_path / "out"), "images")
    assert rows["image_id"].is_unique
    assert (rows["status"] == "ok").sum() == 32
    assert len(rows[(rows["status"] == "failed") & (rows["attempt"] == 2)]) == 48


def test_killed_it_ends_with_the_same_rows(bundle_uri: str, tmp_path: Path, cluster: str) -> None:
    """SIGKILL to the driver whenever a chunk is done; the same command finishes the run."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(64):
        (tmp_path / "in" / f"{number}.png").write_bytes(
            encode_png(rng.integers(0, 256, (60, 70, 3), dtype=np.uint8))
        )
    command = [
        "--bundle",
        bundle_uri,
        "--input",
        str(tmp_path / "in"),
        "--precision",
        "fp32",
        "--readers",
        "1",
    ]
    killed = [*command, "--output", str(tmp_path / "killed")]
    kill_after_a_chunk(
        killed, tmp_path / "killed" / "regions", log=tmp_path / "log", address=cluster
    )
    code, line, errors = run_job("segment", *killed, address=cluster)
    assert (code, line["status"], line["images"]) == (0, "done", {"ok": 64}), errors
    whole = SegmentConfig(
        bundle=bundle_uri,
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "whole"),
        precision="fp32",
    )
    assert [result.images for result in segment(whole)] == [{"ok": 64}]
    assert "resuming run" in errors
    columns = ["image_id", "image_uri", "mask", "num_instances", "confidence_sum", "status"]
    one, other = (
        read_output(str(tmp_path / name), "regions", columns=columns).sort_values(
            "image_id", ignore_index=True
        )
        for name in ("killed", "whole")
    )
    pd.testing.assert_frame_equal(one, other)
    assert len(one) == 64
    assert one["image_id"].is_unique
    assert len(list((tmp_path / "killed" / "runs").iterdir())) == 1
    images = read_output(str(tmp_path / "killed"), "images")
    assert sorted(images["image_id"]) == sorted(one["image_id"])


def kill_after_a_chunk(flags: list[str], regions: Path, *, log: Path, address: str) -> None:
    before = count_files(regions)
    with log.open("ab") as file:
        command = [sys.executable, str(ROOT / "jobs" / "segment.py"), *flags]
        driver = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "RAY_ADDRESS": address}
        )
    while driver.poll() is None and count_files(regions) <= before:
        time.sleep(0.02)
    assert driver.poll() is None, log.read_text()
    driver.kill()
    driver.wait()


def count_files(folder: Path) -> int:
    return len(list(folder.glob("*/*.parquet"))) if folder.exists() else 0


def test_dead_after_any_write_it_ends_with_what_an_undisturbed_run_gives(
    dark_bundle: str, generated: Path, tmp_path: Path
) -> None:
    """Two chunks with notes, the tables of two parts, the record twice, the lease."""
    (tmp_path / "in").mkdir()
    for path in sorted((generated / "images").iterdir())[:3]:
        shutil.copy(path, tmp_path / "in")
    slide, _ = generate_image(
        600, 700, modality="stained", num_nuclei=60, rng=np.random.default_rng(0)
    )
    write_pyramid(tmp_path / "in" / "slide.tiff", slide)
    command = [
        sys.executable,
        str(Path(__file__).with_name("crashing.py")),
        dark_bundle,
        str(tmp_path / "in"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert [death["code"] for death in deaths] == [0] * len(deaths), done.stderr
    written = [re.sub(r"\d{8}T\d{6}Z-\w{6}", "RUN", death["unwritten"]) for death in deaths]
    for name in (
        "runs/RUN/plan/00000.parquet",
        "runs/RUN/run.json",
        "regions/RUN/000001.parquet",
        "instances/RUN/00001.parquet",
    ):
        assert name in written
    assert written.count("runs/RUN/run.json") == 2
    whole = read_tables(tmp_path / "out" / str(len(deaths)))
    assert len(whole["images"]) == 4
    for death in deaths:
        left = [
            str(path.relative_to(death["output"]))
            for path in Path(death["output"]).glob("*/*/**/.*")
        ]
        assert left == [], death["unwritten"]
        for name, table in read_tables(death["output"]).items():
            pd.testing.assert_frame_equal(
                table, whole[name], obj=f"{name} after a death before {death['unwritten']}"
            )


def read_tables(output: Path | str) -> dict[str, pd.DataFrame]:
    """What an output holds, but for what differs from run to run."""
    columns = {
        "images": ["image_uri", "status", "num_nuclei", "foreground_fraction"],
        "regions": ["image_uri", "y", "x", "mask", "num_instances"],
        "instances": ["image_id", "centroid_y", "centroid_x", "geometry"],
    }
    return {
        name: read_output(str(output), name, columns=wanted).sort_values(
            wanted[:3], ignore_index=True
        )
        for name, wanted in columns.items()
    }


class Poisoned(Segmenter):
    """Dies over one image, as a fault in a decoder would have it."""

    def _read(self, planned: PlannedRegion) -> Any:
        if "poison" in planned.image.image_uri:
            os._exit(1)
        return super()._read(planned)


@pytest.mark.campaign
def test_an_image_that_kills_the_process_is_named_and_the_rest_completes(
    bundle_uri: str, tmp_path: Path, cluster: str, generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("resunet_ray.segment.work.actors.Segmenter", Poisoned)
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted((generated / "images").iterdir())):
        (tmp_path / "in" / f"{'poison' if number == 7 else number}.png").write_bytes(
            path.read_bytes()
        )
    (result,) = segment(
        SegmentConfig(
            bundle=bundle_uri, input=(str(tmp_path / "in"),), output=str(tmp_path / "out")
        )
    )
    assert result.images == {"ok": 19, "failed": 1}
    rows = read_output(str(tmp_path / "out"), "images")
    (failed,) = rows[rows["status"] == "failed"].itertuples()
    assert (failed.error_stage, Path(failed.image_uri).name) == ("crash", "poison.png")
    assert "the process died 2 times on" in failed.error_message
    assert not (tmp_path / "out" / "runs" / str(result.run_id) / "attempts").exists()


class PoisonedSurveyor(Surveyor):
    """The same over a slide's header."""

    def __call__(self, planned: PlannedRegion) -> list[PlannedRegion]:
        if "poison" in planned.image.image_uri:
            os._exit(1)
        return super().__call__(planned)


def test_a_slide_that_kills_who_looks_at_it_is_named_and_the_rest_completes(
    bundle_uri: str, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("resunet_ray.segment.run.Surveyor", PoisonedSurveyor)
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "poison", "c"):
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", np.zeros((40, 50, 3), np.uint8))
    (result,) = segment(
        SegmentConfig(
            bundle=bundle_uri, input=(str(tmp_path / "in"),), output=str(tmp_path / "out")
        )
    )
    assert result.images == {"ok": 3, "failed": 1}
    rows = read_output(str(tmp_path / "out"), "images")
    (failed,) = rows[rows["status"] == "failed"].itertuples()
    assert (failed.error_stage, Path(failed.image_uri).name) == ("crash", "poison.tif")
    assert "the process died 2 times on" in failed.error_message
    assert {path.name for path in (tmp_path / "out" / "runs" / str(result.run_id)).iterdir()} == {
        "plan",
        "run.json",
    }


def watch(condition: Callable[[], bool], *, then: Callable[[], Any]) -> Any:
    def wait() -> None:
        for _ in range(3000):
            if condition():
                then()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_second_run_over_the_same_output_leaves_it_alone(
    bundle_uri: str, generated: Path, tmp_path: Path
) -> None:
    flags = [
        "--bundle",
        bundle_uri,
        "--input",
        str(generated / "images"),
        "--output",
        str(tmp_path),
    ]
    with storage.hold_lease(str(tmp_path), seconds=30) as lease:
        code, line, errors = call_job("segment", *flags)
    assert (code, line["status"]) == (0, "leased"), errors
    assert lease.holder in line["message"]
    code, line, errors = call_job("segment", *flags, "--dry-run")
    assert (code, line["status"], line["images"]) == (0, "planned", {"planned": 20}), errors


@pytest.mark.campaign
def test_a_store_that_is_away_costs_time_and_nothing_else(
    bundle_uri: str,
    s3: str,
    s3_server: subprocess.Popen[bytes],
    cluster: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The whole object store stands still in the middle of a run, input and output alike."""
    rng = np.random.default_rng(2)
    for number in range(96):
        storage.write_bytes(
            f"{s3}/away-in/{number}.png",
            encode_png(rng.integers(0, 256, (150, 170, 3), dtype=np.uint8)),
        )

    def stop() -> None:
        s3_server.send_signal(signal.SIGSTOP)
        time.sleep(8)
        s3_server.send_signal(signal.SIGCONT)

    begun = time.monotonic()
    stopper = watch(
        lambda: time.monotonic() > begun + 1 and storage.exists(f"{s3}/away-out/regions"), then=stop
    )
    (result,) = segment(
        SegmentConfig(
            bundle=bundle_uri, input=(f"{s3}/away-in",), output=f"{s3}/away-out", readers=1
        )
    )
    stopper.join()
    assert time.monotonic() > begun + 8
    assert result.images == {"ok": 96}
    assert read_output(f"{s3}/away-out", "images")["image_id"].is_unique
