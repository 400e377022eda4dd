"""A wrong setting is refused, with its name and what was expected; a saved one is read back."""

from typing import Any

import pytest

from resunet_ray.config import (
    AugmentConfig,
    EvaluateConfig,
    ModelConfig,
    PrepareConfig,
    PreprocessConfig,
    SegmentConfig,
    SweepConfig,
    TrainConfig,
    baseline_recipe,
    load_config,
    long_recipe,
    save_config,
)
from resunet_ray.config.roles import DECIDES, MAY_CHANGE, list_fields
from resunet_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_size": 9, "workers": 2},
            "--batch-size 9 is per step over all workers and does not divide by 2",
        ),
        (
            {"batch_size": 4, "workers": 4, "min_workers": 2},
            "does not divide by 3: expected a multiple of every number of workers",
        ),
        ({"workers": 2, "min_workers": 3}, "--min-workers 3: must be from 1 to 2"),
        ({"optimizer": "adam"}, "--weight-decay 0.01 would be ignored by --optimizer adam"),
        (
            {"loss": "dice", "positive_weight": 2.0},
            "--positive-weight 2.0 would be ignored by --loss dice",
        ),
        ({"crop": 100}, "--crop 100 and --preprocess.tile 512: must be multiples of 16"),
        ({"ema_decay": 1.0}, "--ema-decay 1.0: must be above 0 and below 1"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: must be above 0"),
        ({"early_stopping_patience": 0}, "--early-stopping-patience 0: must be at least 1"),
        ({"balance_area": 1.5}, "--balance-area 1.5: must be from 0 to 1"),
        ({"crop": -256}, "--crop -256: must be at least 1"),
        ({"warmup_epochs": -1.0}, "--warmup-epochs -1.0: must be at least 0"),
        (
            {"plateau_patience": 3},
            "--plateau-patience 3 would be ignored by --schedule cosine: leave it out",
        ),
        (
            {"preprocess": PreprocessConfig(resize=256), "crop": 128},
            "--crop 128 would be ignored with --preprocess.resize",
        ),
        (
            {"preprocess": PreprocessConfig(resize=256), "balance_area": 0.5},
            "--balance-area 0.5 would be ignored with",
        ),
        ({"name": "a/b"}, "--name 'a/b': must be the name of one folder"),
        ({"mlflow": "https://me:secret@host"}, "--mlflow carries credentials"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(".", r"\.")):
        TrainConfig(data="a", output="b", **fields)  # type: ignore[arg-type]


def test_parts_check_themselves() -> None:
    with pytest.raises(ConfigError, match="leaves nothing of --preprocess.tile 64"):
        PreprocessConfig(tile=64, context=32)
    with pytest.raises(
        ConfigError, match="--augment.no-enabled and --augment.blur: the second would be ignored"
    ):
        AugmentConfig(enabled=False, blur=3.0)
    with pytest.raises(ConfigError, match="at least two positive multiples of 16"):
        ModelConfig(widths=(16,))
    with pytest.raises(ConfigError, match=r"--model.widths \(16, 24\)"):
        ModelConfig(widths=(16, 24))
    with pytest.raises(ConfigError, match=r"--augment.blur-probability 2: must be from 0 to 1"):
        AugmentConfig(blur_probability=2)
    with pytest.raises(ConfigError, match=r"--augment.gamma 0.5: must be at least 1"):
        AugmentConfig(gamma=0.5)
    with pytest.raises(
        ConfigError, match=r"--seed 5 would be ignored by --split baseline: leave it out"
    ):
        PrepareConfig(input=("a",), output="b", seed=5)
    with pytest.raises(ConfigError, match=r"--actors 0: must be at least 1"):
        EvaluateConfig(bundle="a", data="b", output="c", actors=0)


def test_large_images_are_drawn_more_often_unless_one_crop_shows_all() -> None:
    assert TrainConfig(data="a", output="b").area_exponent == 0.5
    assert TrainConfig(data="a", output="b", balance_area=0.0).area_exponent == 0.0
    assert (
        TrainConfig(data="a", output="b", preprocess=PreprocessConfig(resize=256)).area_exponent
        == 0.0
    )


def test_a_sweep_in_which_no_trial_could_be_stopped_early_is_refused() -> None:
    training = TrainConfig(data="data", output="output", epochs=8, validation_interval=4)
    assert SweepConfig(training=training, grace_epochs=4).grace_epochs == 4
    with pytest.raises(
        ConfigError, match="--grace-epochs 5 leaves --scheduler asha nothing to stop in 8 epochs"
    ):
        SweepConfig(training=training, grace_epochs=5)


def test_a_saved_configuration_is_read_back() -> None:
    config = TrainConfig(
        data="a", output="b", augment=AugmentConfig(scale=2.0), model=ModelConfig(widths=(16, 48))
    )
    assert load_config(save_config(config), kind=TrainConfig, source="f") == config
    baseline = baseline_recipe(data="a", output="b")
    assert load_config(save_config(baseline), kind=TrainConfig, source="f") == baseline


def test_a_saved_configuration_of_version_0_1_0_is_read() -> None:
    config = load_config(
        '{"config": {"input": ["a"], "output": "b", "split": "report"}}',
        kind=PrepareConfig,
        source="f",
    )
    assert config.split == "baseline"
    saved = '{"bundle": "a", "data": "b", "output": "c", "protocol": "report"}'
    assert load_config(saved, kind=EvaluateConfig, source="f").protocol == "baseline"
    for before, now in (("null", "auto"), ("true", "on"), ("false", "off")):
        training = f'{{"data": "a", "output": "b", "gpu": {before}}}'
        assert load_config(training, kind=TrainConfig, source="f").gpu == now
        assert (
            load_config(f'{{"training": {training}}}', kind=SweepConfig, source="f").training.gpu
            == now
        )


def test_a_field_s_role_is_declared_at_the_field() -> None:
    """A digest of version 0.1.0 still names the same work."""
    assert {"threshold", "mpp", "masks"} <= set(list_fields(SegmentConfig, DECIDES))
    assert set(list_fields(SegmentConfig, MAY_CHANGE)) >= {"output", "cache", "cache_gib", "actors"}
    assert not set(list_fields(SegmentConfig, MAY_CHANGE)) & set(
        list_fields(SegmentConfig, DECIDES)
    )
    digest = "3de628f66bb83920c7e7d64c378273f90136d2122f69828c94d4c15f067bb466"
    assert SegmentConfig(input=("a",), output="b").digest == digest
    assert (
        SegmentConfig(input=("a",), output="b", region=256, readers=9, cache="/x").digest == digest
    )
    digest = "8a0d46e65c3e5f194bfc17b3897a4ae03e67f3cc16a5fb429416c4f23150beab"
    assert (
        SegmentConfig(input=("a",), output="b", mpp=0.3, tissue="off", flips=True).digest == digest
    )
    assert "nodes_seconds" in list_fields(TrainConfig, MAY_CHANGE)


def test_a_saved_configuration_with_an_unknown_or_wrong_field_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"f is not a saved TrainConfig: .*learning_rat: "):
        load_config('{"data": "a", "output": "b", "learning_rat": 1}', kind=TrainConfig, source="f")
    with pytest.raises(ConfigError, match=r"epochs: Input should be a valid integer"):
        load_config('{"data": "a", "output": "b", "epochs": "many"}', kind=TrainConfig, source="f")
    with pytest.raises(ConfigError, match=r"f is not a saved TrainConfig: file: Invalid JSON"):
        load_config("data: a", kind=TrainConfig, source="f")


def test_the_baseline_s_recipe_is_the_baseline_s() -> None:
    """Resize 256, no augmentation, BCE, Adam 1e-4, batch 8, 10 epochs, plateau 0.1/5/1e-7.

    Also Keras's batch normalisation.
    """
    config = baseline_recipe(data="a", output="b")
    assert (config.preprocess.resize, config.augment.enabled, config.loss, config.optimizer) == (
        256,
        False,
        "bce",
        "adam",
    )
    assert (config.learning_rate, config.batch_size, config.epochs) == (1e-4, 8, 10)
    assert (
        config.schedule,
        config.plateau_factor,
        config.plateau_patience,
        config.min_learning_rate,
    ) == (
        "plateau",
        0.1,
        5,
        1e-7,
    )
    assert (config.model.norm_momentum, config.model.norm_epsilon) == (0.01, 1e-3)
    assert (config.monitor, config.ema_decay, config.clip_norm) == ("loss", None, None)
    assert config.model.heads == ()


def test_the_long_recipe_sees_170_000_crops_of_553_images() -> None:
    config = long_recipe(data="a", output="b")
    steps = 553 // config.batch_size
    assert config.epochs * steps * config.batch_size == pytest.approx(170_000, rel=0.01)
    assert config.warmup_epochs * steps == pytest.approx(300, rel=0.05)
    assert config.model.heads == TrainConfig(data="a", output="b").model.heads


def test_a_diameter_is_in_pixels_or_in_microns() -> None:
    def at(diameter: Any, mpp: float | None) -> Any:
        return SegmentConfig(input=("a",), output="b", diameter=diameter).diameter_at(mpp)

    assert [at("auto", 0.5), at("none", 0.5), at(90.0, 0.5)] == ["auto", "none", 90]
    assert [at("12um", 0.5), at("7.5um", 0.25), at("12um", None)] == [24, 30, "auto"]
    for wrong in (0.0, "12", "0um", "12mm", "um", "big"):
        with pytest.raises(ConfigError, match=f"--diameter {wrong}: must be auto, none, a number"):
            at(wrong, None)


@pytest.mark.parametrize("name", ["run#1", "my run", "50%", "run?", "Zellkerne-größer"])
def test_a_training_writes_to_no_location_that_ray_would_read_as_another(name: str) -> None:
    """`s3://lab/run#1` and `s3://lab/run#2` would share their checkpoints."""
    assert TrainConfig(data="a", output=f"/runs/{name}").output == f"/runs/{name}"
    for output, run in ((f"s3://lab/{name}", "train"), ("s3://lab/x", name)):
        with pytest.raises(ConfigError, match="Ray Train cannot write to an object store under"):
            TrainConfig(data="a", output=output, name=run)
