"""Where llmrl keeps what it fetched, converted or measured: $LLMRL_CACHE, else ~/.cache/llmrl."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(cache_dir: Path | str | None = None) -> Path:
    """The cache folder: `cache_dir` if given. It need not exist."""
    chosen = cache_dir or os.environ.get("LLMRL_CACHE") or Path.home() / ".cache" / "llmrl"
    return Path(chosen).expanduser()
