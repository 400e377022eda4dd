"""The libraries of single formats: whether they are there, and what they raise over damage."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resunet_ray.errors import ImageError, ResUNetRayError


def load_library(name: str) -> Any:
    """Import a library that comes only with the extra `formats`.

    Raises:
        ImageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImageError(
            f"it cannot be read without the library {name}: install resunet_ray[formats]"
        ) from None


@contextmanager
def as_image_error(problem: str = "it is damaged") -> Iterator[None]:
    """Turn any error of a library into an ImageError, which begins with the problem.

    Errors of this package pass, so that a storage that does not answer is no damage.
    """
    try:
        yield
    except (MemoryError, ResUNetRayError):
        raise
    except Exception as error:  # noqa: BLE001 (over damaged bytes libraries raise anything)
        raise ImageError(f"{problem}: {str(error) or type(error).__name__}") from None
