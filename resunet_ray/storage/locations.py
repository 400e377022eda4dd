"""A location: a path on this machine, or a URI that pyarrow knows.

    s3://bucket/prefix   gs://…   file:///…

Credentials come from the standard chain of the environment, never from the URI (see `clients`).
"""

import os
import re
from functools import lru_cache

import pyarrow as pa
from pyarrow import fs

from resunet_ray.errors import ConfigError
from resunet_ray.storage.clients import connect
from resunet_ray.storage.faults import mask_credentials

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REMOTE = ("s3", "gs", "gcs")
_PACKAGES = "/runtime_resources/working_dir_files/"
"""Part of the working directory of a job submitted with `--working-dir`."""
_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a location, and the path of the location on it.

    Raises:
        ConfigError: the URI contains credentials, or its scheme is unknown.
        ResourceError: the credentials of the environment cannot be fetched.
    """
    if not _SCHEME.match(uri):
        return _connect("file:///")[0], absolute(uri)
    scheme, rest = uri.split("://", 1)
    authority, _, path = rest.partition("/")
    if "@" in uri and ":" in authority.partition("@")[0]:  # a secret may contain a slash
        raise ConfigError(
            f"the location {mask_credentials(uri)} contains credentials: provide them through the "
            "standard chain (environment, profile or role), not in the URI"
        )
    if scheme == "file" and not authority:
        return _connect("file:///")[0], f"/{path}"
    # pyarrow's own parser would accept more than a bucket name here, for instance another host to
    # send the credentials to.
    if scheme not in _REMOTE or not _BUCKET.fullmatch(authority):
        raise ConfigError(
            f"the location {mask_credentials(uri)} is not valid: expected a path, s3://BUCKET/KEY, "
            "gs://BUCKET/KEY or file:///PATH, where BUCKET is only the bucket's name"
        )
    if scheme == "s3":
        return connect(authority).filesystem, "/".join(part for part in (authority, path) if part)
    try:
        filesystem, root = _connect(f"{scheme}://{authority}/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"the location {uri} is not valid: {error}") from None
    return filesystem, "/".join(part for part in (root.rstrip("/"), path) if part)


@lru_cache(maxsize=16)
def _connect(bucket: str) -> tuple[fs.FileSystem, str]:
    """Return this process's filesystem of a bucket, or of this machine."""
    return fs.FileSystem.from_uri(bucket)  # type: ignore[no-any-return]


def bucket_of(uri: str) -> str:
    """Return the bucket of a location, or an empty text for one on this machine."""
    return uri.split("/")[2] if _SCHEME.match(uri) else ""


def absolute(uri: str) -> str:
    """Return the location in a form that does not depend on the working directory.

    Raises:
        ConfigError: it is relative to the folder of a submitted package, which Ray deletes.
    """
    if _SCHEME.match(uri):
        return uri
    folder = os.path.abspath(uri)  # noqa: PTH100 (keeps links)
    if not os.path.isabs(uri) and _PACKAGES in folder:  # noqa: PTH117
        raise ConfigError(
            f"the location {uri} is relative to the package that was submitted, which Ray deletes "
            "after the job: give an absolute path on shared storage, or a URI"
        )
    return folder


def resolve(uri: str, *, beside: str) -> str:
    """Return a location that, if it is relative, is so to the folder of another one."""
    return uri if _SCHEME.match(uri) or uri.startswith("/") else join(parent(beside), uri)


def join(uri: str, *parts: str) -> str:
    """Return the location of something below another location."""
    return "/".join((uri.rstrip("/"), *parts))


def parent(uri: str) -> str:
    """Return the location of the folder that contains something."""
    return absolute(uri).rstrip("/").rsplit("/", 1)[0]
