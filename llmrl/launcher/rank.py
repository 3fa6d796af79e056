"""One process of several on a CPU: takes its share of the cores, then is `llmrl`.

    torchrun --nproc-per-node 2 -m llmrl.launcher.rank train recipe.yaml

Without it every process, and every engine beside it, would start a thread for each core of the machine, and they would
wait for one another at every barrier of every matrix product.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from runpy import run_module


def share(cores: Sequence[int], *, rank: int, ranks: int) -> list[int]:
    """The cores of one of `ranks` processes; with fewer cores than processes, some share one.

    >>> share([0, 1, 2, 3], rank=1, ranks=2), share([0, 1], rank=2, ranks=3)
    ([2, 3], [0])
    """
    if len(cores) < ranks:
        return [cores[rank % len(cores)]]
    size, rest = divmod(len(cores), ranks)
    begin = rank * size + min(rank, rest)
    return list(cores[begin : begin + size + (rank < rest)])


def bind() -> None:
    """Bind this process, and what it starts, to its share of the cores that it may use."""
    rank, ranks = (
        int(os.environ.get(name, fallback)) for name, fallback in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    mine = share(sorted(os.sched_getaffinity(0)), rank=rank, ranks=ranks)
    os.sched_setaffinity(0, mine)
    os.environ["OMP_NUM_THREADS"] = str(len(mine))


if __name__ == "__main__":
    bind()
    run_module("llmrl", run_name="__main__")
