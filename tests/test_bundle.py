"""A bundle gives the same output wherever it is loaded, or says that it is damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from resunet_ray.bundle import Bundle, BundleInfo, build_network, load_bundle, read_bundle_info, save_bundle
from resunet_ray.config import InstanceConfig, ModelConfig, PreprocessConfig
from resunet_ray.data.synthetic import generate_image
from resunet_ray.errors import InputError, RunError

SMALL = ModelConfig(widths=(16, 32))


def saved(folder: Path) -> Bundle:
    torch.manual_seed(0)
    image, _ = generate_image(40, 56, modality="stained", num_nuclei=6, rng=np.random.default_rng(0))
    info = BundleInfo(
        model=SMALL,
        preprocess=PreprocessConfig(tile=64, context=8),
        instances=InstanceConfig(threshold=0.25, min_area=9),
        mpp=0.5,
        scores={"f1": 0.9},
        provenance={"run": "test"},
    )
    return save_bundle(str(folder), weights=build_network(SMALL).state_dict(), info=info, sample=image)


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    before, after = saved(tmp_path), load_bundle(str(tmp_path))
    assert (after.info, after.digest) == (before.info, before.digest)
    assert len(after.digest) == 64
    assert after.info.instances == InstanceConfig(threshold=0.25, min_area=9)
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    one, other = (bundle.predict([image], batch_size=2, precision="fp32")[0] for bundle in (before, after))
    np.testing.assert_array_equal(one, other)
    after.self_test()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.json", "expected.png", "model.safetensors", "sample.png"]


def test_damaged_weights_are_refused_and_a_changed_network_fails_its_self_test(tmp_path: Path) -> None:
    bundle = saved(tmp_path)
    with torch.no_grad():
        bundle.network.head.weight.add_(1)
    with pytest.raises(RunError, match="gives another output here than where it was saved"):
        bundle.self_test()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(InputError, match=r"model.safetensors is damaged: its sha256 is"):
        load_bundle(str(tmp_path))


def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no bundle.json: expected a bundle that jobs/train.py wrote"):
        load_bundle(str(tmp_path))
    saved(tmp_path)
    content = json.loads((tmp_path / "bundle.json").read_text())
    content["model"]["widths"] = "many"
    (tmp_path / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"is not a bundle of this version: \('model', 'widths'"):
        read_bundle_info(str(tmp_path))
