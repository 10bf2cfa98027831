"""Memory: keep freed memory in the process, where the C library would return every large tensor to the system."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt(3)
_KEEP, _LARGE = 2**31 - 1, 2**30  # bytes that are kept, and the size above which a tensor is mapped by itself
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let glibc reuse up to 2 GiB of freed memory, so that the next loop does not fault its pages in again.

    Otherwise a tensor of 32 MiB or more is mapped for each operation of each loop, and returned after it. This changes
    the allocator of the whole process. The command line and its workers call it, and a user's session may. It does
    nothing on other systems, or where the environment configures malloc (``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_`` or ``GLIBC_TUNABLES``, mallopt(3)).
    """
    if sys.platform != "linux" or any(name in os.environ for name in _USERS_OWN):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # other C libraries do not have it
        set_option(_TRIM_THRESHOLD, _KEEP)
        set_option(_MMAP_THRESHOLD, _LARGE)
