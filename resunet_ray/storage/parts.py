"""The files that one image consists of, with a fingerprint of all of them."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resunet_ray.errors import ChangedError, InputError
from resunet_ray.storage import locations
from resunet_ray.storage.walk import FileStatus, look_up, walk_files


@dataclass(frozen=True)
class Part:
    """A file of an image."""

    uri: str
    name: str
    """Its path, beside or below the image."""
    size: int
    fingerprint: str


def join_fingerprints(first: str, beside: Iterable[FileStatus]) -> str:
    """Return the fingerprint of a file together with all that belongs to it, if anything does."""
    parts = sorted(f"{part.path} {part.fingerprint}" for part in beside)
    together = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{first} {together}" if parts else first


def join_folder(files: Iterable[FileStatus]) -> str:
    """Return the fingerprint of the files of a folder that is one image."""
    return join_fingerprints("folder", files)


def is_part(path: str, *, suffix: str) -> bool:
    """Whether a file is part of a folder that is one image, whose other files do not count."""
    return path.lower().endswith(suffix) and not path.rsplit("/", 1)[-1].startswith(".")


def list_parts(
    expected: str | None, *, uri: str, companions: Sequence[str], suffix: str | None
) -> tuple[str, list[Part]]:
    """List the files of an image, and return their fingerprint as well.

    Args:
        expected: the fingerprint as it was listed; None: any.
        uri: the image.
        companions: folders or files that belong next to it.
        suffix: it is a folder, whose files that end so are its parts; None: it is a file.

    Raises:
        ChangedError: the fingerprint is not the expected one.
        InputError: the image or a companion does not exist.
    """
    beside = {companion: _list_companion(companion, of=uri) for companion in companions}
    if suffix is None:
        own = [look_up(uri)]
        first = own[0].fingerprint
    else:
        files = walk_files(uri, deep=False)
        own = [file for file in files if is_part(file.path, suffix=suffix)]
        first = join_folder(own)
    found = join_fingerprints(first, itertools.chain.from_iterable(beside.values()))
    if expected not in (None, found):
        raise ChangedError(f"{uri} has changed since it was listed")
    every = {uri: own, **beside}
    return found, [_part(place, file) for place, below in every.items() for file in below]


def _part(uri: str, file: FileStatus) -> Part:
    location = locations.join(uri, file.path) if file.path else uri
    name = f"{uri.rsplit('/', 1)[1]}/{file.path}".rstrip("/")
    return Part(location, name, file.size, file.fingerprint)


def _list_companion(uri: str, *, of: str) -> list[FileStatus]:
    try:
        return list(walk_files(uri))
    except InputError as error:
        raise InputError(
            f"{of} is incomplete: {error}. It belongs to the slide: put it next to the file"
        ) from None
