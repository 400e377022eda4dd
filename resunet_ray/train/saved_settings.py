"""The settings that a run started with: the same output folder accepts no others."""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import Any

from resunet_ray import storage
from resunet_ray.config import load_config
from resunet_ray.errors import ConfigError


def write_settings_once(
    uri: str, config: Any, *, data_digest: str, free: Collection[str], advice: str
) -> None:
    """Write the settings if the file does not exist yet; otherwise check that they are the same.

    Args:
        uri: settings file.
        config: the resolved configuration, a dataclass.
        data_digest: digest of the data set.
        free: fields that may change, `part.field` or a whole `part`.
        advice: what to do instead, for the error message.

    Raises:
        ConfigError: a setting or the data has changed; the message says which and how.
    """
    if not storage.exists(uri):
        content = {"config": asdict(config), "data_digest": data_digest}
        storage.write_bytes(uri, json.dumps(content, indent=2).encode())
        return
    saved = json.loads(storage.read_bytes(uri))
    before = dict(
        _flatten(asdict(load_config(json.dumps(saved["config"]), kind=type(config), source=uri)))
    )
    changed = [
        f"{name} was {before[name]!r} and is now {value!r}"
        for name, value in _flatten(asdict(config))
        if name not in free and before[name] != value
    ]
    if saved["data_digest"] != data_digest:
        changed.append(
            f"the data's digest was {saved['data_digest'][:12]} and is now {data_digest[:12]}"
        )
    if changed:
        raise ConfigError(
            f"{storage.parent(uri)} holds a run with other settings ({'; '.join(changed)}): "
            f"{advice}"
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
