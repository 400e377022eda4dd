"""Heads learn from instances to tell touching nuclei apart; without instances the mask is trained.

Images show discs of two nuclei each, whose mask does not narrow where they touch.
"""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from resunet_ray import storage
from resunet_ray.bundle import load_bundle
from resunet_ray.config import ModelConfig, PrepareConfig, TrainConfig
from resunet_ray.data.dataset import Dataset, open_dataset
from resunet_ray.data.images import encode_png
from resunet_ray.data.labels import encode_labels
from resunet_ray.data.prepare import prepare
from resunet_ray.data.targets import compute_targets, leave_unknown
from resunet_ray.errors import InputError
from resunet_ray.model.preprocess import preprocess
from resunet_ray.train.requirements import leave_out_heads
from resunet_ray.train.session import Session, build_session
from resunet_ray.train.step import measure_losses, train_step
from resunet_ray.train.trainer import train

WITH_HEADS = ModelConfig(widths=(16, 32), heads=("distance", "centre", "diameter"))


def draw_pairs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw two discs, each of two nuclei that meet at a dark line; 64 × 72 pixels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((64, 72), np.int32)
    light = np.full(labels.shape, 20.0)
    rows, columns = np.indices(labels.shape)
    for pair, middle in enumerate((18, 52)):
        row, column = rng.uniform(16, 48), middle + rng.uniform(-2, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= rng.uniform(9, 11) ** 2
        angle = rng.uniform(0, 2 * np.pi)
        across = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
        labels[disc] = np.where(across > 0, 1, 2)[disc] + 2 * pair
        light[disc] = np.where(np.abs(across) < 1.5, 80, 200)[disc]
    light = cv2.GaussianBlur(light + rng.normal(0, 4, light.shape), (0, 0), 0.7)
    return np.repeat(np.clip(light, 0, 255).astype(np.uint8)[..., None], 3, axis=2), labels


def config(data: str, output: Path, **fields: Any) -> TrainConfig:
    small: dict[str, Any] = {
        "model": WITH_HEADS,
        "crop": 64,
        "batch_size": 4,
        "precision": "fp32",
        "epochs": 30,
        "validation_interval": 15,
        "warmup_epochs": 0.0,
        "learning_rate": 1e-2,
        "ema_decay": 0.9,
    }
    return TrainConfig(data=data, output=str(output), **{**small, **fields})


def start_session(**fields: Any) -> Session:
    return build_session(
        config("", Path(), **fields),
        Dataset("", "", None, {}, {}),
        rank=0,
        workers=1,
        device=torch.device("cpu"),
        resume_from=None,
    )


def measure(
    session: Session, image: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor
) -> dict[str, float]:
    with torch.no_grad():
        logits = session.network(preprocess(image, channels=3))
        parts = measure_losses(session, logits, mask, targets)
    return {name: float(part) for name, part in parts.items()}


def test_training_lowers_the_loss_of_each_output() -> None:
    pairs = [draw_pairs(seed) for seed in range(2)]
    image = torch.from_numpy(np.stack([image for image, _ in pairs]))
    mask = torch.from_numpy(np.stack([(labels > 0).astype(np.uint8) for _, labels in pairs]))
    targets = torch.from_numpy(np.stack([compute_targets(labels) for _, labels in pairs]))
    session = start_session(learning_rate=2e-3)
    session.network.train()
    before = measure(session, image, mask, targets)
    losses = [float(train_step(session, image, mask, targets)) for _ in range(8)]
    after = measure(session, image, mask, targets)
    assert losses[0] == pytest.approx(sum(before.values()), rel=1e-4)
    assert list(after) == ["mask", "distance", "centre", "diameter"]
    for name, value in after.items():
        assert value < before[name] / 2, (name, before, after)


def test_a_crop_without_instances_trains_the_mask_alone() -> None:
    image, labels = draw_pairs(0)
    session = start_session(loss="bce")
    pixels = torch.from_numpy(image)[None]
    mask = torch.from_numpy((labels > 0).astype(np.uint8))[None]
    unknown = measure(session, pixels, mask, torch.from_numpy(leave_unknown(64, 72))[None])
    assert (unknown["distance"], unknown["centre"], unknown["diameter"]) == (0, 0, 0)
    known = measure(session, pixels, mask, torch.from_numpy(compute_targets(labels))[None])
    assert known["mask"] > unknown["mask"] > 0, "pixels between two nuclei weigh more"


@dataclass
class Data:
    """A data set of pairs, and a copy of it whose instances are unknown."""

    known: str
    unknown: str


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Data:
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(16):
        image, labels = draw_pairs(number)
        name = f"{number:02d}"
        storage.write_bytes(f"{folder}/raw/images/{name}.png", encode_png(image))
        storage.write_bytes(f"{folder}/raw/instances/{name}.png", encode_labels(labels, name=name))
    known, unknown = folder / "known", folder / "unknown"
    prepare(
        PrepareConfig(
            input=(f"{folder}/raw",), output=str(known), split="fraction", val_fraction=0.25,
            test_fraction=0.0,
        )
    )  # fmt: skip
    shutil.copytree(known, unknown)
    for path in unknown.glob("*-*.parquet"):
        table = pq.read_table(path)
        nulls = pa.nulls(len(table), pa.binary())
        at = table.schema.get_field_index("labels")
        pq.write_table(table.set_column(at, table.schema.field(at), nulls), path)
    return Data(str(known), str(unknown))


@pytest.mark.campaign
def test_touching_nuclei_are_found_as_two(data: Data, tmp_path: Path) -> None:
    trained = train(config(data.known, tmp_path, monitor="pq"))
    bundle = load_bundle(trained.bundle)
    assert bundle.info.model.heads == WITH_HEADS.heads
    assert bundle.info.instances.method == "distance"
    assert bundle.info.scores["pq"] > 0.8
    rows = pd.read_csv(tmp_path / "train" / "history.csv")
    assert rows["val_pq"].notna().tolist() == ([False] * 14 + [True]) * 2
    assert bundle.info.provenance["epoch"] == rows.loc[rows["val_pq"].idxmax(), "epoch"]
    assert rows["val_ap50"].between(0, 1).sum() == 2
    for seed in range(100, 104):
        image, labels = draw_pairs(seed)
        found = bundle.segment(image).labels
        assert found.max() == 4
        for number in range(1, 5):
            inside = found[labels == number]
            assert np.bincount(inside).max() > 0.8 * len(inside)


def test_a_data_set_without_instances_trains_the_mask_and_says_so(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        InputError,
        match=r"--monitor pq compares instances, but none of the 4 validation images of .*unknown",
    ):
        train(config(data.unknown, tmp_path, monitor="pq"))
    asked = config(data.unknown, tmp_path)
    with caplog.at_level(logging.WARNING):
        left = leave_out_heads(open_dataset(data.unknown), asked)
    assert f"none of the 12 training images of {data.unknown} has instances" in caplog.text
    assert left == replace(asked, model=replace(asked.model, heads=()))


def test_a_few_images_without_instances_leave_the_heads(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(data.known, tmp_path / "data")
    (path,) = (tmp_path / "data").glob("train-*.parquet")
    table = pq.read_table(path)
    at = table.schema.get_field_index("labels")
    labels = [None, None, *table["labels"].to_pylist()[2:]]
    column = pa.array(labels, pa.binary())
    pq.write_table(table.set_column(at, table.schema.field(at), column), path)
    dataset = open_dataset(str(tmp_path / "data"))
    asked = config(dataset.uri, tmp_path)
    assert leave_out_heads(dataset, asked) == asked
    assert "2 of 12 training images of" in caplog.text
