"""Loops over pixels as machine code, which also lets other threads run.

NumPy needs many passes over an image for what one loop does, and a loop in Python keeps every other
thread waiting.
"""

import inspect
from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function on its first call. The result is kept on disk, beside the module."""
    plain = inspect.unwrap(function)  # shape checks cannot be compiled
    return cast("Function", numba.njit(plain, nogil=True, cache=True))
