"""Inputs to images: prefixes, globs, single files, archives and manifests become one stream of what there is to segment.

Nothing is kept, so that millions of images need no more memory than a few. What is wrong with one image, or with one archive
among many, travels with it as an error; only an input that is not there at all stops the job.
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
from resunet_ray.data import slides
from resunet_ray.data.ahead import map_ahead
from resunet_ray.data.archives import Entry, is_archive, list_entries
from resunet_ray.data.images import SUFFIXES
from resunet_ray.errors import ConfigError, InputError
from resunet_ray.segment.planning.manifest import parse_mpp, read_manifest_rows, read_pixel_sizes

logger = logging.getLogger(__name__)

_SUFFIXES = SUFFIXES + slides.SUFFIXES
_GLOB = re.compile(r"[*?]")
_STAT_THREADS = 32  # a manifest's files are looked up one by one, and object stores answer slowly
_SHOWN = 5  # names of ignored files in the log


@dataclass(frozen=True)
class Found:
    """One image that was found, or what was found wrong where one should be."""

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

    @property
    def image_id(self) -> bytes:
        """Its name in every table: 16 bytes that differ when place, content, true mask or pixel size do.

        But for a pixel size that the command line gives to all images: it is a setting.
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
    """What a compressed tar comes to has to fit there."""
    masks: str | None = None
    """Folder of true masks, each with its image's path below the input, whatever its suffix."""
    mpp: float | None = None
    mpp_csv: str | None = None
    """Pixel sizes of some images, by location or name, where no manifest says."""
    exclude: str | None = None
    """Location whose files are no input: the output, where it lies among them."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Files that are no images by their names, by suffix."""

    def __iter__(self) -> Iterator[Found]:
        masks, known = _index_masks(self.masks), read_pixel_sizes(self.mpp_csv)
        for uri in self.inputs:
            for path, found in self._expand(storage.absolute(uri)):
                if mask := masks.get(_stem(path)):
                    found = replace(found, mask_uri=mask[0], mask_fingerprint=mask[1])
                mpp, source = found.mpp, found.mpp_source
                if self.mpp is not None:
                    mpp, source = self.mpp, "argument"
                elif mpp is None and found.member is None:
                    mpp = known.get(found.uri, known.get(found.uri.rsplit("/", 1)[-1]))
                    source = None if mpp is None else "sidecar"
                yield replace(found, mpp=mpp, mpp_source=source)
        if self.ignored:
            total = sum(self.ignored.values())
            kinds = ", ".join(
                f"{suffix or 'no suffix'} ({count})"
                for suffix, count in self.ignored.most_common(_SHOWN)
            )
            logger.info("%d files are no images by their names and were ignored: %s", total, kinds)

    def _expand(self, uri: str) -> Iterator[tuple[str, Found]]:
        """Each image of one input, with its path below it."""
        if _GLOB.search(uri) and not storage.exists(uri):
            base = uri[: _GLOB.search(uri).start()].rsplit("/", 1)[0]  # type: ignore[union-attr]
            matches = _compile_glob(uri[len(base) + 1 :])
            yield from self._walk(base, wanted=lambda path: matches.fullmatch(path) is not None)
        elif uri.endswith((".parquet", ".csv")):
            yield from _read_manifest(uri, self.cache)
        else:
            yield from self._walk(uri, wanted=lambda _: True)

    def _walk(self, uri: str, *, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Found]]:
        for file in storage.walk_files(uri):
            location = storage.join(uri, file.path) if file.path else uri
            if _is_hidden(file.path) or not (wanted(file.path) or file.error is not None):
                continue
            if self.exclude is not None and location.startswith(f"{self.exclude.rstrip('/')}/"):
                continue
            if file.error is not None:
                yield file.path, replace(_found(location, file), error=file.error)
            elif is_archive(location):
                yield from _list_archive(location, file, self.cache)
            elif not file.path or file.path.lower().endswith(
                SUFFIXES + slides.SUFFIXES
            ):  # a file that was named itself is always tried
                yield file.path or location.rsplit("/", 1)[1], _found(location, file)
            else:
                name = file.path.rsplit("/", 1)[-1]
                self.ignored[name[name.rfind(".") :].lower() if "." in name else ""] += 1


def _found(uri: str, file: storage.FileStatus) -> Found:
    try:
        uri.encode()
    except UnicodeEncodeError:
        shown = uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        error = InputError(f"{shown}: its name is not valid UTF-8: rename it")
        return Found(shown, file.fingerprint, size=file.size, mtime=file.mtime, error=error)
    return Found(uri, _fingerprint(uri, file), size=file.size, etag=file.etag, mtime=file.mtime)


def _fingerprint(uri: str, file: storage.FileStatus) -> str:
    """That of a file with all that belongs to it: some slides keep their pixels in a folder beside."""
    try:
        parts = sorted(
            f"{part.path} {part.fingerprint}"
            for beside in slides.companions(uri)
            for part in storage.walk_files(beside)
        )
    except (
        InputError
    ):  # what is missing is said when the slide is opened, and makes it another one when it comes
        parts = []
    together = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{file.fingerprint} {together}" if parts else file.fingerprint


def _list_archive(
    uri: str, file: storage.FileStatus, cache: storage.Cache
) -> Iterator[tuple[str, Found]]:
    base = _found(uri, file)
    if base.error is not None:
        yield uri, base
        return
    try:
        for path, entry in list_entries(uri, max_bytes=cache.max_bytes):
            if _is_hidden(path):
                continue
            if path.lower().endswith(SUFFIXES):
                yield path, _member(base, entry)
            elif path.lower().endswith(slides.SUFFIXES):
                error = InputError(
                    f"{entry.name} is a slide inside an archive: unpack it, slides are read in parts"
                )
                yield path, replace(_member(base, entry), error=error)
    except InputError as error:  # the rest of the inputs are none the worse
        yield uri, replace(base, error=error)


def _member(archive: Found, entry: Entry) -> Found:
    fingerprint = (
        f"{archive.fingerprint}-{entry.size}-{entry.offset}"
        if entry.crc is None
        else f"{entry.crc}-{entry.size}"
    )
    name = (
        str(entry.member).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )  # read by its offset
    return replace(
        archive, member=name, offset=entry.offset, size=entry.size, fingerprint=fingerprint
    )


def _is_hidden(path: str) -> bool:
    return any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"
        for part in path.split("/")
    )


def _compile_glob(pattern: str) -> re.Pattern[str]:
    """`**` stands for any folders, `*` and `?` for what holds no slash."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))


def _stem(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rsplit('.', 1)[0]}"


def _index_masks(uri: str | None) -> dict[str, tuple[str, str]]:
    """Location and fingerprint of each mask, by its path without the suffix."""
    if uri is None:
        return {}
    uri = storage.absolute(uri)
    files = (file for file in storage.walk_files(uri) if not _is_hidden(file.path))
    return {_stem(file.path): (storage.join(uri, file.path), file.fingerprint) for file in files}


def _read_manifest(uri: str, cache: storage.Cache) -> Iterator[tuple[str, Found]]:
    """The images that a CSV or Parquet file lists; each is looked up, so that a change is seen."""
    rows = read_manifest_rows(uri)
    archives: dict[str, dict[str, list[Found]]] = {}
    lock = threading.Lock()  # an archive is listed once

    def look_up(row: dict[str, Any]) -> tuple[str, Found]:
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
            message = f"{location} is listed in {uri} and cannot be used: {storage.mask_credentials(str(error))}"
            found = Found(location, "absent", member=member, error=InputError(message))
        return location.rsplit("/", 1)[-1], found

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        yield from map_ahead(pool, look_up, rows, depth=4 * _STAT_THREADS)


def _find_member(
    location: str, member: str, archives: dict[str, dict[str, list[Found]]], cache: storage.Cache
) -> Found:
    if location not in archives:
        (file,) = storage.walk_files(location)
        named: dict[str, list[Found]] = {}
        for _, item in _list_archive(location, file, cache):
            named.setdefault(str(item.member), []).append(item)
        archives[location] = named
    found = archives[location].get(member, [])
    if len(found) != 1:
        raise InputError(
            f"it has {len(found) or 'no'} member{'s' if len(found) > 1 else ''} {member}: expected one"
        )
    return found[0]
