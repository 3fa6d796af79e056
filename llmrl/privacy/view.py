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


def numbers_of(values: Mapping[str, Value], *, raw: bool = False) -> dict[str, float]:
    """A view: numbers as they are; of one number a group each under `name/<group>`, and their mean under `name`.

    Raises ConfigError for a name that is not in `SIGNALS`, or a value that is no plain number.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if name not in SIGNALS:
            raise ConfigError(f"{name} is not on the list of what a controller may see: {', '.join(SIGNALS)}")
        if SIGNALS[name] == "raw" and not raw:
            raise ConfigError(f"{name} is computed from the records without noise; only `state: raw` shows it")
        each = value if isinstance(value, tuple) else (value,)
        if any(type(number) not in (float, int, bool) for number in each):
            raise ConfigError(f"{name} must be a plain number or a tuple of them, not {type(value).__name__}")
        if isinstance(value, tuple):
            found |= {f"{name}/{number}": float(x) for number, x in enumerate(each)}
        found[name] = math.fsum(each) / len(each)
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
) -> dict[str, float]:
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
    return numbers_of(values, raw=raw_norms is not None)
