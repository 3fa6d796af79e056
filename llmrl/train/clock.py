"""Wall time by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """`with clock("update"): ...` adds to that phase; `seconds()` gives time/<phase> and time/step since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._phases[phase] += time.perf_counter() - begin

    def add(self, phase: str, seconds: float) -> None:
        """Count time that was spent outside this clock's life."""
        self._phases[phase] += seconds
        self._start -= seconds

    def beside(self, prefix: str, other: Clock) -> None:
        """Show another clock's phases under `prefix`: they ran beside this one's and are no part of its step."""
        for phase, seconds in other._phases.items():
            self._phases[f"{prefix}{phase}"] += seconds

    def seconds(self) -> dict[str, float]:
        phases = {f"time/{name}": value for name, value in self._phases.items()}
        return phases | {"time/step": time.perf_counter() - self._start}
