"""Loops over pixels as machine code, which also lets other threads run.

NumPy needs many passes over an image for what one loop does, and a loop in Python keeps every other
thread waiting.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function on its first call. The result is kept on disk where that can be done."""
    plain = inspect.unwrap(function)  # shape checks cannot be compiled
    dispatcher = numba.njit(plain, nogil=True)
    with suppress(RuntimeError):  # no folder can be written
        dispatcher._cache = _Cache(plain)  # type: ignore[no-untyped-call]
    return cast("Function", dispatcher)


class _Cache(FunctionCache):
    """Files that may be damaged, and a disk that may be full: neither may fail an image."""

    def load_overload(self, *arguments: Any) -> Any:
        """Return what an earlier process compiled, None if there is nothing that can be used."""
        try:
            return super().load_overload(*arguments)  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001 (whatever it is, it can be compiled again)
            with suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call]
            return None

    def save_overload(self, *arguments: Any) -> None:
        """Keep what was compiled."""
        with suppress(OSError):
            super().save_overload(*arguments)  # type: ignore[no-untyped-call]
