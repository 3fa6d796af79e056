"""The control family's functions of plain values: replay weights, idle experts, shares of a batch, histograms, Pareto fronts.

Each is checked against a definition in Python floats; fronts, volumes and histograms also against another order of points.
What needs the extra `control` (pymoo, gymnasium) is left out where that is not installed.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import torch

from llmrl.conformance.measure import Finding, gap
from llmrl.control import pmoe, rlpd, srl, symphony

POINTS, REFERENCE = 6, (-3.0, -3.0)
Check = Callable[[random.Random], float]


def check_family(seed: int) -> Iterator[Finding]:
    """All checks on one random sample."""
    for (name, check), measure in checks().items():
        yield Finding(name, check, measure(random.Random(f"{name} {check} {seed}")))


def checks() -> dict[tuple[str, str], Check]:
    """Every check by (function, what it compares with)."""
    found: dict[tuple[str, str], Check] = {
        ("fading_weights", "definition"): _fading,
        ("count_idle", "definition"): _idle,
        ("offline_rows", "definition"): _offline,
        ("frequency_averaged_score", "definition"): _averaged,
    }
    if find_spec("pymoo") and find_spec("gymnasium"):
        found |= {
            ("histogram", "definition"): _histogram,
            ("histogram", "row order"): _histogram_order,
            ("pareto_front", "definition"): _front,
            ("hypervolume", "definition"): _volume,
            ("hypervolume", "row order"): _volume_order,
        }
    return found


def _gap(got: object, expected: object) -> float:
    return gap(torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64))


def _fading(draw: random.Random) -> float:
    n = draw.randint(1, 40)
    return _gap(symphony.fading_weights(n), [math.tanh((math.pi * i / n) ** math.e) for i in range(1, n + 1)])


def _idle(draw: random.Random) -> float:
    rows = [[draw.choice((0.0, 5e-4, 0.9, 1.5e-3)) for _ in range(3)] for _ in range(2)]
    before = [draw.randint(0, 30) for _ in range(3)]
    expected = [n + 1 if (a + b) / 2 < 1e-3 else 0 for n, a, b in zip(before, *rows, strict=True)]
    return _gap(pmoe.count_idle(torch.tensor(rows), torch.tensor(before)), expected)


def _offline(draw: random.Random) -> float:
    """The whole number nearest to the share of the batch."""
    size, share = draw.randint(1, 64), draw.random()
    best = min(range(size + 1), key=lambda rows: abs(rows - size * share))
    return _gap(rlpd.offline_rows(size, share), best)


def _averaged(draw: random.Random) -> float:
    """The area under straight lines between the returns at the frequencies 1/k, over the width."""
    returns = {k: draw.gauss(0, 3) for k in draw.sample(range(1, 9), 4)}
    slow = sorted(returns, reverse=True)  # frequencies rise
    area = math.fsum((returns[a] + returns[b]) / 2 * (1 / b - 1 / a) for a, b in itertools.pairwise(slow))
    return _gap(srl.frequency_averaged_score(returns), area / (1 / slow[-1] - 1 / slow[0]))


def _values(draw: random.Random) -> tuple[list[float], list[float]]:
    return [draw.gauss(0, 2) for _ in range(12)], [-2.0, -0.5, 0.1, 1.0, 2.5]


def _histogram(draw: random.Random) -> float:
    from llmrl.control.gmorl import histogram

    values, edges = _values(draw)
    bins = [sum(edge <= value for edge in edges[1:-1]) for value in values]
    return _gap(histogram(values, edges), [bins.count(k) / len(values) for k in range(len(edges) - 1)])


def _histogram_order(draw: random.Random) -> float:
    from llmrl.control.gmorl import histogram

    values, edges = _values(draw)
    return _gap(histogram(draw.sample(values, len(values)), edges), histogram(values, edges))


def _points(draw: random.Random) -> list[tuple[float, float]]:
    points = [(draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(POINTS)]
    return [*points, points[0]]  # one of them twice


def _front(draw: random.Random) -> float:
    from llmrl.control.gmorl import pareto_front

    points = set(_points(draw))
    kept = [p for p in points if not any(q != p and all(b >= a for a, b in zip(p, q, strict=True)) for q in points)]
    return _gap(pareto_front(np.array(sorted(points))), sorted(kept))


def _volume(draw: random.Random) -> float:
    """The union of the rectangles between the reference and each point: by inclusion and exclusion."""
    from llmrl.control.gmorl import hypervolume

    points, total = _points(draw), 0.0
    for size in range(1, len(points) + 1):
        for some in itertools.combinations(points, size):
            sides = (max(0.0, min(axis) - low) for axis, low in zip(zip(*some, strict=True), REFERENCE, strict=True))
            total += (-1) ** (size + 1) * math.prod(sides)
    return _gap(hypervolume(np.array(points), REFERENCE), total)


def _volume_order(draw: random.Random) -> float:
    from llmrl.control.gmorl import hypervolume

    points = _points(draw)
    moved = draw.sample(points, len(points))
    return _gap(hypervolume(np.array(moved), REFERENCE), hypervolume(np.array(points), REFERENCE))
