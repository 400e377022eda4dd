"""GPUs: what Ray is told of one, and what one computes where there is one."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT

from resunet_ray.bundle import load_bundle
from resunet_ray.cluster import count_cores
from resunet_ray.config import SegmentConfig
from resunet_ray.config.model import Precision
from resunet_ray.data.synthetic import generate_image
from resunet_ray.errors import ConfigError
from resunet_ray.segment.work.spec import RunSpec

_WITH_A_GPU = """
import runpy, sys
import ray
from resunet_ray.config import EvaluateConfig
from resunet_ray.evaluate import evaluate
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False)
job, bundle, data, scores, *rest = sys.argv[1:]
print(evaluate(EvaluateConfig(bundle=bundle, data=data, output=scores)).images)
sys.argv = [job, "--bundle", bundle, *rest]
sys.path.insert(0, job.rpartition("/")[0])
runpy.run_path(job, run_name="__main__")
"""
"""Evaluates, then runs a job, in a process whose Ray believes that this machine has one GPU."""


@pytest.mark.campaign
def test_actors_take_the_gpus_that_ray_has(
    bundle_uri: str, dataset_uri: str, generated: Path, tmp_path: Path
) -> None:
    """Where torch finds none, scores come from the CPU, and segmenting says what is wrong."""
    job = [str(ROOT / "jobs" / "segment.py"), bundle_uri, dataset_uri, str(tmp_path / "scores")]
    job += ["--input", str(generated / "images"), "--output", str(tmp_path / "segmented")]
    done = subprocess.run(
        [sys.executable, "-c", _WITH_A_GPU, *job],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    scored, *_, segmented = done.stdout.splitlines() or ["", ""]
    assert scored == "4", done.stderr[-3000:]
    line = json.loads(segmented)
    if torch.cuda.is_available():
        assert (done.returncode, line["images"]) == (0, {"ok": 20}), done.stderr[-3000:]
    else:
        assert (done.returncode, line["error"]) == (2, "ResourceError"), done.stderr[-3000:]
        assert "torch finds none" in line["message"]
        assert "--gpu off" in line["message"]


@pytest.mark.parametrize(
    ("gpu", "threads", "expected"),
    [(False, 16, 2), (True, 1, 2), (True, 8, 4), (True, 64, 8), (True, None, None)],
)
def test_a_gpu_s_predictions_have_up_to_half_of_the_cores(
    gpu: bool, threads: int | None, expected: int | None
) -> None:
    """None: all cores of the node."""
    spec = plan_run(gpu=gpu, threads=threads)
    assert spec.post_threads == (expected or min(8, max(2, count_cores() // 2)))


def test_a_gpu_is_shared_by_as_many_actors_as_asked_for() -> None:
    assert plan_run(gpu=False, threads=None).gpus == 0
    assert plan_run(gpu=True, threads=None).gpus == 1
    assert plan_run(gpu=True, threads=None, actors_per_gpu=4).gpus == 0.25
    with pytest.raises(ConfigError, match="--actors-per-gpu 0: must be at least 1"):
        plan_run(gpu=True, threads=None, actors_per_gpu=0)


def plan_run(*, gpu: bool, threads: int | None, **settings: Any) -> RunSpec:
    return RunSpec(
        run_id="",
        session="",
        folder="",
        output="",
        config=SegmentConfig(bundle="b", input=("i",), output="o", **settings),
        bundle_digest="",
        chunks=(),
        gpu=gpu,
        threads=threads,
    )


def test_threads_that_predict_at_a_time_find_the_same(bundle_uri: str) -> None:
    """Each has its own stream on a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bundle = load_bundle(bundle_uri, device=device, streams=2)
    rng = np.random.default_rng(0)
    images = [
        generate_image(96, 112, modality="fluorescence", num_nuclei=20, rng=rng)[0]
        for _ in range(16)
    ]

    def predict(image: np.ndarray) -> np.ndarray:
        return bundle.predict([image], batch_size=1, precision="fp32")[0].probability

    expected = [predict(image) for image in images]
    with ThreadPoolExecutor(2, initializer=bundle.begin_thread) as pool:
        for found, known in zip(pool.map(predict, images), expected, strict=True):
            np.testing.assert_allclose(found, known, atol=1e-5)


def test_a_gpu_finds_what_a_cpu_finds(bundle_uri: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: that it computes the same as a CPU is not shown")
    rng = np.random.default_rng(0)
    images = [
        generate_image(*size, modality="fluorescence", num_nuclei=20, rng=rng)[0]
        for size in ((96, 112), (300, 200))
    ]
    there, here = (load_bundle(bundle_uri, device=torch.device(name)) for name in ("cuda", "cpu"))
    tolerances: dict[Precision, float] = {"fp32": 1e-3, "bf16": 5e-2}
    for precision, tolerance in tolerances.items():
        found, expected = (
            [
                found.probability
                for found in bundle.predict(images, batch_size=2, precision=precision)
            ]
            for bundle in (there, here)
        )
        for first, second in zip(found, expected, strict=True):
            np.testing.assert_allclose(first, second, atol=tolerance)
