"""OpenVINO computes on CPUs what torch computes, and tells nobody."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from resunet_ray.bundle import load_bundle
from resunet_ray.config import ModelConfig
from resunet_ray.config.model import Block
from resunet_ray.model.openvino import OpenVinoNetwork
from resunet_ray.model.resunet import build_network


def build(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(ModelConfig(widths=(16, 32, 48), **settings)).eval()  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training
            module.get_buffer("running_mean").uniform_(-1, 1)
            module.get_buffer("running_var").uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("block", ["residual", "dense", "atrous"])
def test_images_of_any_size_give_the_logits_of_torch(block: Block) -> None:
    network = build(block=block, heads=("distance", "centre"), in_channels=1)
    engine = OpenVinoNetwork(network, channels=1, streams=1)
    for shape in ((1, 1, 64, 64), (3, 1, 37, 50), (1, 1, 5, 129), (1, 1, 1, 1)):
        x = torch.rand(shape).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            torch.testing.assert_close(engine(x, dtype=None), network(x), atol=1e-4, rtol=1e-4)


def test_several_threads_compute_at_a_time() -> None:
    network = build()
    engine = OpenVinoNetwork(network, channels=3, streams=3)
    images = [torch.rand((1, 3, 48, 32 + number)) for number in range(24)]
    with ThreadPoolExecutor(3) as pool, torch.inference_mode():
        for x, found in zip(images, pool.map(partial(engine, dtype=None), images), strict=True):
            torch.testing.assert_close(found, network(x), atol=1e-4, rtol=1e-4)


def test_bfloat16_is_taken_by_processors_without_it_too() -> None:
    network, x = build(), torch.rand((1, 3, 64, 64))
    found = OpenVinoNetwork(network, channels=3, streams=1)(x, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(found, network(x), atol=0.2, rtol=0.1)


def test_nothing_is_told_to_the_makers_of_openvino(tmp_path: Path) -> None:
    """Its telemetry leaves a client's number in the home folder before it sends anything."""
    code = (
        "import sys, numpy as np\n"
        "from resunet_ray.bundle import load_bundle\n"
        "load_bundle('nuclei', engine='openvino').self_test()\n"
        "assert 'openvino' in sys.modules\n"
    )
    usual = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD")}
    subprocess.run([sys.executable, "-c", code], env={**usual, "HOME": str(tmp_path)}, check=True)
    assert not (tmp_path / "intel").exists()


def test_the_bundle_passes_its_self_test_on_both_engines() -> None:
    for engine, taken in (("torch", False), ("openvino", True), ("auto", True)):
        bundle = load_bundle("nuclei", engine=engine)  # type: ignore[arg-type]
        assert (bundle.on_cpu is not None) == taken
        bundle.self_test()
        assert (bundle.dtype("auto") is torch.int8) == taken
        bundle.self_test("auto")
