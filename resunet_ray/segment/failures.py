"""What went wrong with an image, told apart in one place.

| what failed | what becomes of it |
|---|---|
| the image: it does not decode, is too large, kills the process | failed row, kind `image` |
| one file is missing or denied; memory ran out | failed row, kind `unclear`, tried again later |
| the file is no longer the one that was listed | no row: the next run lists it anew |
| most files of a chunk are missing or denied | no row: the run ends, and can be resumed |
| storage, network, credentials, a disk, a mount | the same |
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Self

from resunet_ray import storage
from resunet_ray.errors import ChangedError, ResourceError, UnclearError

_SUSPICIOUS = 8  # images


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong with an image or a region, and at which stage."""

    error_stage: str
    error_type: str
    error_message: str
    error_kind: Literal["image", "unclear", "changed"] | None
    """None in rows that an earlier version wrote; no row has the kind `changed`."""

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
        changed = isinstance(error, ChangedError)
        name = type(error).__name__
        return cls(
            error_stage=stage,
            error_type=name,
            error_message=storage.mask_credentials(str(error)) or name,
            error_kind="changed" if changed else "unclear" if unclear else "image",
        )


def require_few_unclear(failures: Collection[Failure | None], *, most: float) -> None:
    """Refuse to record so many unclear failures at once: the cause lies beyond the images.

    Args:
        failures: of the images of a chunk; None for one that did not fail.
        most: largest share of unclear ones, of at least `_SUSPICIOUS`.

    Raises:
        ResourceError: there are more.
    """
    unclear = [failure for failure in failures if failure and failure.error_kind == "unclear"]
    if len(unclear) >= _SUSPICIOUS and len(unclear) > most * len(failures):
        raise ResourceError(
            f"{len(unclear)} of {len(failures)} images that were to be read together are missing "
            f"or denied, so none is recorded as failed. The last: {unclear[-1].error_message}. "
            "Once they can be read, run the same command again; --max-unclear-fraction 1 records "
            "them"
        )
