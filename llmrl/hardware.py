"""What this machine's processors do well: bfloat16 or float32. Decides what `model.dtype: auto` means.

The processor's flags say whether it multiplies bfloat16 numbers in hardware. Where they say so, or say nothing, a
measurement of a fraction of a second has the last word, and is kept in llmrl's cache folder: a flag may be set although
the installed torch makes no use of it. torch is imported for a measurement or for a GPU only.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llmrl.atomic import write_text
from llmrl.cache import cache_root

Dtype = Literal["bfloat16", "float32"]
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})  # x86 and ARM
WORTH_IT = 1.2  # bfloat16 rounds coarsely: it must be clearly faster
SLOW = 1.5  # from this factor on an explicit choice is warned about
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # CUDA, ROCm, CUDA under WSL
SHAPE = (512, 576, 1536)  # tokens, inputs, outputs: a small model's layer on a small micro-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A number format for a model's forward and backward pass, and why it is the one to take here."""

    dtype: Dtype
    reason: str


@cache
def best_precision() -> Precision:
    """What `auto` chooses on this machine."""
    if gpus():
        if _gpu_has_bf16():
            return Precision(dtype="bfloat16", reason="this GPU computes bfloat16 in hardware")
        return Precision(dtype="float32", reason="this GPU has no bfloat16 in hardware")
    return cpu_precision(cpu_flags())


def cpu_precision(flags: frozenset[str]) -> Precision:
    """What `auto` chooses on a CPU with these flags; none at all means that the system does not tell them."""
    if flags and not flags & BF16_FLAGS:
        return Precision(dtype="float32", reason="this CPU has no bfloat16 in hardware")
    ratio = bf16_speed()
    if ratio >= WORTH_IT:
        return Precision(dtype="bfloat16", reason=f"measured {ratio:.1f} times as fast as float32 on this CPU")
    return Precision(dtype="float32", reason=f"bfloat16 measured {ratio:.2g} times as fast as float32 on this CPU")


def dtype_here(dtype: str) -> Any:
    """`dtype`, or what `auto` chooses on this machine."""
    return best_precision().dtype if dtype == "auto" else dtype


def warning_for(dtype: str) -> str | None:
    """One line for a user who asked for a `dtype` that this machine is slow at, with the measured factor; else None."""
    if dtype not in ("bfloat16", "float32") or gpus():
        return None
    factor = 1 / bf16_speed() if dtype == "bfloat16" else bf16_speed()
    if factor < SLOW:
        return None
    return (
        f"{dtype} is slow on this CPU: matrix products take {factor:.1f} times as long as in "
        f"{best_precision().dtype}, which dtype=auto would choose"
    )


@cache
def bf16_speed() -> float:
    """How many times as fast as float32 this CPU multiplies matrices in bfloat16; measured once and then kept on disk."""
    file = cache_root() / "bf16-speed.json"
    key = f"{cpu_name()}, torch {importlib.metadata.version('torch')}"
    with suppress(OSError, ValueError, KeyError, TypeError):  # no such file yet, or a damaged one: measure
        return float(json.loads(file.read_text())[key])
    ratio = measure_bf16_speed()
    with suppress(OSError):  # a cache that cannot be written costs the next run a fraction of a second
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({key: round(ratio, 3)}))
    return ratio


def measure_bf16_speed() -> float:
    """The same as `bf16_speed`, measured now in about a tenth of a second: the best of several turns of each."""
    import torch
    from torch.nn.functional import linear

    tokens, inputs, outputs = SHAPE
    best: dict[torch.dtype, float] = {}
    with torch.inference_mode():
        sides = {
            dtype: (torch.ones(tokens, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype))
            for dtype in (torch.float32, torch.bfloat16)
        }
        for _ in range(6):  # in turns, so that other work on the machine slows both
            for dtype, (x, weight) in sides.items():
                started = time.perf_counter()
                if dtype == torch.float32 and onednn_is_faster():
                    torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
                else:
                    linear(x, weight)
                best[dtype] = min(best.get(dtype, float("inf")), time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]


@cache
def onednn_is_faster(*, packed: bool = False) -> bool:
    """Whether float32 products should go to oneDNN here: torch has it and MKL, and the processor is not Intel's.

    torch's builds for x86 give them to MKL, which keeps its AVX512 code for Intel's processors: one core of an AMD EPYC
    (Zen 5) made 107 GFLOP/s with it and 240 with oneDNN, which looks at the instructions alone. With AVX2 (Zen 3) both
    multiply alike, and MKL does not copy what lies transposed, as it does in a backward pass; there oneDNN pays only on
    weights that are `packed` in its own layout before.
    """
    import torch

    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not both or not hasattr(torch.ops.mkldnn, "_linear_pointwise") or cpu_vendor() in ("", "GenuineIntel"):
        return False
    return packed or "avx512f" in cpu_flags()


@cache
def gpus() -> int:
    """How many GPUs torch can use here. It is imported only if the system has the device of a driver."""
    if not any(Path(device).exists() for device in GPU_DEVICES):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu_has_bf16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cores() -> int:
    """CPU cores that this process may use: those of its affinity (taskset), or fewer by its cgroup's quota."""
    quota = cpu_quota()
    found = len(os.sched_getaffinity(0))
    return max(1, found if quota is None else min(found, math.ceil(quota)))


def cores_left() -> int:
    """Under `nice`, the cores that the work of others leaves: they come first. Else all of `cores`."""
    return max(1, cores() - round(os.getloadavg()[0])) if os.nice(0) > 0 else cores()


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota of this process's cgroup and those around it, in cores; None without one. Version 2 and 1."""
    groups = [line.split(":", 2) for line in membership.read_text().splitlines()] if membership.is_file() else []
    quotas = []
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == root.parent:
                break
            quotas.append(_quota(folder))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    both, each = folder / "cpu.max", [folder / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
    if both.is_file():
        quota, period = both.read_text().split()
    elif all(file.is_file() for file in each):
        quota, period = (file.read_text().strip() for file in each)
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of the packages that are installed."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags; empty where the system does not tell them."""
    return frozenset(_cpuinfo("flags", "Features").split())


def cpu_name() -> str:
    """The CPU's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """An x86 CPU's vendor, such as GenuineIntel or AuthenticAMD; empty for other CPUs."""
    return _cpuinfo("vendor_id")


def _cpuinfo(*names: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")
