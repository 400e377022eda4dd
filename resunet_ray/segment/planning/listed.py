"""An image of the inputs, or what is wrong where one should be."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from resunet_ray import storage
from resunet_ray.data import slides, stacks
from resunet_ray.data.archives import OTHER_SUFFIXES, Entry, is_archive, list_entries
from resunet_ray.data.names import HIDDEN, OTHER, ZARR, PassedOver, is_hidden
from resunet_ray.data.raster import dicom
from resunet_ray.data.raster.opening import SUFFIXES
from resunet_ray.errors import InputError

IMAGE_SUFFIXES = (*SUFFIXES, *slides.SUFFIXES, *stacks.STACK_SUFFIXES)
"""Files with these suffixes are tried, others are passed over."""


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
    format: str | None = None
    """Of a folder that is one slide; None for files, whose names say what they are."""
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


def found(uri: str, file: storage.FileStatus) -> ListedImage:
    """Return a file as an image, or what is wrong with its name."""
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


def found_dicom(uri: str, files: Sequence[storage.FileStatus]) -> ListedImage:
    """Return a folder of DICOM files as one image."""
    etag, size = storage.join_folder(files), sum(file.size for file in files)
    mtime = max(file.mtime for file in files)
    image = found(uri, storage.FileStatus("", size, mtime, etag=etag))
    errors = [image.error, *(file.error for file in files)]
    error = next((error for error in errors if error is not None), None)
    return replace(
        image,
        fingerprint=etag,
        source_fingerprint=etag,
        etag=None,
        format=dicom.FORMAT,
        error=error,
    )


def group_dicom(
    files: Iterable[storage.FileStatus],
) -> Iterator[storage.FileStatus | tuple[str, list[storage.FileStatus]]]:
    """Yield each file of a walk, but folder and DICOM files together, once they are complete."""
    begun: dict[str, list[storage.FileStatus]] = {}
    for file in files:
        for folder in [folder for folder in begun if not f"/{file.path}".startswith(f"{folder}/")]:
            yield folder[1:], begun.pop(folder)
        if storage.is_part(file.path, suffix=dicom.SUFFIX):
            folder, _, name = f"/{file.path}".rpartition("/")
            begun.setdefault(folder, []).append(replace(file, path=name))
        else:
            yield file
    for folder, parts in begun.items():
        yield folder[1:], parts


def _fingerprint(uri: str, file: storage.FileStatus) -> str:
    """Fingerprint a file and all that belongs to it: some slides keep their pixels in a folder."""
    try:
        parts = [part for beside in slides.companions(uri) for part in storage.walk_files(beside)]
    except InputError:  # opening the slide will say what is missing
        parts = []
    return storage.join_fingerprints(file.fingerprint, parts)


def list_archive(
    uri: str, file: storage.FileStatus, cache: storage.Cache, passed_over: PassedOver
) -> Iterator[tuple[str, ListedImage]]:
    """Yield the path of each image in an archive and the image, or what is wrong with it.

    Args:
        uri: the archive.
        file: as it was listed.
        cache: an expanded tar has to fit into it.
        passed_over: counts the other members.
    """
    base, encrypted = found(uri, file), 0
    folders: set[str] = set()
    if base.error is not None:
        yield uri, base
        return
    try:
        entries = list_entries(uri, max_bytes=cache.max_bytes, fingerprint=file.fingerprint)
        for path, entry in entries:
            zarr = ZARR.fullmatch(path)
            is_dicom = storage.is_part(path, suffix=dicom.SUFFIX)
            if zarr or is_dicom:  # the files of one image are not counted one by one
                folder = zarr[1] if zarr else path.rpartition("/")[0]
                if folder in folders:
                    continue
                folders.add(folder)
            if zarr:
                path = zarr[1]
                entry = replace(entry, member=path, offset=None, size=0, crc=None)
            kind = _tell_kind(path, entry)
            if kind is not None:
                passed_over.add(path, kind)
            encrypted += kind == _ENCRYPTED
            if kind in (None, *_REFUSED):
                error = None if kind is None else InputError(f"{entry.name} {_REFUSED[kind]}")
                yield path, replace(_member(base, entry), error=error)
    except InputError as error:  # of this archive only
        yield uri, replace(base, error=error)
    if encrypted:
        message = f"{uri} has {encrypted} encrypted members: decrypt it, or pack them without"
        yield uri, replace(base, error=InputError(message))


_ENCRYPTED = "encrypted"
_REFUSED = {
    "archive inside an archive": "is an archive inside an archive: unpack the outer one",
    "slide inside an archive": "is a slide inside an archive: unpack it, since slides are read in "
    "parts",
    "link inside an archive": "is a link inside an archive: unpack it",
    "sparse file inside an archive": "is a sparse file inside an archive: unpack it",
}
"""Kinds of members that may be images, and why they are refused."""


def _tell_kind(path: str, entry: Entry) -> str | None:
    """Return why a member is passed over; None: it is an image."""
    name = path.lower()
    is_packed, is_image = is_archive(path) or name.endswith(OTHER_SUFFIXES), name.endswith(SUFFIXES)
    if is_hidden(path):
        return HIDDEN
    if entry.unread == _ENCRYPTED:
        return _ENCRYPTED
    if is_packed or name.endswith(IMAGE_SUFFIXES):
        kind = "archive" if is_packed else entry.unread or (None if is_image else "slide")
        return kind and f"{kind} inside an archive"
    return OTHER


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
