"""A run that is given up leaves nothing; an interrupted run is found whatever its name."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import call_job, read_output

from resunet_ray import storage
from resunet_ray.config import GiveUpConfig, SegmentConfig
from resunet_ray.segment.give_up import give_up
from resunet_ray.segment.run import segment


@pytest.fixture
def config(bundle_uri: str, generated: Path, tmp_path: Path) -> SegmentConfig:
    return SegmentConfig(
        bundle=bundle_uri,
        input=(str(generated / "images"),),
        output=str(tmp_path / "out"),
        actors=0,
        export=("png",),
    )


def traces(output: str, run: str) -> list[Path]:
    return [path for path in Path(output).rglob("*") if run in str(path)]


def test_nothing_of_it_stays_and_its_images_are_new(config: SegmentConfig, generated: Path) -> None:
    flags = [
        "--bundle",
        config.bundle,
        "--output",
        config.output,
        "--actors",
        "0",
        "--export",
        "png",
        "geojson",
    ]
    first, *others = sorted(map(str, (generated / "images").iterdir()))
    kept = call_job("segment", "--input", first, *flags)[1]["run_id"]
    run = call_job("segment", "--input", str(generated / "images"), *flags)[1]["run_id"]
    columns = ["image_id", "num_nuclei", "mean_confidence"]
    before = read_output(config.output, "images", columns=columns).sort_values(
        "image_id", ignore_index=True
    )
    assert traces(config.output, run)
    code, line, errors = call_job("segment", "give-up", "--output", config.output, "--run", run)
    assert (code, line["run"]) == (0, run), errors
    assert traces(config.output, run) == []
    assert traces(config.output, kept)
    assert len(read_output(config.output, "images")) == 1
    code, line, errors = call_job("segment", "--input", str(generated / "images"), *flags)
    assert (code, line["images"], line["done_before"]) == (0, {"ok": len(others)}, 1), errors
    after = read_output(config.output, "images", columns=columns).sort_values(
        "image_id", ignore_index=True
    )
    assert after.equals(before)


@pytest.mark.parametrize("deletions", range(4))
def test_interrupted_it_is_given_up_by_the_same_command(
    config: SegmentConfig, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    (done,) = segment(config)
    assert done.run_id is not None
    asked = GiveUpConfig(output=config.output, run=done.run_id)
    left = [deletions]

    def delete(uri: str, original: Any = storage.delete_folder) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        original(uri)

    with monkeypatch.context() as patch:
        patch.setattr("resunet_ray.storage.delete_folder", delete)
        with pytest.raises(KeyboardInterrupt):
            give_up(asked)
    if traces(config.output, done.run_id):
        give_up(asked)
    assert traces(config.output, done.run_id) == []
    assert segment(config)[-1].images == {"ok": 20}
    assert read_output(config.output, "images")["image_id"].is_unique


def test_what_is_not_there_or_at_work_is_not_given_up(config: SegmentConfig) -> None:
    (done,) = segment(config)
    for run in ("20990101T000000Z-abcdef", ".."):
        code, line, _ = call_job("segment", "give-up", "--output", config.output, "--run", run)
        assert (code, line["error"]) == (2, "InputError"), line
        assert f"has no run {run}" in line["message"]
    assert (
        call_job("segment", "give-up", "--output", config.output, "--run", "a/b")[1]["error"]
        == "ConfigError"
    )
    with storage.hold_lease(config.output, seconds=30):
        code, line, _ = call_job(
            "segment", "give-up", "--output", config.output, "--run", str(done.run_id)
        )
    assert (code, line["status"]) == (0, "leased")
    assert len(read_output(config.output, "images")) == 20


def test_an_interrupted_run_is_finished_though_another_s_name_lies_in_the_future(
    config: SegmentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("resunet_ray.segment.run.segment_chunks", interrupt)
        with pytest.raises(KeyboardInterrupt):
            segment(config)
    (interrupted,) = storage.list_folders(f"{config.output}/runs")
    record = json.loads(storage.read_bytes(f"{config.output}/runs/{interrupted}/run.json")) | {
        "status": "done"
    }
    storage.write_bytes(
        f"{config.output}/runs/20990101T000000Z-abcdef/run.json", json.dumps(record).encode()
    )
    finished, nothing = segment(config)
    assert (finished.run_id, finished.images) == (interrupted, {"ok": 20})
    assert nothing.run_id is None
