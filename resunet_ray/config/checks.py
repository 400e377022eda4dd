"""What a configuration demands of its values: in range, and none that would be ignored."""

import tempfile
from dataclasses import fields
from typing import Any

from resunet_ray.errors import ConfigError

ANY = float("inf")
"""No upper limit."""
TINY = 1e-12
"""The smallest positive number that makes sense anywhere here."""
NODE_FOLDER = tempfile.gettempdir()
"""Where each node keeps temporary files."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_range(config: Any, low: float, high: float, *names: str, prefix: str = "") -> None:
    """Raise ConfigError unless the named numbers lie from `low` to `high`; None is allowed."""
    if high == ANY:
        expected = "above 0" if low == TINY else f"at least {low:g}"
    else:
        lowest = "above 0 and" if low == TINY else f"from {low:g}"
        highest = "below 1" if high == 1 - TINY else f"at most {high:g}" if low == TINY else ""
        expected = f"{lowest} {highest or f'to {high:g}'}"
    for name in names:
        value = getattr(config, name)
        message = f"--{prefix}{_flag(name)} {value}: must be {expected}"
        require(value is None or low <= value <= high, message)


def require_default(config: Any, because: str, *names: str) -> None:
    """Raise ConfigError if one of the named settings is given although it would be ignored."""
    default = {item.name: item.default for item in fields(config)}
    for name in names:
        value = getattr(config, name)
        message = f"--{_flag(name)} {value} would be ignored {because}: leave it out"
        require(value == default[name], message)


def require_focal_plane(config: Any) -> None:
    """Raise ConfigError if the number of a focal plane is negative."""
    require(
        not isinstance(config.z, int) or config.z >= 0,
        f"--z {config.z}: must be all, max, mean or a number from 0",
    )


def _flag(name: str) -> str:
    return name.replace("_", "-")
