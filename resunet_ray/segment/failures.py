"""What went wrong with an image, told apart in one place.

| what failed | what becomes of it |
|---|---|
| the image: it does not decode, is too large, kills the process | failed row, kind `image` |
| one file is missing or denied; memory ran out | failed row, kind `unclear`, tried again later |
| storage, network, credentials, a disk, a mount | no row: the run ends, and can be resumed |
"""

from dataclasses import dataclass
from typing import Literal, Self

from resunet_ray import storage
from resunet_ray.errors import ResourceError, UnclearError


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong with an image or a region, and at which stage."""

    error_stage: str
    error_type: str
    error_message: str
    error_kind: Literal["image", "unclear"] | None
    """None in rows that an earlier version wrote."""

    @classmethod
    def of(cls, error: Exception, *, stage: str, uri: str | None = None) -> Self:
        """Describe what happened to an image, without credentials.

        Args:
            error: as it was caught.
            stage: `list`, `open`, `read`, `decode`, `mask`, `model`, `post` or `crash`.
            uri: the image's file, if it was there when it was listed.

        Raises:
            ResourceError: it says nothing about the image.
        """
        if isinstance(error, ResourceError):
            raise error
        unclear = (
            isinstance(error, UnclearError | MemoryError)
            or stage == "model"
            or (stage == "list" and isinstance(error, OSError))
        )
        if isinstance(error, UnclearError) and uri is not None:
            storage.require_folder(uri)
        name = type(error).__name__
        return cls(
            error_stage=stage,
            error_type=name,
            error_message=storage.mask_credentials(str(error)) or name,
            error_kind="unclear" if unclear else "image",
        )
