"""Soft actor-critic's losses against definitions in Python floats, finite differences and row order.

A case names a function, its random inputs by name, its definition on nested lists, and what to differentiate. Where a
loss stops gradients on purpose (DSAC-T), its derivative is checked against the equations that it stands for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llmrl.conformance.measure import Finding, gap, gradient_gap
from llmrl.control import losses, pmoe, rlpd, symphony

B, K, D = 5, 3, 2
GAMMA, ALPHA, TAU, H = 0.9, 0.3, 0.2, -2.0
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    fast: Callable[[Inputs], Tensor]
    slow: Callable[[Mapping[str, Any]], Any]
    wrt: tuple[str, ...] = ()
    rows: int = 0  # the dimension of the result that counts rows


def check_control(seed: int) -> Iterator[Finding]:
    """All checks of every function on one random sample."""
    inputs = random_inputs(seed)
    for case in cases():
        result = case.fast(inputs)
        expected = torch.tensor(case.slow({name: x.tolist() for name, x in inputs.items()}), dtype=torch.float64)
        yield Finding(case.name, "definition", gap(result, expected))
        for name in case.wrt:
            yield Finding(
                case.name, "finite difference", gradient_gap(partial(_changed, case, inputs, name), inputs[name])
            )
        yield Finding(case.name, "row order", _order_gap(case, inputs, result, seed))


def random_inputs(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed + 500)
    normal = partial(torch.randn, generator=draw, dtype=torch.float64)
    return {
        "mean": normal(B, D), "log_std": 0.5 * normal(B, D), "u": 2 * normal(B, D),
        "reward": normal(B), "terminated": (normal(B) > 0.5).double(), "values": normal(2, B),
        "logprob": normal(B), "target": normal(B), "log_alpha": normal(1)[0], "online": normal(2, B),
        "action": normal(B, D).tanh(), "std": normal(2, B).exp(), "z": 3 * normal(2, B), "sampled": 4 * normal(B),
        "ema": normal(2).exp(), "weights": (2 * normal(B, K)).softmax(-1), "means": normal(B, K, D),
        "log_stds": 0.5 * normal(B, K, D), "us": normal(B, K, D), "expert_values": normal(B, K),
    }  # fmt: skip


# Along which dimension each input counts rows.
ROWS = {name: 0 for name in ("mean", "log_std", "u", "reward", "terminated", "logprob", "target", "action", "sampled")}
ROWS |= {"weights": 0, "means": 0, "log_stds": 0, "us": 0, "expert_values": 0}
ROWS |= {"values": 1, "online": 1, "std": 1, "z": 1}


def cases() -> list[Case]:
    """Every public function of `llmrl.control.losses`, DSAC-T's loss once a form, and the family's other pure ones."""
    return [*_actor_cases(), *_critic_cases(), *_distributional_cases(), *_mixture_cases(), *_family_cases()]


def _actor_cases() -> list[Case]:
    return [
        Case(
            name="squashed_logprob",
            fast=lambda x: losses.squashed_logprob(x["mean"], x["log_std"], x["u"]),
            slow=lambda x: [_squashed(m, s, u) for m, s, u in zip(x["mean"], x["log_std"], x["u"], strict=True)],
            wrt=("mean", "log_std", "u"),
        ),
        Case(
            name="actor_loss",
            fast=lambda x: losses.actor_loss(x["values"], x["logprob"], alpha=ALPHA),
            slow=lambda x: statistics.fmean(
                ALPHA * p - min(one, two) for p, one, two in zip(x["logprob"], *x["values"], strict=True)
            ),
            wrt=("values", "logprob"),
        ),
        Case(
            name="temperature_loss",
            fast=lambda x: losses.temperature_loss(x["log_alpha"], x["logprob"], target_entropy=H),
            slow=lambda x: -math.exp(x["log_alpha"]) * (statistics.fmean(x["logprob"]) + H),
            wrt=("log_alpha",),
        ),
        Case(
            name="log_uniform",
            fast=lambda x: losses.log_uniform(x["action"], low=0.01, high=4.0),
            slow=lambda x: [[0.01 * 400.0 ** ((a + 1) / 2) for a in row] for row in x["action"]],
            wrt=("action",),
        ),
    ]


def _critic_cases() -> list[Case]:
    return [
        Case(
            name="soft_target",
            fast=lambda x: losses.soft_target(
                x["reward"], x["terminated"], x["values"], x["logprob"], gamma=GAMMA, alpha=ALPHA
            ),
            slow=lambda x: [
                r if d else r + GAMMA * (min(one, two) - ALPHA * p)
                for r, d, p, one, two in zip(x["reward"], x["terminated"], x["logprob"], *x["values"], strict=True)
            ],
        ),
        Case(
            name="critic_loss",
            fast=lambda x: losses.critic_loss(x["values"], x["target"]),
            slow=lambda x: math.fsum(
                (q - y) ** 2 / B for row in x["values"] for q, y in zip(row, x["target"], strict=True)
            ),
            wrt=("values",),
        ),
        Case(
            name="polyak",
            fast=lambda x: losses.polyak(x["values"], x["online"], tau=TAU),
            slow=lambda x: [
                [(1 - TAU) * old + TAU * new for old, new in zip(*rows, strict=True)]
                for rows in zip(x["values"], x["online"], strict=True)
            ],
            rows=1,
        ),
    ]


def _distributional_cases() -> list[Case]:
    def targets(x: Inputs) -> Tensor:
        return torch.stack(
            losses.distributional_targets(
                x["reward"], x["terminated"], x["values"], x["std"], x["z"], x["logprob"], gamma=GAMMA, alpha=ALPHA
            )
        )

    def definition(x: Mapping[str, Any]) -> list[list[float]]:
        result: list[list[float]] = [[], []]
        for i in range(B):
            j = 0 if x["values"][0][i] < x["values"][1][i] else 1
            noise = max(-3.0, min(3.0, x["z"][j][i]))
            for into, value in zip(result, (0.0, x["std"][j][i] * noise), strict=True):
                follows = x["values"][j][i] + value - ALPHA * x["logprob"][i]
                into.append(x["reward"][i] + (0.0 if x["terminated"][i] else GAMMA * follows))
        return result

    forms: tuple[losses.DistributionalForm, ...] = ("nll", "released", "released_2024")
    return [
        Case(name="distributional_targets", fast=targets, slow=definition, rows=1),
        *(Case(name=f"distributional_critic_loss {form}", fast=partial(_gradients, form),
               slow=partial(_slow_gradients, form), rows=1) for form in forms),
    ]  # fmt: skip


def _gradients(form: losses.DistributionalForm, x: Inputs) -> Tensor:
    """[dL/dm (2 rows), dL/ds (2 rows)], times B."""
    mean, std = x["values"].clone().requires_grad_(), x["std"].clone().requires_grad_()
    loss, _ = losses.distributional_critic_loss(
        mean, std, x["target"], x["sampled"], ema_std=x["ema"], tau_b=TAU, form=form
    )
    return B * torch.cat(torch.autograd.grad(loss, (mean, std)))


def _slow_gradients(form: str, x: Mapping[str, Any]) -> list[list[float]]:
    of_mean: list[list[float]] = []
    of_std: list[list[float]] = []
    for means, stds, ema in zip(x["values"], x["std"], x["ema"], strict=True):
        b = (1 - TAU) * ema + TAU * statistics.fmean(stds)
        pairs = []
        for m, s, y, drawn in zip(means, stds, x["target"], x["sampled"], strict=True):
            error = max(-3 * b, min(3 * b, drawn - m))
            if form == "released":
                ratio = max(0.1, min(10.0, b * b / (s * s + 0.1)))
                pairs.append((ratio * (m - y), ratio * (s * s - error**2 / 2) / (s + 0.1)))
            else:
                eps, weight = (1e-8, b * b) if form == "nll" else (0.1, b * b + 0.1)
                pairs.append((weight * (m - y) / (s**2 + eps), weight * (s**2 - error**2) / (s**3 + eps)))
        of_mean.append([pair[0] for pair in pairs])
        of_std.append([pair[1] for pair in pairs])
    return [*of_mean, *of_std]


def _mixture_cases() -> list[Case]:
    def density(x: Mapping[str, Any]) -> list[list[float]]:
        return [
            [
                math.log(
                    math.fsum(
                        w * math.exp(_squashed(m, s, u))
                        for w, m, s in zip(x["weights"][i], x["means"][i], x["log_stds"][i], strict=True)
                    )
                )
                for u in x["us"][i]
            ]
            for i in range(B)
        ]

    def gate(x: Mapping[str, Any]) -> float:
        total = 0.0
        for w, q in zip(x["weights"], x["expert_values"], strict=True):
            best = q.index(max(q))
            total += math.fsum((w[k] - (1.0 if k == best else 0.0)) ** 2 for k in range(K))
        return total / B

    return [
        Case(
            name="mixture_logprob",
            fast=lambda x: losses.mixture_logprob(x["weights"], x["means"], x["log_stds"], x["us"]),
            slow=density,
            wrt=("weights", "means", "log_stds", "us"),
        ),
        Case(
            name="gate_loss",
            fast=lambda x: losses.gate_loss(x["weights"], x["expert_values"]),
            slow=gate,
            wrt=("weights",),
        ),
    ]


def _family_cases() -> list[Case]:
    ways: tuple[rlpd.Aggregation, ...] = ("min", "mean", "max", "lcb", "ucb")
    updates: tuple[pmoe.ExpertUpdate, ...] = ("max", "all")

    def one_value(how: str, x: Mapping[str, Any]) -> list[float]:
        columns = list(zip(*x["values"], strict=True))
        sign = {"lcb": -1.0, "ucb": 1.0}
        if how in sign:
            return [statistics.fmean(q) + sign[how] * statistics.pstdev(q) for q in columns]
        return [min(q) if how == "min" else max(q) if how == "max" else statistics.fmean(q) for q in columns]

    def advantage(x: Mapping[str, Any]) -> float:
        rho, before, total = (math.sqrt(5) - 1) / 2, abs(x["log_alpha"]), 0.0
        for q in x["target"]:
            running = rho * before + (1 - rho) * q
            change = (q - running) / max(abs(running), 1.0)
            total -= abs(change) * math.tanh(change / 2)
        return total / B

    def mixture(experts: str, x: Mapping[str, Any]) -> float:
        total = 0.0
        for w, p, q in zip(x["weights"], x["us"], x["expert_values"], strict=True):
            best, each = q.index(max(q)), [ALPHA * row[0] - value for row, value in zip(p, q, strict=True)]
            total += each[best] if experts == "max" else math.fsum(a * b for a, b in zip(w, each, strict=True))
            total += math.fsum((w[k] - (k == best)) ** 2 for k in range(K)) + 0.01 * math.fsum(
                a * math.log(a) for a in w
            )
        return total / B

    def one_loss(experts: pmoe.ExpertUpdate, x: Inputs) -> Tensor:
        logprob = x["us"][..., 0]
        return pmoe.mixture_actor_loss(x["weights"], logprob, x["expert_values"], alpha=ALPHA, experts=experts)[0]

    def aggregated(how: rlpd.Aggregation, x: Inputs) -> Tensor:
        return rlpd.aggregate(x["values"], how)

    return [
        *(
            Case(name=f"aggregate {how}", fast=partial(aggregated, how), slow=partial(one_value, how), wrt=("values",))
            for how in ways
        ),
        *(
            Case(name=f"mixture_actor_loss {way}", fast=partial(one_loss, way), slow=partial(mixture, way))
            for way in updates
        ),
        Case(
            name="temporal_advantage_loss",
            fast=lambda x: symphony.temporal_advantage_loss(x["target"], x["log_alpha"].abs())[0],
            slow=advantage,
        ),
    ]


def _squashed(mean: list[float], log_std: list[float], u: list[float]) -> float:
    """log N(u) - log(1 - tanh^2), where 1 - tanh(u)^2 = 1 / cosh(u)^2."""
    return math.fsum(
        math.log(statistics.NormalDist(m, math.exp(s)).pdf(x)) + 2 * math.log(math.cosh(x))
        for m, s, x in zip(mean, log_std, u, strict=True)
    )


def _changed(case: Case, inputs: Inputs, name: str, x: Tensor) -> Tensor:
    return case.fast({**inputs, name: x})


def _order_gap(case: Case, inputs: Inputs, result: Tensor, seed: int) -> float:
    order = torch.randperm(B, generator=torch.Generator().manual_seed(seed))
    moved = {name: x.index_select(ROWS[name], order) if name in ROWS else x for name, x in inputs.items()}
    if result.dim() == 0:
        return gap(case.fast(moved), result)
    return gap(case.fast(moved), result.index_select(case.rows, order))
