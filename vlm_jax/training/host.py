"""Settings of the process that trains, for when the host is the device."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util

import jax

# Options of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def host_is_device() -> bool:
    """Whether JAX will compute on the CPU, told without starting it: it is asked to, or nothing else is installed."""
    asked = jax.config.jax_platforms
    others = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    return asked == "cpu" or not asked and not others


def keep_freed_pages() -> bool:
    """Makes malloc keep what is freed; true where the C library knows how. Call it before JAX starts its threads.

    XLA's CPU backend allocates the temporaries of a step anew each time. By default glibc hands large blocks back to
    the kernel at once, and every step pays for clearing their pages again: on two cores the quickstart's instruct
    gradient takes 258 ms so, and 168 ms from one arena that is never trimmed. The process keeps its peak. (On a host that only feeds a device, loader threads
    are better off with arenas of their own.)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, value) for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)))
