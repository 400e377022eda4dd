"""The bundles that come with the package, a folder each, which a bundle's location may name: `--bundle nuclei`."""

import re
from pathlib import Path

from resunet_ray import storage

_FOLDER = Path(__file__).parent


def list_names() -> list[str]:
    """What there is."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/bundle.json"))


def locate(uri: str) -> str:
    """Where a bundle is: in this folder, if it is one of these, else where its path or URI says.

    Args:
        uri: a name, a path, or a URI. A folder of the same name as one of these is given with its path: `./nuclei`.
    """
    return str(_FOLDER / uri) if _is_name(uri) else storage.absolute(uri)


def absolute(uri: str) -> str:
    """A bundle's location as any process may use it: a name stays one, since the package is at another place on each node."""
    return uri if _is_name(uri) else storage.absolute(uri)


def _is_name(uri: str) -> bool:
    return re.fullmatch(r"\w+", uri) is not None and uri in list_names()
