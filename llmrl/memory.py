"""Keep freed memory in the process: on a CPU, getting it back from the system costs more than the computation. And how
much memory an output layer may take at once.
"""

from __future__ import annotations

import ctypes
import platform

CHUNK_ELEMENTS = 32 * 1024 * 1024  # logits of one matrix product: 64 MiB in bfloat16
# glibc's mallopt parameters, from malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse large blocks instead of returning them; True if it agreed.

    By default every tensor above 32 MiB is mapped afresh and each of its pages faults in on first touch, every time. In
    virtual machines that give memory back to their host a training step took 2 to 10 times as long that way. The price
    is that a process keeps its peak. Call it before the first large allocation. Other allocators are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20, M_ARENA_MAX: 1}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
