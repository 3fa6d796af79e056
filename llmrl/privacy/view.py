"""What a controller may see, and where each number comes from.

`public`          known without the data: progress, settings, a probe on public text
`post_processed`  computed from what the steps released anyway: the noised sums, the thresholds they led to
`accounted`       released with noise of its own, paid for in the ledger's multiplier
`raw`             computed from the records without noise; only with `state: raw`, which has no guarantee

A view holds plain numbers only, never a tensor, a model or an optimizer, so that nothing else can be reached from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmrl.errors import ConfigError
from llmrl.privacy.optimizer import Release

Provenance = Literal["public", "post_processed", "accounted", "raw"]

# Every number that a view can hold. A name that is not here does not get to a controller, to metrics or to a report.
SIGNALS: dict[str, Provenance] = {
    "progress": "public",  # steps made / steps planned
    "spent": "public",  # the ledger's share of the budget
    "probe_loss": "public",  # mean loss on public text; nan without any
    "probe_slope": "public",  # its moving change an interval
    "sigma": "post_processed",
    "thresholds": "post_processed",  # [G]
    "signal_ratio": "post_processed",  # [G] (||noised sum||^2 - d s^2) / (d s^2): negative where noise hides all
    "update_norm": "post_processed",  # norm of the noised mean gradient
    "cosine": "post_processed",  # between the last two noised sums
    "below": "accounted",  # [G] noised share of records within the threshold
    "raw_norms": "raw",  # [G] medians of the records' norms
}
Value = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """A number, or one a group, and where it comes from."""

    value: Value
    provenance: Provenance


class ControllerView:
    """Named signals. Raises ConfigError for a name that is not in `SIGNALS`, or a value that is no plain number."""

    __slots__ = ("_signals",)

    def __init__(self, values: Mapping[str, Value], *, raw: bool = False) -> None:
        signals: dict[str, Signal] = {}
        for name, value in values.items():
            if name not in SIGNALS:
                raise ConfigError(f"{name} is not on the list of what a controller may see: {', '.join(SIGNALS)}")
            if SIGNALS[name] == "raw" and not raw:
                raise ConfigError(f"{name} is computed from the records without noise; only `state: raw` shows it")
            numbers = value if type(value) is tuple else (value,)
            if any(type(number) not in (float, int, bool) for number in numbers):
                raise ConfigError(f"{name} must be a plain number or a tuple of them, not {type(value).__name__}")
            signals[name] = Signal(value, SIGNALS[name])
        self._signals = signals

    def __getitem__(self, name: str) -> Value:
        return self._signals[name].value

    def __contains__(self, name: str) -> bool:
        return name in self._signals

    def number(self, name: str) -> float:
        """A signal that is one number; nan if it is not there."""
        value = self._signals[name].value if name in self._signals else math.nan
        return float(value) if not isinstance(value, tuple) else math.nan

    def groups(self, name: str) -> tuple[float, ...]:
        """A signal that is one number a group; empty if it is not there."""
        value = self._signals[name].value if name in self._signals else ()
        return value if isinstance(value, tuple) else (float(value),)

    def signals(self) -> dict[str, Signal]:
        """A copy of everything, with where it comes from."""
        return dict(self._signals)

    def numbers(self) -> dict[str, float]:
        """Every signal as plain numbers: one a group under `name/<group>`, and their mean under `name`."""
        found: dict[str, float] = {}
        for name, signal in self._signals.items():
            if isinstance(signal.value, tuple):
                found |= {f"{name}/{number}": float(x) for number, x in enumerate(signal.value)}
                found[name] = math.fsum(signal.value) / len(signal.value)
            else:
                found[name] = float(signal.value)
        return found


def signal_ratio(release: Release) -> tuple[float, ...]:
    """How far each group's noised sum is longer than its noise alone would be, in units of that: -1 and up."""
    found = []
    for squared, size, deviation in zip(release.squared, release.sizes, release.deviations, strict=True):
        noise = size * deviation**2
        found.append((squared - noise) / noise if noise > 0 else 0.0)
    return tuple(found)


def view_of(
    release: Release,
    *,
    thresholds: Sequence[float],
    sigma: float,
    expected_batch: float,
    progress: float,
    spent: float,
    probe: Mapping[str, float],
    raw_norms: Sequence[float] | None = None,
) -> ControllerView:
    """What a controller sees after a step. `probe` has probe_loss and probe_slope, from public text only."""
    values: dict[str, Value] = {
        "progress": progress, "spent": spent, **probe, "sigma": sigma, "thresholds": tuple(thresholds),
        "signal_ratio": signal_ratio(release), "update_norm": math.sqrt(sum(release.squared)) / expected_batch,
        "cosine": release.cosine,
    }  # fmt: skip
    if release.below is not None:
        values["below"] = release.below
    if raw_norms is not None:
        values["raw_norms"] = tuple(raw_norms)
    return ControllerView(values, raw=raw_norms is not None)
