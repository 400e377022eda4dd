"""A bundle gets ranges for 8 bits if its scores on validation data hold, and else none."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from resunet_ray.bundle import load_bundle, save_bundle
from resunet_ray.bundle_info import BundleInfo, read_bundle_info
from resunet_ray.config import EvaluateConfig, ModelConfig
from resunet_ray.config.model import Engine
from resunet_ray.data.dataset import Dataset, open_dataset, plan_once
from resunet_ray.data.labelled import read_images
from resunet_ray.data.splits import VAL
from resunet_ray.evaluate import evaluate
from resunet_ray.model.resunet import build_network
from resunet_ray.train import calibration
from resunet_ray.train.calibration import calibrate

Weights = dict[str, torch.Tensor]


@pytest.fixture
def dataset(dataset_uri: str) -> Dataset:
    return open_dataset(dataset_uri)


@pytest.fixture
def sample(dataset: Dataset) -> np.ndarray:
    return next(read_images(dataset, plan_once(dataset, VAL))).image[:96, :96]


@pytest.fixture
def info() -> BundleInfo:
    """That of a bundle whose scores are not known yet."""
    return replace(read_bundle_info("nuclei")[0], quantization={}, scores={})


@pytest.fixture
def weights() -> Weights:
    return load_bundle("nuclei").network.state_dict()


def test_8_bits_do_if_they_cost_little(
    dataset: Dataset,
    sample: np.ndarray,
    info: BundleInfo,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What they cost is what an evaluation would say. Of four images, one nucleus is much."""

    def choose(largest_loss: float) -> BundleInfo:
        monkeypatch.setattr(calibration, "LARGEST_LOSS", largest_loss)
        draft = f"{tmp_path}/draft"
        return calibrate(info, weights=weights, sample=sample, dataset=dataset, draft=draft)

    with caplog.at_level(logging.INFO):
        chosen = choose(0.1)
    assert chosen.quantization.keys() == read_bundle_info("nuclei")[0].quantization.keys()
    assert choose(-1.0) == replace(chosen, quantization={})
    bundle = save_bundle(f"{tmp_path}/bundle", weights=weights, info=chosen, sample=sample)
    bundle.self_test("int8")

    def score(engine: Engine) -> tuple[float, float]:
        found = evaluate(
            EvaluateConfig(
                bundle=bundle.uri,
                data=dataset.uri,
                split=VAL,
                output=f"{tmp_path}/{engine}",
                engine=engine,
            )
        )
        assert found.instance is not None
        return found.scores["f1"], found.instance["pq"]

    exact, rounded = np.array(score("torch")), np.array(score("openvino"))
    assert exact[1] == pytest.approx(chosen.scores["pq"], abs=1e-3)
    assert (exact != rounded).all()
    told = re.search(r"change F1 by (\S+) and panoptic quality by (\S+): CPUs will", caplog.text)
    assert told is not None
    assert [float(change) for change in told.groups()] == pytest.approx(rounded - exact, abs=1e-3)


def test_a_network_that_8_bits_cannot_hold_is_not_quantized(
    dataset: Dataset, sample: np.ndarray, info: BundleInfo, weights: Weights, tmp_path: Path
) -> None:
    """One channel is always 10,000 and not used further on: beside it, all others round to 0."""
    block = "encoder.0.body.1"
    weights[f"{block}.0.weight"][0] = 0
    weights[f"{block}.0.bias"][0] = 10_000
    weights[f"{block}.2.weight"][:, 0] = 0
    chosen = calibrate(info, weights=weights, sample=sample, dataset=dataset, draft=str(tmp_path))
    assert chosen.quantization == {}
    assert chosen.scores["pq"] > 0.5, "in full precision it is as good as before"


def test_blocks_that_are_rounded_otherwise_elsewhere_are_not_quantized(
    dataset: Dataset, sample: np.ndarray, info: BundleInfo, tmp_path: Path
) -> None:
    info = replace(info, model=ModelConfig(widths=(16, 32), block="dense"))
    weights = build_network(info.model).state_dict()
    chosen = calibrate(info, weights=weights, sample=sample, dataset=dataset, draft=str(tmp_path))
    assert chosen.quantization == {}
