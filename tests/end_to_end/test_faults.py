"""Jobs that are stopped or lose a node give the same scores and rows as an undisturbed run."""

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
    """Count the checkpoints that Ray Train has registered."""
    uri = f"{output}/train/checkpoint_manager_snapshot.json"
    if not storage.exists(uri):
        return 0
    return len(set(re.findall(rb"checkpoint_[0-9_.-]+", storage.read_bytes(uri))))


def count_chunks(output: str) -> int:
    """Count the completed chunks, out of six for 96 images."""
    uri = f"{output}/regions"
    return len(list(storage.walk_files(uri))) if storage.exists(uri) else 0


def leases(output: str) -> list[str]:
    return [name for name, _ in storage.list_files(f"{output}/leases") if name.isdigit()]


def test_training_that_is_stopped_and_then_loses_a_node_ends_the_same(
    pipeline: Pipeline, s3: str, nodes: Nodes
) -> None:
    """Two workers on two nodes are stopped after a checkpoint (`ray job stop`).

    Then the same command is run, a node dies, and another joins.
    """
    nodes.restore()
    broken = [*pipeline.training, "--output", f"{s3}/broken"]
    detached = ("--no-wait", "--submission-id", "stopped")
    code, _, shown = nodes.submit("train", *broken, flags=detached)
    assert code == 0, shown
    nodes.wait_until(lambda: checkpoints(f"{s3}/broken") > 0, what="a checkpoint")
    assert "'stopped' was stopped" in nodes.run("ray", "job", "stop", "stopped").stdout
    log = nodes.run("ray", "job", "logs", "stopped").stdout
    assert re.search(
        r'^{"job": "train", "status": "failed", .*run the same command to resume"}$',
        log,
        re.MULTILINE,
    ), log
    before = checkpoints(f"{s3}/broken")
    assert before < pipeline.trained["epochs"] / 2, "training ended before it was stopped"
    with ThreadPoolExecutor() as background:
        resumed = background.submit(nodes.submit, "train", *broken)
        nodes.wait_until(lambda: checkpoints(f"{s3}/broken") > before, what="another checkpoint")
        nodes.kill_worker(holding="RayTrainWorker")
        nodes.restore()
        code, line, shown = resumed.result()
    assert code == 0, shown
    assert len(re.findall(r"resumed after epoch \d+", shown)) >= 2, shown
    columns = ["epoch", "train_loss", "val_loss", "val_f1"]
    pd.testing.assert_frame_equal(
        read_history(pipeline.output)[columns], read_history(f"{s3}/broken")[columns], atol=1e-6
    )
    assert line["best"]["f1"] == pipeline.trained["best"]["f1"]


def test_segmenting_that_is_stopped_and_then_loses_a_node_gives_the_same_rows(
    bundle_uri: str, s3: str, nodes: Nodes
) -> None:
    """Two actors on two nodes are stopped after the first chunk (`ray job stop`).

    Then the same command is run, and a node dies. The rows are those of a process without Ray, and
    name the version of the code that was submitted.
    """
    nodes.restore()
    rng = np.random.default_rng(0)
    for number in range(96):
        image = rng.integers(0, 256, (150, 170, 3), dtype=np.uint8)
        storage.write_bytes(f"{s3}/noise/{number}.png", encode_png(image))
    flags = ["--bundle", bundle_uri, "--input", f"{s3}/noise"]
    flags += ["--precision", "fp32", "--readers", "1"]
    code, line, shown = call_job("segment", *flags, "--actors", "0", "--output", f"{s3}/rows-whole")
    assert (code, line["images"]) == (0, {"ok": 96}), shown
    broken = [*flags, "--actors", "2", "--cpus-per-actor", "2", "--output", f"{s3}/rows-broken"]
    nodes.submit("segment", *broken, flags=("--no-wait", "--submission-id", "halted"))
    nodes.wait_until(lambda: count_chunks(f"{s3}/rows-broken") > 0, what="a chunk")
    nodes.run("ray", "job", "stop", "halted")
    (name,) = leases(f"{s3}/rows-broken")
    lease = json.loads(storage.read_bytes(f"{s3}/rows-broken/leases/{name}"))
    assert lease["released"], nodes.run("ray", "job", "logs", "halted").stdout
    before = count_chunks(f"{s3}/rows-broken")
    assert before < 6, "segmenting ended before it was stopped"
    with ThreadPoolExecutor() as background:
        resumed = background.submit(nodes.submit, "segment", *broken)
        nodes.wait_until(lambda: count_chunks(f"{s3}/rows-broken") > before, what="another chunk")
        nodes.kill_worker(holding="Segmenter")
        code, line, shown = resumed.result()
    assert (code, line["images"]) == (0, {"ok": 96}), shown
    assert f"{before} of 6 chunks are done" in shown, shown
    columns = ["image_uri", "mask", "num_instances", "confidence_sum", "status"]
    tables = [
        read_output(output, "regions", columns=columns).sort_values("image_uri", ignore_index=True)
        for output in (f"{s3}/rows-whole", f"{s3}/rows-broken")
    ]
    pd.testing.assert_frame_equal(*tables)
    rows = read_output(f"{s3}/rows-broken", "images")
    assert rows["image_id"].nunique() == len(rows) == 96
    assert set(rows["code_version"]) == {TRAVELLED}


def has_pending_group(nodes: Nodes) -> bool:
    return any(group["state"] == "PENDING" for group in nodes.ask("placement_groups"))


def test_a_job_waits_for_nodes_to_be_added(
    bundle_uri: str, generated: Path, s3: str, nodes: Nodes
) -> None:
    """A job that needs a larger node starts when one has joined, as with an autoscaler."""
    nodes.restore()
    storage.write_bytes(f"{s3}/one/one.png", next((generated / "images").iterdir()).read_bytes())
    flags = ["--bundle", bundle_uri, "--input", f"{s3}/one", "--output", f"{s3}/one-out"]
    flags += ["--cpus-per-actor", "7", "--nodes-seconds", "120"]
    with ThreadPoolExecutor() as background:
        waiting = background.submit(nodes.submit, "segment", *flags)
        nodes.wait_until(
            lambda: waiting.done() or has_pending_group(nodes), what="a request for resources"
        )
        nodes.add(cpus=8)
        code, line, shown = waiting.result()
    assert (code, line.get("images")) == (0, {"ok": 1}), shown
