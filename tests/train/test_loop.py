"""Parts of the loop: schedule, moving average, checkpoint, weights of another bundle, batches."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resunet_ray import storage
from resunet_ray.config import ModelConfig, PrepareConfig, TrainConfig
from resunet_ray.data.dataset import open_dataset, plan_epoch
from resunet_ray.data.images import encode_png
from resunet_ray.data.prepare import prepare
from resunet_ray.errors import ConfigError
from resunet_ray.model.resunet import build_network
from resunet_ray.train import crops
from resunet_ray.train.batches import draw_weights, stream_batches
from resunet_ray.train.checkpoint import (
    Progress,
    average,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from resunet_ray.train.loop import learning_rate
from resunet_ray.train.session import build_optimizer, start_from

SMALL = ModelConfig(widths=(16, 32))


def small_config(**fields: Any) -> TrainConfig:
    small: dict[str, Any] = {"model": SMALL, "crop": 64, "batch_size": 4}
    return TrainConfig(data="d", output="o", **{**small, **fields})


def test_the_learning_rate_rises_then_falls_to_one_percent() -> None:
    config = small_config(learning_rate=1.0, epochs=10, warmup_epochs=2.0)
    rates = [learning_rate(config, step=step, steps_per_epoch=5) for step in range(50)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert int(np.argmax(rates)) == 9
    assert np.all(np.diff(rates[9:]) < 0)
    assert rates[25] == pytest.approx(0.505)
    assert rates[-1] == pytest.approx(0.01, abs=0.002)


def test_the_average_follows_quickly_at_first_and_slowly_later() -> None:
    new = build_network(SMALL)
    for step, share in ((0, 0.9), (10_000, 0.01)):
        ema = copy.deepcopy(new)
        with torch.no_grad():
            for tensor in ema.state_dict().values():
                tensor.zero_()
        average(ema, new, decay=0.99, step=step)
        for name, tensor in new.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(ema.state_dict()[name], tensor * share)


def test_weight_decay_does_not_apply_to_biases_and_normalisation() -> None:
    decayed, spared = build_optimizer(build_network(SMALL), small_config()).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert {p.ndim for p in decayed["params"]} == {4}
    assert {p.ndim for p in spared["params"]} == {1}


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_checkpoint_restores_everything(tmp_path: Path, optimizer: str) -> None:
    """A step after restoring equals a step without the checkpoint, to the last bit."""
    config = small_config(optimizer=optimizer, weight_decay=0.01 if optimizer == "adamw" else 0.0)
    x = torch.rand(2, 3, 16, 24)

    def new() -> tuple[torch.nn.Module, torch.nn.Module, torch.optim.Optimizer]:
        network = build_network(SMALL)
        return network, copy.deepcopy(network), build_optimizer(network, config)

    def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()

    network, ema, rule = new()
    step(network, rule)
    progress = Progress(epoch=3, step=7, best=0.5, stale=1, history=[{"epoch": 3.0}])
    save_checkpoint(tmp_path, network=network, ema=ema, optimizer=rule, progress=progress)
    noise = torch.rand(3)
    other, other_ema, other_rule = new()
    assert load_checkpoint(tmp_path, network=other, ema=other_ema, optimizer=other_rule) == progress
    torch.testing.assert_close(torch.rand(3), noise, rtol=0, atol=0)
    step(network, rule)
    step(other, other_rule)
    for one, two in ((network, other), (ema, other_ema)):
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[name], tensor, rtol=0, atol=0)
    torch.testing.assert_close(load_weights(tmp_path), dict(ema.state_dict()))
    assert not list(tmp_path.glob("*.pt")), "nothing is pickled"


def test_weights_of_another_network_are_used_where_they_fit() -> None:
    """Another number of channels is adapted; of other heads, only the mask's filter is used."""
    colour, grey = build_network(SMALL), build_network(ModelConfig(widths=(16, 32), in_channels=1))
    torch.nn.init.constant_(colour.state_dict()["head.bias"], 0.5)
    with_heads = build_network(ModelConfig(widths=(16, 32), heads=("distance", "centre")))
    before = with_heads.head.weight.detach().clone()
    assert start_from(with_heads, colour.state_dict()) == ["head.weight", "head.bias"]
    torch.testing.assert_close(with_heads.head.weight[:1], colour.head.weight)
    torch.testing.assert_close(with_heads.head.weight[1:], before[1:])
    assert with_heads.state_dict()["head.bias"].tolist() == [0.5, 0, 0, 0]
    assert start_from(grey, with_heads.state_dict()) == []
    x = torch.rand(1, 1, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(
            grey.eval()(x), colour.eval()(x.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ConfigError, match="no tensor of the bundle given to --init fits"):
        start_from(build_network(ModelConfig(widths=(48, 64))), {"other": torch.zeros(1)})


def test_weights_of_other_blocks_are_used_where_they_fit() -> None:
    """Bridge and head fit other blocks; a dense level fits no other width of the same growth."""
    dense = build_network(ModelConfig(widths=(16, 32), block="dense"))
    copied = dense.state_dict().keys() - start_from(dense, build_network(SMALL).state_dict())
    assert {name.partition(".")[0] for name in copied} == {"bridge", "head"}
    wider = build_network(ModelConfig(widths=(32, 32), block="dense"))
    assert "stem.1.layers.0.2.weight" in start_from(wider, dense.state_dict())


def test_batches_are_full_reproducible_and_of_one_epoch(dataset_uri: str) -> None:
    dataset = open_dataset(dataset_uri)
    config = small_config(shuffle_buffer=8)

    def stream(epochs: range) -> list[tuple[int, np.ndarray, np.ndarray]]:
        batches = stream_batches(dataset, config, epochs=epochs, rank=0, workers=1, weights=None)
        return [(epoch, batch.image, batch.mask) for epoch, batch in batches]

    first = stream(range(2, 4))
    assert [epoch for epoch, *_ in first] == [2, 2, 2, 3, 3, 3]
    for _, image, mask in first:
        assert (image.shape, mask.shape) == ((4, 64, 64, 3), (4, 64, 64))
    assert {int(value) for _, _, mask in first for value in np.unique(mask)} == {0, 1}
    for (_, image, mask), (_, again, mask_again) in zip(first, stream(range(2, 4)), strict=True):
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(mask, mask_again)
    seen = Counter(crop.tobytes() for _, image, _ in first for crop in image)
    assert max(seen.values()) == 1, "a crop is repeated within or across epochs"


def test_the_size_of_portions_and_tasks_changes_no_crop(
    dataset_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(dataset_uri)
    config = small_config(model=ModelConfig(widths=(16, 32), heads=("distance",)))

    def stream() -> list[crops.Crop]:
        spans = [
            span
            for epoch in range(3)
            for span in plan_epoch(
                dataset, "train", epoch=epoch, seed=0, rank=0, workers=1, size=12, weights=weights
            )
        ]
        return list(crops.stream_crops(dataset, spans, config))

    weights = np.arange(1.0, 1 + dataset.splits["train"])  # some images are drawn twice
    whole = stream()
    assert Counter(crop.epoch for crop in whole) == {0: 12, 1: 12, 2: 12}
    monkeypatch.setattr(crops, "portion_rows", lambda _: 10)
    monkeypatch.setattr(crops, "_TASK_CROPS", 1)
    for one, other in zip(whole, stream(), strict=True):
        assert one.epoch == other.epoch
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_balancing_draws_rare_modalities_more_often(dataset_uri: str) -> None:
    dataset = open_dataset(dataset_uri)
    modality = dataset.read_column("train", "modality").to_numpy()
    weights = draw_weights(dataset, small_config(balance_modalities=1.0))
    assert weights is not None
    totals = [weights[modality == name].sum() for name in np.unique(modality)]
    assert totals == pytest.approx([totals[0]] * len(totals))
    assert draw_weights(dataset, small_config()) is None, "images of one size are drawn equally"
    half_way = draw_weights(dataset, small_config(balance_modalities=None))
    assert half_way is not None
    np.testing.assert_allclose(half_way / half_way.min(), (weights / weights.min()) ** 0.4)


def test_large_images_are_drawn_more_often(generated: Path, tmp_path: Path, cluster: str) -> None:
    """With `balance_area` 0.5, an image of four times the crop's area is drawn twice as often."""
    for number, name in enumerate(("a", "b", "c", "d", "e", "big"), start=1):
        shape = (128, 128) if name == "big" else (40, 64)
        for folder, pixels in (
            ("images", np.full((*shape, 3), number, np.uint8)),
            ("masks", np.full(shape, 255, np.uint8)),
        ):
            storage.write_bytes(f"{tmp_path}/raw/{folder}/{name}.png", encode_png(pixels))
    lists = {"train": ["a", "b", "c", "d", "big"], "val": ["e"]}
    storage.write_bytes(f"{tmp_path}/split.json", json.dumps(lists).encode())
    prepare(
        PrepareConfig(
            input=(f"{tmp_path}/raw",),
            output=f"{tmp_path}/data",
            split="file",
            split_file=f"{tmp_path}/split.json",
        )
    )
    dataset = open_dataset(f"{tmp_path}/data")
    weights = draw_weights(dataset, small_config(balance_area=0.5))
    assert weights is not None
    names = dataset.read_column("train", "image_id")
    by_name = dict(zip(names, weights / weights.min(), strict=True))
    assert by_name == pytest.approx({"a": 1, "b": 1, "c": 1, "d": 1, "big": 2})
