"""The search space, parsed from the command line and checked before anything starts."""

import difflib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import TypeAdapter, ValidationError

from resunet_ray.config import TrainConfig
from resunet_ray.config.roles import MAY_CHANGE, SHARED, list_fields
from resunet_ray.errors import ConfigError

Space = dict[str, BaseDistribution]
"""Optuna's distribution of each searched training field, by name: `loss`, `augment.enabled`."""

Parameters = dict[str, Any]
"""One point of a space: the value of each searched field."""

_DEFAULT = ("learning_rate=loguniform:1e-4,1e-2", "batch_size=choice:4,8,16")
_KINDS = "choice:A,B,…, uniform:LOW,HIGH or loguniform:LOW,HIGH"
_MOST_TRIED = 4096  # combinations checked before the start
_MOST_LISTED = 1024  # whole numbers of a range checked one by one


def parse_space(specifications: Sequence[str], training: TrainConfig) -> Space:
    """Parse a space whose every corner and choice makes a valid training configuration.

    Args:
        specifications: each `FIELD=KIND:VALUES`; empty for learning rate and batch size.
        training: the settings that are not searched.

    Raises:
        ConfigError: a field is unknown or cannot be searched, a value does not have the field's
            type, or settings contradict each other.
    """
    space: Space = {}
    for specification in specifications or _DEFAULT:
        name, equals, values = specification.partition("=")
        if not equals or ":" not in values:
            raise ConfigError(f"--space {specification}: expected FIELD={_KINDS}")
        if name in space:
            raise ConfigError(f"--space {name} is given twice: give it once")
        kind, _, text = values.partition(":")
        space[name] = _parse_values(
            specification, _field_type(name, training), kind=kind, values=text.split(",")
        )
    for parameters in _probe(space):
        try:
            apply(training, parameters)
        except ConfigError as error:
            shown = ", ".join(f"{name} {value}" for name, value in parameters.items())
            raise ConfigError(f"--space allows {shown}, which is invalid: {error}") from None
    return space


def apply(training: TrainConfig, parameters: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with the values of a point of the space.

    Raises:
        ConfigError: the point contradicts the other settings.
    """
    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    own = {}
    for name, value in parameters.items():
        part, dot, field = name.rpartition(".")
        if dot:
            parts[part][field] = value
        else:
            own[name] = value
    return replace(
        training,
        **own,
        **{part: replace(getattr(training, part), **values) for part, values in parts.items()},
    )


def list_grid(space: Space) -> list[Parameters]:
    """List every combination of choices, the last field changing fastest.

    Raises:
        ConfigError: a field is a range, which has no grid.
    """
    choices = {}
    for name, distribution in space.items():
        if not isinstance(distribution, CategoricalDistribution):
            raise ConfigError(f"--space {name} is a range: --search grid needs {name}=choice:A,B,…")
        choices[name] = distribution.choices
    return _combine(choices)


def _combine(values: Mapping[str, Sequence[Any]]) -> list[Parameters]:
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def _field_type(name: str, training: TrainConfig) -> Any:
    part, dot, field = name.rpartition(".")
    owner = getattr(training, part, None) if dot else training
    fixed = {*list_fields(TrainConfig, SHARED), *list_fields(TrainConfig, MAY_CHANGE)}
    known = set(_list_fields(training)) - fixed
    if name not in known:
        reason = "is the same for all trials" if name in fixed else "is not a searchable field"
        close = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"--space {name} {reason}: {hint}--help-all lists the training fields")
    return get_type_hints(type(owner), include_extras=True)[field]


def _list_fields(training: TrainConfig) -> Iterator[str]:
    for name, value in asdict(training).items():
        if isinstance(value, dict):
            yield from (
                f"{name}.{field}" for field, inner in value.items() if not isinstance(inner, tuple)
            )
        else:
            yield name


def _parse_values(
    specification: str, kind_of_field: Any, *, kind: str, values: list[str]
) -> BaseDistribution:
    parsed = [_parse_value(specification, TypeAdapter(kind_of_field), value) for value in values]
    if kind == "choice":
        if len(set(parsed)) < len(parsed):
            raise ConfigError(f"--space {specification} lists a value twice: list each once")
        return CategoricalDistribution(parsed)
    if kind not in ("uniform", "loguniform"):
        raise ConfigError(f"--space {specification}: unknown kind {kind!r}, expected {_KINDS}")
    numbers = [
        value for value in parsed if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    log = kind == "loguniform"
    if (
        len(numbers) != 2
        or len(parsed) != 2
        or not numbers[0] < numbers[1]
        or (log and numbers[0] <= 0)
    ):
        raise ConfigError(
            f"--space {specification}: expected two numbers{' above 0' if log else ''} "
            "of the field's type, the smaller first"
        )
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(int(numbers[0]), int(numbers[1]), log=log)
    return FloatDistribution(float(numbers[0]), float(numbers[1]), log=log)


def _parse_value(specification: str, adapter: TypeAdapter[Any], text: str) -> Any:
    """Parse a value as on the command line: a word, a number, true, false or none."""
    try:
        if text.lower() == "none":
            return adapter.validate_python(None)
        return adapter.validate_strings(text)
    except ValidationError as error:
        raise ConfigError(
            f"--space {specification}: {text!r} does not fit the field: {error.errors()[0]['msg']}"
        ) from None


def _probe(space: Space) -> list[Parameters]:
    """List the points to check: all combinations of choices, ends of ranges and whole numbers.

    Where there are too many combinations, each value is checked once.
    """
    values = {name: _probe_one(distribution) for name, distribution in space.items()}
    count = 1
    for found in values.values():
        count *= len(found)
    if count <= _MOST_TRIED:
        return _combine(values)
    first = {name: found[0] for name, found in values.items()}
    return [{**first, name: value} for name, found in values.items() for value in found]


def _probe_one(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution), (
        f"parse_space never makes {distribution}"
    )
    ends = [distribution.low, distribution.high]
    if (
        isinstance(distribution, IntDistribution)
        and distribution.high - distribution.low < _MOST_LISTED
    ):
        return list(range(distribution.low, distribution.high + 1))
    return ends
