"""The listing: prefixes, globs, single files, archives and manifests become one stream of images.

Nothing is kept, so that millions of images need no more memory than a few. What is wrong with one
image, or with one archive among many, travels with it as an error. Only an input that does not
exist stops the job.
"""

import hashlib
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from resunet_ray import storage
from resunet_ray.data import slides, stacks
from resunet_ray.data.archives import Entry, is_archive, list_entries
from resunet_ray.data.raster.opening import SUFFIXES
from resunet_ray.errors import ConfigError, InputError, UnclearError
from resunet_ray.segment.planning.manifest import parse_mpp, read_manifest_rows, read_pixel_sizes
from resunet_ray.tasks import map_ahead

logger = logging.getLogger(__name__)

_SUFFIXES = (*SUFFIXES, *slides.SUFFIXES, *stacks.STACK_SUFFIXES)
_ZARR = re.compile(rf"(.*?{re.escape(stacks.ZARR_SUFFIX)})/(.*)", re.IGNORECASE)
_ZARR_METADATA = (".zattrs", "zarr.json")  # of versions 2 and 3
_GLOB = re.compile(r"[*?]")
_STAT_THREADS = 32  # look up a manifest's files one by one; object stores answer slowly
_SHOWN = 5  # names of ignored files in the log


@dataclass(frozen=True)
class ListedImage:
    """An image of the inputs, or what is wrong where one should be."""

    uri: str
    fingerprint: str
    member: str | None = None
    offset: int | None = None
    size: int | None = None
    etag: str | None = None
    mtime: datetime | None = None
    mask_uri: str | None = None
    mask_fingerprint: str | None = None
    mpp: float | None = None
    mpp_source: str | None = None
    error: Exception | None = None
    source_fingerprint: str | None = None
    """Of the file that holds it, with all that belongs to that."""

    @property
    def image_id(self) -> bytes:
        """Its name in every table: 16 bytes from location, content, true mask and pixel size.

        A pixel size that the command line gives to all images does not count: it is a setting.
        """
        parts = [self.uri, self.member or "", self.fingerprint]
        parts += [] if self.mask_fingerprint is None else [f"mask {self.mask_fingerprint}"]
        parts += [] if self.mpp is None or self.mpp_source == "argument" else [f"mpp {self.mpp!r}"]
        key = "\0".join(parts)
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()


@dataclass
class Listing:
    """The images of some inputs."""

    inputs: Sequence[str]
    cache: storage.Cache
    """An expanded tar has to fit into it."""
    masks: str | None = None
    """Folder of true masks. Each has its image's path below the input; its suffix may differ."""
    mpp: float | None = None
    """Microns per pixel of all images."""
    mpp_csv: str | None = None
    """Pixel sizes of some images by location or name, used where the manifest has none."""
    exclude: str | None = None
    """Location that is not read, even if it lies below an input: the output."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of files whose names are not those of images, by suffix."""

    def __iter__(self) -> Iterator[ListedImage]:
        masks, known = _index_masks(self.masks), read_pixel_sizes(self.mpp_csv)
        for uri in self.inputs:
            for path, found in self._expand(storage.absolute(uri)):
                if mask := masks.get(_stem(path)):
                    found = replace(found, mask_uri=mask[0], mask_fingerprint=mask[1])
                mpp, source = found.mpp, found.mpp_source
                if self.mpp is not None:
                    mpp, source = self.mpp, "argument"
                elif mpp is None:
                    name = found.member or found.uri
                    mpp = known.get(name, known.get(name.rsplit("/", 1)[-1]))
                    source = None if mpp is None else "sidecar"
                yield replace(found, mpp=mpp, mpp_source=source)
        if self.ignored:
            total = sum(self.ignored.values())
            kinds = ", ".join(
                f"{suffix or 'no suffix'} ({count})"
                for suffix, count in self.ignored.most_common(_SHOWN)
            )
            logger.info(
                "%d files were ignored, since their suffixes are not those of images: %s",
                total,
                kinds,
            )

    def _expand(self, uri: str) -> Iterator[tuple[str, ListedImage]]:
        """Yield each image of one input with its path below the input."""
        if _GLOB.search(uri) and not storage.exists(uri):
            base = uri[: _GLOB.search(uri).start()].rsplit("/", 1)[0]  # type: ignore[union-attr]
            matches = _compile_glob(uri[len(base) + 1 :])
            yield from self._walk(base, wanted=lambda path: matches.fullmatch(path) is not None)
        elif uri.endswith((".parquet", ".csv")):
            yield from _read_manifest(uri, self.cache)
        else:
            yield from self._walk(uri, wanted=lambda _: True)

    def _walk(
        self, uri: str, *, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, ListedImage]]:
        for file in storage.walk_files(uri):
            location = storage.join(uri, file.path) if file.path else uri
            if (folder := _ZARR.fullmatch(location)) is not None:  # its chunks are not listed
                path = folder[1].rsplit("/", 1)[-1]
                if folder[2] in _ZARR_METADATA and (folder[1] == uri or wanted(path)):
                    found = _found(folder[1], replace(file, size=0))
                    yield path, replace(found, source_fingerprint=None)
                continue
            if _is_hidden(file.path) or not (wanted(file.path) or file.error is not None):
                continue
            if self.exclude is not None and location.startswith(f"{self.exclude.rstrip('/')}/"):
                continue
            if file.error is not None:
                yield file.path, replace(_found(location, file), error=file.error)
            elif is_archive(location):
                yield from _list_archive(location, file, self.cache)
            # A file that was named itself is always tried.
            elif not file.path or file.path.lower().endswith(_SUFFIXES):
                yield file.path or location.rsplit("/", 1)[1], _found(location, file)
            else:
                name = file.path.rsplit("/", 1)[-1]
                self.ignored[name[name.rfind(".") :].lower() if "." in name else ""] += 1


def _found(uri: str, file: storage.FileStatus) -> ListedImage:
    try:
        uri.encode()
    except UnicodeEncodeError:
        shown = uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        error = InputError(f"{shown}: the name is not valid UTF-8: rename the file")
        return ListedImage(shown, file.fingerprint, size=file.size, mtime=file.mtime, error=error)
    fingerprint = _fingerprint(uri, file)
    return ListedImage(
        uri,
        fingerprint,
        size=file.size,
        etag=file.etag,
        mtime=file.mtime,
        source_fingerprint=fingerprint,
    )


def _fingerprint(uri: str, file: storage.FileStatus) -> str:
    """Fingerprint a file and all that belongs to it: some slides keep their pixels in a folder."""
    try:
        parts = [part for beside in slides.companions(uri) for part in storage.walk_files(beside)]
    except InputError:  # opening the slide will say what is missing
        parts = []
    return storage.join_fingerprints(file.fingerprint, parts)


def _list_archive(
    uri: str, file: storage.FileStatus, cache: storage.Cache
) -> Iterator[tuple[str, ListedImage]]:
    base = _found(uri, file)
    if base.error is not None:
        yield uri, base
        return
    try:
        entries = list_entries(uri, max_bytes=cache.max_bytes, fingerprint=file.fingerprint)
        for path, entry in entries:
            if _is_hidden(path):
                continue
            if path.lower().endswith(SUFFIXES):
                yield path, _member(base, entry)
            elif path.lower().endswith(slides.SUFFIXES):
                error = InputError(
                    f"{entry.name} is a slide inside an archive: unpack it, since slides are read "
                    "in parts"
                )
                yield path, replace(_member(base, entry), error=error)
    except InputError as error:  # of this archive only
        yield uri, replace(base, error=error)


def _member(archive: ListedImage, entry: Entry) -> ListedImage:
    fingerprint = (
        f"{archive.fingerprint}-{entry.size}-{entry.offset}"
        if entry.crc is None
        else f"{entry.crc}-{entry.size}"
    )
    # For display: the member is read by its offset.
    name = str(entry.member).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return replace(
        archive, member=name, offset=entry.offset, size=entry.size, fingerprint=fingerprint
    )


def _is_hidden(path: str) -> bool:
    return any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"
        for part in path.split("/")
    )


def _compile_glob(pattern: str) -> re.Pattern[str]:
    """Compile a glob: `**` matches any folders, `*` and `?` anything but a slash."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))


def _stem(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rsplit('.', 1)[0]}"


def _index_masks(uri: str | None) -> dict[str, tuple[str, str]]:
    """Map the path of each mask, without its suffix, to its location and fingerprint."""
    if uri is None:
        return {}
    uri = storage.absolute(uri)
    files = (file for file in storage.walk_files(uri) if not _is_hidden(file.path))
    return {_stem(file.path): (storage.join(uri, file.path), file.fingerprint) for file in files}


def _read_manifest(uri: str, cache: storage.Cache) -> Iterator[tuple[str, ListedImage]]:
    """Yield the images that a CSV or Parquet file lists. Each is looked up to detect changes."""
    rows = read_manifest_rows(uri)
    archives: dict[str, dict[str, list[ListedImage]]] = {}
    lock = threading.Lock()  # so that an archive is listed once

    def look_up(row: dict[str, Any]) -> tuple[str, ListedImage]:
        location, member = str(row["uri"]), row.get("member") or None
        try:
            location = storage.absolute(location)
            mpp, mask = parse_mpp(row.get("mpp")), row.get("mask_uri") or None
            if member is None:
                (file,) = storage.walk_files(location)
                found = _found(location, file)
            else:
                with lock:
                    found = _find_member(location, member, archives, cache)
            found = replace(found, mpp=mpp, mpp_source=None if mpp is None else "manifest")
            if mask is not None:
                mask = storage.absolute(mask)
                (file,) = storage.walk_files(mask)
                found = replace(found, mask_uri=mask, mask_fingerprint=file.fingerprint)
        except (InputError, ConfigError, OSError, ValueError) as error:
            location = storage.mask_credentials(location)
            reason = storage.mask_credentials(str(error))
            message = f"{location} is listed in {uri} and cannot be used: {reason}"
            kind = UnclearError if isinstance(error, UnclearError | OSError) else InputError
            found = ListedImage(location, "absent", member=member, error=kind(message))
        return location.rsplit("/", 1)[-1], found

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        yield from map_ahead(pool, look_up, rows, depth=4 * _STAT_THREADS)


def _find_member(
    location: str,
    member: str,
    archives: dict[str, dict[str, list[ListedImage]]],
    cache: storage.Cache,
) -> ListedImage:
    if location not in archives:
        (file,) = storage.walk_files(location)
        named: dict[str, list[ListedImage]] = {}
        for _, item in _list_archive(location, file, cache):
            named.setdefault(str(item.member), []).append(item)
        archives[location] = named
    found = archives[location].get(member, [])
    if len(found) != 1:
        raise InputError(
            f"it has {len(found) or 'no'} member{'s' if len(found) > 1 else ''} {member}: "
            "expected one"
        )
    return found[0]
