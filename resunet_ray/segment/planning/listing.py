"""The listing: prefixes, globs, single files, archives and manifests become one stream of images.

Nothing is kept, so that millions of images need no more memory than a few. What is wrong with one
image, or with one archive among many, travels with it as an error. Only an input that does not
exist stops the job.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from resunet_ray import storage
from resunet_ray.data.archives import OTHER_SUFFIXES, is_archive
from resunet_ray.data.names import (
    HIDDEN,
    NO_OME,
    OTHER,
    ZARR,
    PassedOver,
    find_zarr,
    is_hidden,
    other_forms,
    plain,
)
from resunet_ray.data.raster.ome_zarr_metadata import METADATA
from resunet_ray.errors import ConfigError, InputError, UnclearError
from resunet_ray.segment.planning.listed import (
    IMAGE_SUFFIXES,
    ListedImage,
    found,
    found_dicom,
    group_dicom,
    list_archive,
)
from resunet_ray.segment.planning.manifest import (
    is_manifest,
    parse_mpp,
    read_manifest_rows,
    read_pixel_sizes,
)
from resunet_ray.tasks import map_ahead

logger = logging.getLogger(__name__)

_GLOB = re.compile(r"[*?]")
_STAT_THREADS = 32  # look up a manifest's files one by one; object stores answer slowly
_PART = re.compile(r"/(data\d+\.dat|index\.dat|slidedat\.ini)$", re.IGNORECASE)
"""Files of a MIRAX slide's folder."""


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
    passed_over: PassedOver = field(default_factory=PassedOver)
    """Counts the files that are not read."""

    def __iter__(self) -> Iterator[ListedImage]:
        masks, known = _index_masks(self.masks), read_pixel_sizes(self.mpp_csv)
        for uri in self.inputs:
            for path, image in self._expand(storage.absolute(uri)):
                if mask := masks.get(_stem(path)):
                    image = replace(image, mask_uri=mask[0], mask_fingerprint=mask[1])
                mpp, source = image.mpp, image.mpp_source
                if self.mpp is not None:
                    mpp, source = self.mpp, "argument"
                elif mpp is None:
                    name = plain(image.member or image.uri)
                    mpp = known.get(name, known.get(name.rsplit("/", 1)[-1]))
                    source = None if mpp is None else "sidecar"
                yield replace(image, mpp=mpp, mpp_source=source)
        if self.passed_over.kinds:
            logger.info("passed over: %s", self.passed_over)

    def _expand(self, uri: str) -> Iterator[tuple[str, ListedImage]]:
        """Yield each image of one input with its path below the input."""
        if (glob := _GLOB.search(uri)) and not storage.exists(uri):
            base = uri[: glob.start()].rsplit("/", 1)[0]
            pattern = _compile_glob(plain(uri[len(base) + 1 :]))
            yield from self._walk(_find_form(base), matches=pattern.fullmatch)
        elif is_manifest(uri):
            yield from self._read_manifest(uri)
        else:
            yield from self._walk(_find_form(uri))

    def _walk(
        self, uri: str, *, matches: Callable[[str], object] | None = None
    ) -> Iterator[tuple[str, ListedImage]]:
        """Yield each image below a folder, in an archive, or at the location itself.

        Args:
            uri: the folder, archive or image.
            matches: tells the paths that are wanted; None: all.
        """
        wanted = matches or (lambda _: True)
        zarrs: dict[str, bool] = {}  # whether their metadata were seen
        for file in group_dicom(storage.walk_files(uri)):
            if isinstance(file, tuple):
                yield from self._list_dicom(uri, *file, wanted=wanted)
                continue
            location = storage.join(uri, file.path) if file.path else uri
            if ZARR.fullmatch(location):  # its chunks are neither listed nor counted
                if place := find_zarr(location, uri=uri, matches=matches):
                    path = plain(place.removeprefix(uri).lstrip("/")) or _last(uri)
                    is_metadata = location in [f"{place}/{name}" for name in METADATA]
                    zarrs[path] = zarrs.get(path, False) or is_metadata
                    if is_metadata and not is_hidden(path):
                        image = found(place, replace(file, size=0))
                        yield path, replace(image, source_fingerprint=None)
            elif wanted(plain(file.path)) or file.error is not None:
                yield from self._list_file(location, file)
        for path, has_metadata in zarrs.items():
            if is_hidden(path) or not has_metadata:
                self.passed_over.add(path, HIDDEN if is_hidden(path) else NO_OME)

    def _list_dicom(
        self,
        uri: str,
        folder: str,
        files: list[storage.FileStatus],
        *,
        wanted: Callable[[str], object],
    ) -> Iterator[tuple[str, ListedImage]]:
        """Yield a folder of DICOM files, or a file of such a folder that was named itself."""
        path = plain(folder)
        paths = [f"{path}/{plain(file.path)}".lstrip("/") for file in files]
        if is_hidden(path):
            self.passed_over.add(path, HIDDEN)
        elif any(map(wanted, [path, *paths])):
            place = storage.join(uri, folder) if folder else uri
            yield path or _last(uri), found_dicom(place, files)

    def _list_file(
        self, location: str, file: storage.FileStatus
    ) -> Iterator[tuple[str, ListedImage]]:
        """Yield a file, or the images of an archive, or count it if it is neither."""
        path = plain(file.path)
        if self.exclude is not None and location.startswith(f"{self.exclude.rstrip('/')}/"):
            return
        if is_hidden(path):
            self.passed_over.add(path, HIDDEN)
        elif file.error is not None:
            yield path, replace(found(location, file), error=file.error)
        elif is_archive(location):
            yield from list_archive(location, file, self.cache, self.passed_over)
        # A file that was named itself is always tried.
        elif not path or path.lower().endswith(IMAGE_SUFFIXES):
            yield path or _last(location), found(location, file)
        else:
            self.passed_over.add(path, _tell_kind(path))

    def _read_manifest(self, uri: str) -> Iterator[tuple[str, ListedImage]]:
        """Yield the images that a CSV or Parquet file lists, as they are now."""
        archives: dict[str, dict[str, list[ListedImage]]] = {}
        lock = threading.Lock()  # so that an archive is listed once

        def look_up(row: dict[str, Any]) -> list[tuple[str, ListedImage]]:
            location, member = str(row["uri"] or ""), row.get("member") or None
            try:
                location = _place(location, manifest=uri)
                if member is None:
                    return self._complete(list(self._walk(location)), row, manifest=uri)
                with lock:
                    image = self._find_member(location, member, archives)
                return self._complete([(_last(location), image)], row, manifest=uri)
            except (InputError, ConfigError, OSError, ValueError) as error:
                location = storage.mask_credentials(location)
                reason = storage.mask_credentials(str(error))
                message = f"{location} is listed in {uri} and cannot be used: {reason}"
                kind = UnclearError if isinstance(error, UnclearError | OSError) else InputError
                failed = ListedImage(location, "absent", member=member, error=kind(message))
                return [(_last(location), failed)]

        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            rows = read_manifest_rows(uri)
            for images in map_ahead(pool, look_up, rows, depth=4 * _STAT_THREADS):
                yield from images

    def _complete(
        self, images: list[tuple[str, ListedImage]], row: dict[str, Any], *, manifest: str
    ) -> list[tuple[str, ListedImage]]:
        """Return the images of a row with what else the row says of them."""
        mpp, mask = parse_mpp(row.get("mpp")), row.get("mask_uri") or None
        if not images or (mask is not None and len(images) > 1):
            raise InputError(
                f"it holds {len(images)} images: expected one, or any number without a mask"
            )
        source = None if mpp is None else "manifest"
        images = [(path, replace(image, mpp=mpp, mpp_source=source)) for path, image in images]
        if mask is None:
            return images
        mask = _place(mask, manifest=manifest)
        (path, image), truth = images[0], storage.look_up(mask).fingerprint
        return [(path, replace(image, mask_uri=mask, mask_fingerprint=truth))]

    def _find_member(
        self, location: str, member: str, archives: dict[str, dict[str, list[ListedImage]]]
    ) -> ListedImage:
        """Find a member of an archive by its path; archives that were listed are kept."""
        if location not in archives:
            file = storage.look_up(location)
            named: dict[str, list[ListedImage]] = {}
            for path, item in list_archive(location, file, self.cache, PassedOver()):
                named.setdefault(path, []).append(item)
            archives[location] = named
        members = archives[location].get(plain(member).replace("\\", "/"), [])
        if len(members) != 1:
            raise InputError(
                f"it has {len(members) or 'no'} member{'s' if len(members) > 1 else ''} {member}: "
                "expected one"
            )
        return members[0]


def _compile_glob(pattern: str) -> re.Pattern[str]:
    """Compile a glob: `**` matches any folders, `*` and `?` anything but a slash."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))


def _stem(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rsplit('.', 1)[0]}"


def _last(location: str) -> str:
    return location.rsplit("/", 1)[-1]


def _tell_kind(path: str) -> str:
    """Return the kind of a file that is passed over."""
    if path.lower().endswith(OTHER_SUFFIXES):
        return "archive of another kind"
    return "part of a slide" if _PART.search(path) else OTHER


def _place(location: str, *, manifest: str) -> str:
    """Return the location that a manifest means: a relative one is so to its folder.

    Raises:
        InputError: it is empty.
    """
    if not location:
        raise InputError("its uri is empty")
    return _find_form(storage.absolute(storage.resolve(location, beside=manifest)))


def _find_form(uri: str) -> str:
    """Return the location as it is spelled where it is: with composed letters, or accents apart."""
    forms = [
        *other_forms(uri),
        *(storage.join(storage.parent(uri), name) for name in other_forms(_last(uri))),
    ]
    if forms and not storage.exists(uri):
        return next((form for form in forms if storage.exists(form)), uri)
    return uri


def _index_masks(uri: str | None) -> dict[str, tuple[str, str]]:
    """Map the path of each mask, without its suffix, to its location and fingerprint."""
    if uri is None:
        return {}
    uri = _find_form(storage.absolute(uri))
    files = (file for file in storage.walk_files(uri) if not is_hidden(file.path))
    return {
        _stem(plain(file.path)): (storage.join(uri, file.path), file.fingerprint) for file in files
    }
