"""From images to scores: jobs on a cluster of several nodes, with all data in object storage."""

import io

import numpy as np
import pandas as pd
import pytest
from nodes import TRAVELLED, Nodes
from pipeline import Pipeline
from support import SMALL

from resunet_ray import storage
from resunet_ray.bundle import load_bundle
from resunet_ray.bundle_info import read_bundle_info
from resunet_ray.data.dataset import open_dataset, plan_once
from resunet_ray.data.labelled import read_images
from resunet_ray.data.splits import TEST, VAL
from resunet_ray.model.instances import threshold_mask
from resunet_ray.model.metrics import count_pixels, score_counts

pytestmark = pytest.mark.campaign


def test_the_nodes_run_the_code_that_was_submitted(pipeline: Pipeline) -> None:
    """The bundle records the driver's version, which is that of the clone."""
    assert read_bundle_info(pipeline.bundle)[0].provenance["versions"]["resunet_ray"] == TRAVELLED


def test_a_sweep_can_be_submitted_like_any_job(pipeline: Pipeline, nodes: Nodes, s3: str) -> None:
    flags = [*SMALL, "--epochs", "1", "--trials", "1", "--scheduler", "none"]
    flags += ["--space", "learning_rate=choice:1e-2"]
    flags += ["--data", pipeline.data, "--output", f"{s3}/pipeline/sweep"]
    code, line, shown = nodes.submit("tune", *flags)
    assert code == 0, shown
    trials = pd.read_parquet(io.BytesIO(storage.read_bytes(f"{s3}/pipeline/sweep/trials.parquet")))
    assert trials["status"].tolist() == ["completed"], shown
    assert storage.exists(f"{line['bundle']}/bundle.json")


def test_submitting_shows_the_last_line_and_the_exit_code(
    pipeline: Pipeline, nodes: Nodes, s3: str
) -> None:
    """The job is one that the cluster is too small for."""
    flags = ["--bundle", pipeline.bundle, "--input", f"{s3}/pipeline/raw/images"]
    flags += ["--output", f"{s3}/pipeline/none", "--actors", "1", "--cpus-per-actor", "99"]
    code, line, shown = nodes.submit("segment", *flags)
    assert (code, line["status"], line["error"]) == (1, "failed", "ResourceError"), shown
    assert "100 CPUs needed" in line["message"]
    assert "--nodes-seconds" in line["message"]
    assert "exit code 2" in shown


def test_the_network_learns(pipeline: Pipeline) -> None:
    """It scores at least twice what calling every pixel nucleus would."""
    dataset = open_dataset(pipeline.data)
    masks = [image.mask for image in read_images(dataset, plan_once(dataset, TEST))]
    guesses = [score_counts(count_pixels(np.ones_like(mask), mask))["f1"] for mask in masks]
    assert pipeline.evaluated["images"] == len(masks) == 4
    assert pipeline.evaluated["f1"] > 2 * np.mean(guesses)
    assert storage.exists(pipeline.evaluated["report"])


def test_the_bundle_of_two_workers_has_the_scores_they_reported(pipeline: Pipeline) -> None:
    """Although the normalisation statistics of the workers differ."""
    bundle, dataset = load_bundle(pipeline.bundle), open_dataset(pipeline.data)
    scores = []
    for image in read_images(dataset, plan_once(dataset, VAL)):
        (found,) = bundle.predict([image.image], batch_size=1, precision="fp32")
        mask = threshold_mask(found.probability, threshold=bundle.info.instances.threshold)
        scores.append(float(score_counts(count_pixels(mask, image.mask))["f1"]))
    assert np.mean(scores) == pytest.approx(pipeline.trained["best"]["f1"], abs=1e-6)
