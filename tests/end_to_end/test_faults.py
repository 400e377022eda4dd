"""What a cluster does to a job: it is stopped, a node's power goes. Scores and rows are those of a run that nothing befell."""

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nodes import TRAVELLED, Nodes
from pipeline import Pipeline
from support import call_job, read_output

from resunet_ray import storage
from resunet_ray.data.images import encode_png

pytestmark = pytest.mark.campaign


def read_history(output: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(storage.read_bytes(f"{output}/train/history.csv")))


def checkpoints(output: str) -> int:
    """How many checkpoints Ray Train has been told of, in all: their numbers stand in their names' order."""
    uri = f"{output}/train/checkpoint_manager_snapshot.json"
    return (
        len(set(re.findall(rb"checkpoint_[0-9_.-]+", storage.read_bytes(uri))))
        if storage.exists(uri)
        else 0
    )


def count_chunks(output: str) -> int:
    """Chunks that are done; 96 images are six."""
    uri = f"{output}/regions"
    return len(list(storage.walk_files(uri))) if storage.exists(uri) else 0


def leases(output: str) -> list[str]:
    return [name for name, _ in storage.list_files(f"{output}/leases") if name.isdigit()]


def test_training_that_is_stopped_and_then_loses_a_node_learns_the_same(
    pipeline: Pipeline, s3: str, nodes: Nodes
) -> None:
    """Two workers on two nodes. `ray job stop` after a checkpoint; then the same command, a node's end, and another node."""
    nodes.restore()
    broken = [*pipeline.training, "--output", f"{s3}/broken"]
    code, _, shown = nodes.submit(
        "train", *broken, flags=("--no-wait", "--submission-id", "stopped")
    )
    assert code == 0, shown
    nodes.wait_until(lambda: checkpoints(f"{s3}/broken") > 0, what="a checkpoint")
    assert "'stopped' was stopped" in nodes.run("ray", "job", "stop", "stopped").stdout
    log = nodes.run("ray", "job", "logs", "stopped").stdout
    assert re.search(
        r'^{"job": "train", "status": "failed", .*run the same command to resume"}$', log, re.MULTILINE
    ), log
    before = checkpoints(f"{s3}/broken")
    assert before < pipeline.trained["epochs"] / 2, "it was over before it was stopped"
    with ThreadPoolExecutor() as background:
        going_on = background.submit(nodes.submit, "train", *broken)
        nodes.wait_until(lambda: checkpoints(f"{s3}/broken") > before, what="one checkpoint more")
        nodes.kill_worker(holding="RayTrainWorker")
        nodes.restore()
        code, line, shown = going_on.result()
    assert code == 0, shown
    assert len(re.findall(r"resumed after epoch \d+", shown)) >= 2, shown
    columns = ["epoch", "train_loss", "val_loss", "val_f1"]
    pd.testing.assert_frame_equal(
        read_history(pipeline.output)[columns], read_history(f"{s3}/broken")[columns], atol=1e-6
    )
    assert line["best"]["f1"] == pipeline.trained["best"]["f1"]


def test_segmenting_that_is_stopped_and_then_loses_a_node_finishes_with_the_same_rows(
    bundle_uri: str, s3: str, nodes: Nodes
) -> None:
    """An actor on each of two nodes. `ray job stop` after the first chunk; then the same command, and a node's end.

    The rows are those of a process without Ray, and say that the code which travelled made them.
    """
    nodes.restore()
    rng = np.random.default_rng(0)
    for number in range(96):
        storage.write_bytes(
            f"{s3}/noise/{number}.png",
            encode_png(rng.integers(0, 256, (150, 170, 3), dtype=np.uint8)),
        )
    flags = [
        "--bundle",
        bundle_uri,
        "--input",
        f"{s3}/noise",
        "--precision",
        "fp32",
        "--readers",
        "1",
    ]
    code, line, shown = call_job("segment", *flags, "--actors", "0", "--output", f"{s3}/rows-whole")
    assert (code, line["images"]) == (0, {"ok": 96}), shown
    broken = [*flags, "--actors", "2", "--cpus-per-actor", "2", "--output", f"{s3}/rows-broken"]
    nodes.submit("segment", *broken, flags=("--no-wait", "--submission-id", "halted"))
    nodes.wait_until(lambda: count_chunks(f"{s3}/rows-broken") > 0, what="a chunk")
    nodes.run("ray", "job", "stop", "halted")
    (lease,) = [
        json.loads(storage.read_bytes(f"{s3}/rows-broken/leases/{name}"))
        for name in leases(f"{s3}/rows-broken")
    ]
    assert lease["released"], nodes.run("ray", "job", "logs", "halted").stdout
    before = count_chunks(f"{s3}/rows-broken")
    assert before < 6, "it was over before it was stopped"
    with ThreadPoolExecutor() as background:
        going_on = background.submit(nodes.submit, "segment", *broken)
        nodes.wait_until(lambda: count_chunks(f"{s3}/rows-broken") > before, what="a chunk more")
        nodes.kill_worker(holding="Segmenter")
        code, line, shown = going_on.result()
    assert (code, line["images"]) == (0, {"ok": 96}), shown
    assert f"{before} of 6 chunks are done" in shown, shown
    columns = ["image_uri", "mask", "num_instances", "confidence_sum", "status"]
    one, other = (
        read_output(f"{s3}/{name}", "regions", columns=columns).sort_values(
            "image_uri", ignore_index=True
        )
        for name in ("rows-whole", "rows-broken")
    )
    pd.testing.assert_frame_equal(one, other)
    rows = read_output(f"{s3}/rows-broken", "images")
    assert rows["image_id"].nunique() == len(rows) == 96
    assert set(rows["code_version"]) == {TRAVELLED}


def has_pending_group(nodes: Nodes) -> bool:
    return any(group["state"] == "PENDING" for group in nodes.ask("placement_groups"))


def test_a_job_waits_for_the_nodes_that_it_was_promised(
    bundle_uri: str, generated: Path, s3: str, nodes: Nodes
) -> None:
    """What the cluster has no room for begins when a larger node has joined, as an autoscaler would have it."""
    nodes.restore()
    storage.write_bytes(f"{s3}/one/one.png", next((generated / "images").iterdir()).read_bytes())
    flags = [
        "--bundle",
        bundle_uri,
        "--input",
        f"{s3}/one",
        "--output",
        f"{s3}/one-out",
        "--cpus-per-actor",
        "7",
    ]
    with ThreadPoolExecutor() as background:
        waiting = background.submit(nodes.submit, "segment", *flags, "--nodes-seconds", "120")
        nodes.wait_until(
            lambda: waiting.done() or has_pending_group(nodes), what="its wish for room"
        )
        nodes.add(cpus=8)
        code, line, shown = waiting.result()
    assert (code, line.get("images")) == (0, {"ok": 1}), shown
