"""The space on the command line is searched as given, or refused before anything starts."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from resunet_ray.config import TrainConfig
from resunet_ray.errors import ConfigError
from resunet_ray.sweep.space import apply, list_grid, parse_space

TRAINING = TrainConfig(data="data", output="output", workers=2)


def test_values_have_the_type_of_their_field() -> None:
    space = parse_space(
        [
            "learning_rate=loguniform:1e-5,1e-2",
            "batch_size=choice:4,8",
            "shuffle_buffer=uniform:64,128",
            "clip_norm=choice:none,1",
            "augment.enabled=choice:true,false",
            "loss=choice:bce,dice",
        ],
        TRAINING,
    )
    assert space == {
        "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
        "batch_size": CategoricalDistribution((4, 8)),
        "shuffle_buffer": IntDistribution(64, 128),
        "clip_norm": CategoricalDistribution((None, 1.0)),
        "augment.enabled": CategoricalDistribution((True, False)),
        "loss": CategoricalDistribution(("bce", "dice")),
    }


def test_the_default_space_is_learning_rate_and_batch_size() -> None:
    assert set(parse_space([], TRAINING)) == {"learning_rate", "batch_size"}


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        (
            "learning_rat=uniform:1,2",
            "--space learning_rat is not a searchable field: did you mean learning_rate?",
        ),
        ("model.widths=choice:16,32", "model.widths is not a searchable field"),
        ("workers=choice:1,2", "--space workers is the same for all trials"),
        (
            "batch_size=choice:4,7",
            "batch_size 7, which is invalid: --batch-size 7 is per step over all workers",
        ),
        ("batch_size=uniform:4,8", "batch_size 5, which is invalid"),
        ("crop=uniform:128,512", "crop 129, which is invalid"),
        ("loss=choice:bce,hinge", "'hinge' does not fit the field"),
        ("learning_rate=loguniform:0,1", "expected two numbers above 0"),
        (
            "learning_rate=uniform:2,1",
            "expected two numbers of the field's type, the smaller first",
        ),
        ("learning_rate=normal:1,2", "unknown kind 'normal', expected choice:A,B"),
        ("learning_rate=1", "expected FIELD=choice:A,B"),
        ("seed=choice:1,1", "lists a value twice"),
        (
            "optimizer=choice:adam,adamw",
            "optimizer adam, which is invalid: --weight-decay 0.01 would be ignored",
        ),
    ],
)
def test_an_invalid_space_is_refused_with_one_line(specification: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space([specification], TRAINING)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_are_invalid_only_together_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"allows optimizer adam, weight_decay 0.1, which is invalid"
    ):
        parse_space(["optimizer=choice:adamw,adam", "weight_decay=choice:0,0.1"], TRAINING)


def test_a_point_replaces_the_configured_values() -> None:
    changed = apply(TRAINING, {"learning_rate": 1e-5, "augment.flip": False, "augment.scale": 1.5})
    assert (changed.learning_rate, changed.augment.flip, changed.augment.scale) == (
        1e-5,
        False,
        1.5,
    )
    assert changed.epochs == TRAINING.epochs


def test_a_grid_is_every_combination_and_refuses_ranges() -> None:
    grid = list_grid(parse_space(["seed=choice:1,2", "loss=choice:bce,dice"], TRAINING))
    assert [tuple(point.values()) for point in grid] == [
        (1, "bce"),
        (1, "dice"),
        (2, "bce"),
        (2, "dice"),
    ]
    with pytest.raises(ConfigError, match="learning_rate is a range"):
        list_grid(parse_space([], TRAINING))
