"""Two processes over gloo, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def torchrun(module: str, *arguments: str | Path, timeout: float, **environment: str) -> None:
    """Run `python -m module arguments` as two ranks; if one fails, the error shows what the ranks themselves wrote."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": search_path(), "PYTHONFAULTHANDLER": "1"} | environment
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    done = subprocess.run(
        [*launcher, *map(str, arguments)], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip
    if done.returncode:
        ranks = done.stderr.partition('Traceback (most recent call last):\n  File "<frozen runpy>"')[0]  # not torchrun
        raise RuntimeError(f"{module} ended with {done.returncode}: {(ranks or done.stderr)[-6000:]}")


def search_path() -> str:
    """PYTHONPATH for a process that imports this checkout, and what this one was given."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
