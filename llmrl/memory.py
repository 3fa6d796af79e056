"""Memory on a CPU: what is freed stays in the process, because getting it back from the system costs more than the
computation; few compiled kernels are kept; and an output layer may take so much at once.
"""

from __future__ import annotations

import ctypes
import os
import platform

CHUNK_ELEMENTS = 32 * 1024 * 1024  # logits of one matrix product: 64 MiB in bfloat16
KERNELS = 64  # shapes of matrix products whose compiled kernels are kept; a decoding step uses about eight
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


def keep_few_kernels() -> None:
    """Bound what oneDNN and torch's cache before it keep: a compiled kernel with its buffers for every shape of a product.

    Micro-batches hardly ever have the same number of tokens twice, so that the 1,024 kernels which both keep by default are
    a leak of some GiB. Call it before the first product; values that the user has set stay.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))
