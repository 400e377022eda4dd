"""What the names of files say: which are compared as equal, and which files are not read."""

import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable

from resunet_ray.data.raster.ome_zarr_metadata import METADATA, SUFFIX

HIDDEN, OTHER, NO_OME = "hidden", "not an image", "Zarr without metadata of OME"
"""Kinds of files that are passed over."""
ZARR = re.compile(rf"(.*?{re.escape(SUFFIX)})/(.*)", re.IGNORECASE)
"""Matches a file of a Zarr folder, as the folder and the rest."""

_SHOWN = 5  # suffixes in the log


def plain(name: str) -> str:
    """Return a name as it is compared: with composed letters (NFC).

    macOS writes some names with letters and accents apart (NFD), which look the same.
    """
    return unicodedata.normalize("NFC", name)


def other_forms(name: str) -> list[str]:
    """Return the same name with composed letters and with separate accents, if they differ."""
    forms = {unicodedata.normalize(form, name): None for form in ("NFC", "NFD")}
    return [form for form in forms if form != name]


def find_zarr(
    location: str, *, uri: str, matches: Callable[[str], object] | None = None
) -> str | None:
    """Return the image that a file of a Zarr folder belongs to: the folder, or a group in it.

    Fields of a plate are groups within its folder, which have to be named.

    Args:
        location: of the file, which `ZARR` matches.
        uri: of the input, at or above it.
        matches: tells the paths below the input that are wanted; None: all.

    Returns:
        None if it is not wanted.
    """
    found = ZARR.fullmatch(location)
    assert found is not None, f"{location} is not in a Zarr folder"
    folder, name = location.rsplit("/", 1)
    if matches is None:
        group = uri.rsplit("/", 1)[0] if uri == location and name in METADATA else uri
        return group if group.startswith(f"{found[1]}/") else found[1]
    if matches(plain(found[1].removeprefix(uri).lstrip("/"))):
        return found[1]
    is_group = name in METADATA and matches(plain(folder.removeprefix(uri).lstrip("/")))
    return folder if is_group else None


def is_hidden(path: str) -> bool:
    """Whether a file or one of its folders is hidden, or holds what macOS adds to an archive."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"
        for part in path.split("/")
    )


class PassedOver:
    """Files of the inputs that are not read, counted by kind. Threads may share it."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self._suffixes: Counter[str] = Counter()  # of those that are not images
        self._lock = threading.Lock()

    def add(self, path: str, kind: str) -> None:
        """Count a file."""
        name = path.rsplit("/", 1)[-1]
        with self._lock:
            self.kinds[kind] += 1
            if kind == OTHER:
                self._suffixes[name[name.rfind(".") :].lower() if "." in name else "no suffix"] += 1

    def __str__(self) -> str:
        suffixes = ", ".join(
            f"{suffix} {count}" for suffix, count in self._suffixes.most_common(_SHOWN)
        )
        return ", ".join(
            f"{count} {kind}{f' ({suffixes})' if kind == OTHER else ''}"
            for kind, count in self.kinds.most_common()
        )
