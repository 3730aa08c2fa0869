"""Functions compiled by numba, with a cache on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that runs without the interpreter lock; keep the result on disk if a folder is writable."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder for the cache: compile in every process
        return njit(nogil=True)(function)
