"""Clipping, noise and accounting against slow definitions, and the two promises that all else rests on.

definition    clipped sums row by row; the divergence by numerical integration; the budget by converting it back
sensitivity   how much more than 1 a removed record moves the clipped sum, in units of the noise
overspending  how far a greedy chooser of steps gets beyond a filter's budget
row order     records, or steps of a history, in another order
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llmrl.conformance.measure import Finding, gap
from llmrl.privacy import accounting, clipping

SIZES = (5, 1, 3)
RECORDS = 7


def check_privacy(seed: int) -> Iterator[Finding]:
    """All checks on one random sample."""
    checks: dict[str, dict[str, Callable[[random.Random], float]]] = {
        "clipped_sum": {"definition": _sum_is_its_definition, "row order": _records_in_another_order},
        "noise_std": {"definition": _noise_is_worth_sigma, "sensitivity": _excess_sensitivity},
        "rdp": {"definition": _divergence_is_its_integral},
        "epsilon": {"row order": _history_in_another_order},
        "RenyiFilter": {"definition": _budget_converts_back, "overspending": _overspent},
    }
    for name, own in checks.items():
        for check, measure in own.items():
            yield Finding(name, check, measure(random.Random(f"{name} {check} {seed}")))


def _case(draw: random.Random) -> tuple[list[Tensor], list[float]]:
    """Rows of very different sizes, one of them zero and one not finite; thresholds."""
    groups = [
        torch.tensor([[draw.gauss(0, 1) * 10 ** draw.uniform(-2, 2) for _ in range(size)] for _ in range(RECORDS)])
        for size in SIZES
    ]
    groups = [rows.double() for rows in groups]
    groups[0][0], groups[1][1] = 0.0, math.inf
    return groups, [10 ** draw.uniform(-2, 1) for _ in SIZES]


def _rule(draw: random.Random) -> Any:
    raw = [draw.uniform(0.1, 1) for _ in SIZES]
    weights = [value / math.fsum(raw) for value in raw]
    return draw.choice(["isotropic", "equal_budget", weights])


def _sum_is_its_definition(draw: random.Random) -> float:
    groups, thresholds = _case(draw)
    expected = []
    for rows, limit in zip(groups, thresholds, strict=True):
        total = [0.0] * rows.shape[1]
        for row in rows.tolist():
            norm = math.sqrt(sum(value * value for value in row))
            if math.isfinite(norm):
                scale = 1.0 if norm <= limit else limit / norm
                total = [before + scale * value for before, value in zip(total, row, strict=True)]
        expected.append(torch.tensor(total, dtype=torch.float64))
    return max(gap(got, want) for got, want in zip(clipping.clipped_sum(groups, thresholds), expected, strict=True))


def _records_in_another_order(draw: random.Random) -> float:
    groups, thresholds = _case(draw)
    order = draw.sample(range(RECORDS), RECORDS)
    moved = clipping.clipped_sum([rows[order] for rows in groups], thresholds)
    return max(gap(a, b) for a, b in zip(moved, clipping.clipped_sum(groups, thresholds), strict=True))


def _noise_is_worth_sigma(draw: random.Random) -> float:
    _, thresholds = _case(draw)
    sigma, rule = draw.uniform(0.3, 5), _rule(draw)
    return abs(clipping.effective_sigma(thresholds, clipping.noise_std(thresholds, sigma, rule=rule)) - sigma)


def _excess_sensitivity(draw: random.Random) -> float:
    groups, thresholds = _case(draw)
    sigma = draw.uniform(0.3, 5)
    deviations = clipping.noise_std(thresholds, sigma, rule=_rule(draw))
    whole, worst = clipping.clipped_sum(groups, thresholds), 0.0
    for record in range(RECORDS):
        rest = [index for index in range(RECORDS) if index != record]
        less = clipping.clipped_sum([rows[rest] for rows in groups], thresholds)
        parts = [float((a - b).norm()) * sigma / s for a, b, s in zip(whole, less, deviations, strict=True)]
        worst = max(worst, math.hypot(*parts))
    return max(0.0, worst - 1)


def _divergence_is_its_integral(draw: random.Random) -> float:
    sigma, q, order = draw.uniform(0.7, 4), 10 ** draw.uniform(-3, -0.2), draw.choice([2, 3, 5, 8])
    x = torch.linspace(-12 * sigma, 12 * sigma + order + 1, 50_001, dtype=torch.float64)
    density = (-(x**2) / (2 * sigma**2)).exp() / (sigma * math.sqrt(2 * math.pi))
    ratio = torch.log1p(q * torch.expm1((2 * x - 1) / (2 * sigma**2)))
    excess = float((density * torch.expm1(order * ratio)).sum() * (x[1] - x[0]))
    got = accounting.rdp(sigma, q, order)
    return abs(got - math.log1p(excess) / (order - 1)) / (1 + got)


def _history_in_another_order(draw: random.Random) -> float:
    history = [(draw.uniform(0.6, 3), draw.uniform(0.001, 0.1), draw.randrange(1, 9)) for _ in range(8)]
    orders = [2, 5, 16]
    moved = accounting.epsilon(draw.sample(history, len(history)), 1e-5, orders=orders)
    return abs(moved - accounting.epsilon(history, 1e-5, orders=orders))


def _budget_converts_back(draw: random.Random) -> float:
    target, order = draw.uniform(2, 9), draw.choice([8, 16, 64])
    return abs(accounting.converted(accounting.renyi_budget(target, 1e-6, order), 1e-6, order) - target)


def _overspent(draw: random.Random) -> float:
    held = accounting.RenyiFilter(draw.uniform(2, 5), 1e-5, orders=[draw.choice([8, 16])])
    costs: list[float] = []
    for sigma in sorted(draw.uniform(0.5, 6) for _ in range(60)):  # the dearest steps first
        while len(costs) < 400 and held.admit(sigma, 0.05):
            costs.append(accounting.rdp(sigma, 0.05, held.order))
    return max(0.0, math.fsum(costs) - held.budget) + abs(math.fsum(costs) - held.spent)
