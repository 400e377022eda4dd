"""Bundles that come with the package, one folder each, to be used by name: `--bundle nuclei`."""

import re
from pathlib import Path

from resunet_ray import storage

_FOLDER = Path(__file__).parent


def list_names() -> list[str]:
    """Return the names of the bundles."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/bundle.json"))


def locate(uri: str) -> str:
    """Return the path or URI of a bundle.

    Args:
        uri: name of a bundle in this package, a path, or a URI. Names come first: for a folder of
            the same name, give a path such as `./nuclei`.
    """
    return str(_FOLDER / uri) if _is_name(uri) else storage.absolute(uri)


def absolute(uri: str) -> str:
    """Return a bundle's location in a form that works in any process.

    A name is kept, because each node may have the package in a different place.
    """
    return uri if _is_name(uri) else storage.absolute(uri)


def _is_name(uri: str) -> bool:
    return re.fullmatch(r"\w+", uri) is not None and uri in list_names()
