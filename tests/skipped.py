"""From the reasons of skipped tests to the commands that would run them: how `make test` ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# (a word of the reason, what to do); the first that fits
MENDS = (
    ("Chromium", "apt-get install chromium"),
    ("reasoning_gym", "pip install 'llmrl[gym]'"),
    ("deepspeed", "pip install 'llmrl[deepspeed]'"),
    ("ray", "pip install 'llmrl[ray]'"),
    ("gguf", "pip install 'llmrl[gguf]'"),
    ("LLMRL_", "llmrl models pull smollm2-135m, then set LLMRL_MODEL to that folder and LLMRL_DATA to the benchmarks"),
    ("models pull", "llmrl models pull smollm2-135m"),
    ("no vllm", "make install"),
    ("CUDA", "make test-gpu, on a machine with an NVIDIA card"),
    ("GPU", "make test-gpu, on a machine with an NVIDIA card"),
    ("root", "make test, once as root and once as another user"),
    ("network namespaces", "make test as root, on a machine that allows network namespaces"),
    ("mounting", "make test as root, on a machine that allows mounts"),
    ("two cores", "make test on a machine with two cores"),
    ("oneDNN", "make test on an x86 machine with Linux"),
    ("could not import", "pip install 'llmrl[dev]'"),
    ("is not installed", "pip install 'llmrl[dev]'"),
)


def mends(reasons: Sequence[str]) -> list[str]:
    """Lines that say how many tests were skipped, and what would run them.

    >>> mends(["Skipped: no deepspeed", "Skipped: no deepspeed"])
    ["skipped 2 tests: pip install 'llmrl[deepspeed]'"]
    """
    found = Counter(_mend(reason.removeprefix("Skipped: ")) for reason in reasons)
    return [f"skipped {count} test{'s' * (count > 1)}: {command}" for command, count in found.most_common()]


def _mend(reason: str) -> str:
    return next((command for word, command in MENDS if word in reason), f"no command is known; the reason: {reason}")
