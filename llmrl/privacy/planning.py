"""How much noise a budget needs, before anything is trained. Pure functions of public numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from llmrl.errors import ConfigError
from llmrl.privacy.accounting import ORDERS, Step, bracket, converted, epsilon, rdp, rdp_of, renyi_budget
from llmrl.privacy.reports import AccountantMissing, pld_epsilon, prv_epsilon

Accountant = Literal["rdp", "prv", "pld"]
LARGEST_SIGMA = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`steps` steps at the rate `q` with the multiplier `sigma`, which keeps them within (epsilon, delta)."""

    epsilon: float  # the target
    delta: float
    q: float
    steps: int
    sigma: float
    order: int  # the Rényi order at which these steps are cheapest; a filter uses it
    budget: float  # of that order
    lowest_sigma: float  # below it one step costs more than `burst` times an average step


def epsilon_by(accountant: Accountant, history: Sequence[Step], delta: float) -> float:
    """The epsilon of a history that was fixed beforehand, by the accountant's name. Raises ConfigError if it is unknown."""
    known: dict[str, Callable[[Sequence[Step], float], float]] = {
        "rdp": epsilon,
        "prv": prv_epsilon,
        "pld": pld_epsilon,
    }
    if accountant not in known:
        raise ConfigError(f"privacy.accountant={accountant} is unknown; it is one of {', '.join(known)}")
    try:
        return known[accountant](history, delta)
    except AccountantMissing as error:
        raise ConfigError(f"privacy.accountant={accountant}: {error}") from error


def sigma_for(
    target: float, delta: float, *, q: float, steps: int, accountant: Accountant = "rdp", digits: float = 1e-3
) -> float:
    """The smallest noise multiplier, within `digits`, at which `steps` steps stay within (target, delta).

    Raises ConfigError if even a multiplier of 1e6 is not enough: the target is out of reach of the accountant.
    """

    def fits(sigma: float) -> bool:
        return sigma > 0.1 and epsilon_by(accountant, [(sigma, q, steps)], delta) <= target

    _, found = bracket(fits, digits=digits, most=LARGEST_SIGMA)
    if found == math.inf:
        raise ConfigError(
            f"privacy.epsilon={target} at delta={delta} is out of reach of {steps} steps at rate {q:.3g}; "
            "raise epsilon or delta, or take fewer steps"
        )
    return found


def best_order(history: Sequence[Step], delta: float, *, orders: Sequence[int] = ORDERS) -> int:
    """The order at which a planned history converts to the smallest epsilon."""
    return min(orders, key=lambda order: converted(rdp_of(history, order), delta, order))


def lowest_sigma(*, q: float, order: int, cost: float) -> float:
    """The smallest multiplier whose step costs at most `cost` at this order: costs explode below it."""
    return bracket(lambda sigma: rdp(sigma, q, order) <= cost, digits=1e-15)[1]


def plan(
    target: float,
    delta: float,
    *,
    q: float,
    steps: int,
    accountant: Accountant = "rdp",
    sigma: float | None = None,
    burst: float = 8.0,
) -> Plan:
    """Noise for a budget, or a check of a given `sigma`.

    Raises ConfigError for a target that is out of reach, or a sigma that breaks it.
    """
    chosen = sigma_for(target, delta, q=q, steps=steps, accountant=accountant) if sigma is None else sigma
    history = [(chosen, q, steps)]
    cost = epsilon_by(accountant, history, delta)
    if cost > target:
        raise ConfigError(
            f"sigma={chosen:.4g} for {steps} steps at rate {q:.3g} costs epsilon {cost:.3g} by {accountant}, more than "
            f"privacy.epsilon={target}; leave sigma out, and it is computed"
        )
    order = best_order(history, delta)
    budget = renyi_budget(target, delta, order)
    return Plan(
        epsilon=target, delta=delta, q=q, steps=steps, sigma=chosen, order=order, budget=budget,
        lowest_sigma=lowest_sigma(q=q, order=order, cost=burst * budget / steps),
    )  # fmt: skip


def decayed_sigmas(sigma: float, steps: int, *, ratio: float, pieces: int = 8) -> tuple[tuple[float, int], ...]:
    """A schedule (sigma, steps) that falls geometrically by `ratio` overall around `sigma`: noisy first, exact later.

    It is fixed before training, so that it needs no filter; `terms_of` refuses it if it costs more than the target.
    """
    lengths = [steps // pieces + (piece < steps % pieces) for piece in range(pieces)]
    exponents = [piece / max(1, pieces - 1) - 0.5 for piece in range(pieces)]
    return tuple((sigma * ratio**exponent, n) for exponent, n in zip(exponents, lengths, strict=True) if n)


def epsilons(history: Sequence[Step], delta: float) -> Iterator[tuple[str, float]]:
    """(accountant, epsilon) of a history that was fixed beforehand, of each that is installed; the slow ones come last."""
    yield "rdp", epsilon(history, delta)
    for name, account in (("prv", prv_epsilon), ("pld", pld_epsilon)):
        with suppress(AccountantMissing):
            yield name, account(history, delta)
