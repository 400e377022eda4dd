"""GPUs: what Ray is told of one, and what one computes where there is one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT

from resunet_ray.bundle import load_bundle
from resunet_ray.data.synthetic import generate_image

_WITH_A_GPU = """
import runpy, sys
import ray
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.campaign
def test_actors_take_the_gpus_that_ray_has(bundle_uri: str, dataset_uri: str, generated: Path, tmp_path: Path) -> None:
    """Where torch finds none, scores come from the CPU, and segmenting says what is wrong."""
    code, scored = _run("evaluate", "--bundle", bundle_uri, "--data", dataset_uri, "--output", str(tmp_path / "scores"))
    assert (code, scored["images"]) == (0, 4), scored
    inputs = ["--input", str(generated / "images"), "--output", str(tmp_path / "segmented")]
    code, segmented = _run("segment", "--bundle", bundle_uri, *inputs)
    if torch.cuda.is_available():
        assert (code, segmented["images"]) == (0, {"ok": 20}), segmented
    else:
        assert (code, segmented["error"]) == (2, "ResourceError"), segmented
        assert "torch finds none" in segmented["message"]
        assert "--gpu False" in segmented["message"]


def test_a_gpu_finds_what_a_cpu_finds(bundle_uri: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: that it computes the same as a CPU is not shown")
    rng = np.random.default_rng(0)
    images = [generate_image(*size, modality="fluorescence", num_nuclei=20, rng=rng)[0] for size in ((96, 112), (300, 200))]
    there, here = (load_bundle(bundle_uri, device=torch.device(name)) for name in ("cuda", "cpu"))
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 5e-2)):
        found, expected = (bundle.predict(images, batch_size=2, precision=precision) for bundle in (there, here))
        for first, second in zip(found, expected, strict=True):
            np.testing.assert_allclose(first, second, atol=tolerance)


def _run(job: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """A job in a process whose Ray believes that this machine has one GPU: exit code and last line."""
    command = [sys.executable, "-c", _WITH_A_GPU, str(ROOT / "jobs" / f"{job}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1])
