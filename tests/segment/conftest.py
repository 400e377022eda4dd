"""What the tests of slides share: a slide, and a network whose nuclei are known."""

from dataclasses import replace

import numpy as np
import pytest

from resunet_ray.bundle import load_bundle, save_bundle
from resunet_ray.config import InstanceConfig, PreprocessConfig
from resunet_ray.data.synthetic import generate_image


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return generate_image(
        700, 900, modality="stained", num_nuclei=300, rng=np.random.default_rng(3)
    )[0]


@pytest.fixture(scope="module")
def dark_bundle(bundle_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that finds dark pixels: a stand-in for a trained one, with known nuclei."""
    bundle = load_bundle(bundle_uri)
    weights = {name: tensor.clone().zero_() for name, tensor in bundle.network.state_dict().items()}
    for name in weights:
        if name.endswith("running_var"):
            weights[name] += 1
    weights["stem.shortcut.0.weight"][0] = -1 / 3  # of three channels between 0 and 1
    weights["stem.shortcut.1.weight"][0] = 1
    skip = (
        weights["decoder.0.shortcut.weight"].shape[1] - weights["stem.shortcut.0.weight"].shape[0]
    )
    weights["decoder.0.shortcut.weight"][0, skip] = 1  # beside the upsampled level
    weights["head.weight"][0, 0] = 40.0
    weights["head.bias"][0] = 40.0 * 0.62
    uri = str(tmp_path_factory.mktemp("dark"))
    info = replace(
        bundle.info,
        preprocess=PreprocessConfig(tile=192, context=16),
        instances=InstanceConfig(threshold=0.5, min_area=8),
        mpp=0.5,
        sha256={},
    )
    save_bundle(uri, weights=weights, info=info, sample=np.zeros((48, 40, 3), np.uint8))
    return uri
