"""How fast processes of this machine exchange gradients: GB/s of an all-reduce, tensor by tensor, as the trainer does it.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.bench.allreduce [PARAMETERS] [TENSORS]

The figure is what `llmrl plan --scale --network-gb-s` wants: bytes of a ring all-reduce through each link, a second.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import distributed


def seconds(parameters: int, tensors: int, *, repeats: int = 5) -> list[float]:
    """Wall time of each all-reduce of `parameters` float32 numbers in `tensors` pieces, after one that is not counted."""
    grads = [torch.ones(parameters // tensors) for _ in range(tensors)]
    found = []
    for _ in range(repeats + 1):
        distributed.barrier()
        begin = time.perf_counter()
        for grad in grads:
            distributed.all_reduce(grad)
        found.append(time.perf_counter() - begin)
    return found[1:]


def main() -> None:
    parameters, tensors = (int(text) for text in [*sys.argv[1:], "134515008", "272"][:2])
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.set_num_threads(1)
    times = sorted(seconds(parameters, tensors))
    world = distributed.get_world_size()
    if distributed.get_rank() == 0:
        rate = 4 * parameters * 2 * (world - 1) / world / times[len(times) // 2] / 1e9
        print(f"{world} processes, {parameters:,} numbers: {', '.join(f'{t:.2f}' for t in times)} s; {rate:.2f} GB/s")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
