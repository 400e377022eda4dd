"""What a configuration demands of its values: in range, and none that would be ignored."""

import tempfile
from dataclasses import fields
from typing import Any

from resunet_ray.errors import ConfigError

ANY = float("inf")
"""No upper limit."""
TINY = 1e-12
"""The least positive number that makes sense anywhere here."""
NODE_FOLDER = tempfile.gettempdir()
"""Where each node keeps what is temporary."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_range(config: Any, low: float, high: float, *names: str, prefix: str = "") -> None:
    """Numbers that must lie from `low` to `high`; None is left alone."""
    for name in names:
        value = getattr(config, name)
        lowest = "above 0" if low == TINY else f"from {low:g} on"
        highest = (
            "" if high == ANY else f" and below {high:g}" if high == 1 - TINY else f" to {high:g}"
        )
        require(
            value is None or low <= value <= high,
            f"--{prefix}{_flag(name)} {value}: expected a number {lowest}{highest}".replace(
                " on to ", " to "
            ),
        )


def require_default(config: Any, because: str, *names: str) -> None:
    """A setting that would be ignored is refused."""
    default = {item.name: item.default for item in fields(config)}
    for name in names:
        value = getattr(config, name)
        require(
            value == default[name],
            f"--{_flag(name)} {value} would be ignored {because}: leave it out",
        )


def _flag(name: str) -> str:
    return name.replace("_", "-")
