"""The control family's functions of plain values: replay weights, idle experts, shares of a batch, known laws, histograms,
Pareto fronts.

Each is checked against a definition in Python floats; fronts, volumes and histograms also against another order of points.
What needs the extra `control` (pymoo, gymnasium) is left out where that is not installed.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrl.conformance.measure import Finding, gap
from llmrl.control import nets, pmoe, rlpd, srl, symphony, yann
from llmrl.control.knob import Knob
from llmrl.control.replay import Replay

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
        ("mixed_batch", "definition"): _mixed,
        ("frequency_averaged_score", "definition"): _averaged,
        ("saturated_law", "definition"): _law,
        ("Piecewise", "definition"): _piecewise,
        ("follow", "definition"): _follow,
        ("Knob", "definition"): _knob,
        ("Knob", "inverse"): _knob_inverse,
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


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


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


def _mixed(draw: random.Random) -> float:
    """How many rows come from the transitions of earlier runs, which alone have the reward 1."""
    size, share = draw.randint(1, 64), draw.random()
    online, offline = (Replay(obs_size=1, action_size=1, capacity=4, dtype=torch.float64) for _ in range(2))
    for reward, store in enumerate((online, offline)):
        zero = torch.zeros(1)
        store.add(obs=zero, raw=zero, reward=float(reward), next_obs=zero, terminated=0.0)
    batch = rlpd.mixed_batch(online, offline, size, share, torch.Generator().manual_seed(draw.randint(0, 99)))
    return _gap([len(batch.reward), float(batch.reward.sum())], [size, round(size * share)])


def _law(draw: random.Random) -> float:
    """Every output is its line, cut to [-1, 1]."""
    gain, offset, x = ([[draw.gauss(0, 1) for _ in range(n)] for _ in range(m)] for m, n in ((2, 3), (1, 2), (9, 3)))
    lines = [[math.fsum(k * v for k, v in zip(row, point, strict=True)) for row in gain] for point in x]
    expected = [[max(-1.0, min(1.0, a + b)) for a, b in zip(line, offset[0], strict=True)] for line in lines]
    law = yann.Piecewise(yann.saturated_law(_tensor(gain), _tensor(offset[0])))
    return _gap(law(_tensor(x)).detach(), expected)


def _piecewise(draw: random.Random) -> float:
    """x' P x + F x + g of the half line that x lies on."""
    numbers = [[draw.gauss(0, 1) for _ in range(3)] for _ in range(2)]
    regions = [
        yann.Region(H=_tensor([[sign]]), h=_tensor([0.0]), P=_tensor([[p]]), F=_tensor([[f]]), g=_tensor([g]))
        for sign, (p, f, g) in zip((1.0, -1.0), numbers, strict=True)
    ]
    x = [draw.gauss(0, 2) for _ in range(9)]
    expected = [p * v * v + f * v + g for v in x for p, f, g in [numbers[0 if v <= 0 else 1]]]
    return _gap(yann.Piecewise(regions, scalar=True)(_tensor(x)[:, None]).detach(), expected)


def _follow(draw: random.Random) -> float:
    """Every parameter goes that share of the way."""
    tau = draw.random()
    pairs = [(draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(4)]
    held, other = (torch.nn.ParameterList([_tensor([pair[i]]) for pair in pairs]) for i in (0, 1))
    nets.follow(held, other, tau=tau)
    return _gap([float(p.detach()) for p in held], [(1 - tau) * a + tau * b for a, b in pairs])


def _a_knob(draw: random.Random) -> Knob:
    low = draw.uniform(0.01, 1.0)
    return Knob(name="k", low=low, high=low * draw.uniform(1.5, 50), default=low, log=draw.random() < 0.5)


def _knob(draw: random.Random) -> float:
    """Equal steps of the action are equal steps of the value, or equal ratios."""
    knob, share = _a_knob(draw), draw.random()
    straight = knob.low + share * (knob.high - knob.low)
    return _gap(knob.value(2 * share - 1), knob.low ** (1 - share) * knob.high**share if knob.log else straight)


def _knob_inverse(draw: random.Random) -> float:
    knob, action = _a_knob(draw), draw.uniform(-1, 1)
    return _gap(knob.action(knob.value(action)), action)


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
