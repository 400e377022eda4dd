"""Configurations as JSON text: what a job writes beside its results, and what `--config` reads."""

import json
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from resunet_ray.errors import ConfigError

Config = TypeVar("Config")

RENAMED: dict[str, dict[Any, str]] = {
    **{name: {"report": "baseline"} for name in ("recipe", "split", "protocol")},
    "gpu": {None: "auto", True: "on", False: "off", "None": "auto", "True": "on", "False": "off"},
}
"""Values of fields that had another name in version 0.1.0, and their names today."""


def save_config(config: Any) -> str:
    """Return a configuration as JSON text, which `load_config` reads."""
    return json.dumps(asdict(config), indent=2)


def load_config(text: str, *, kind: type[Config], source: str) -> Config:
    """Load a configuration from a JSON text, or from `config` in it, as in a job's records.

    Raises:
        ConfigError: it is not a JSON object, or a field is unknown, missing or of the wrong type.
    """
    try:
        content = TypeAdapter(dict[str, Any]).validate_json(text)
        fields = _rename_old_values(content.get("config", content))
        return TypeAdapter(kind).validate_python(fields, extra="forbid")
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()
        )
        raise ConfigError(f"{source} is not a saved {kind.__name__}: {problems}") from None


def _rename_old_values(values: Any) -> Any:
    """Return the same settings in today's words."""
    if not isinstance(values, dict):
        return values
    return {
        name: RENAMED[name].get(value, value)
        if name in RENAMED and isinstance(value, str | bool | None)
        else _rename_old_values(value)
        for name, value in values.items()
    }
