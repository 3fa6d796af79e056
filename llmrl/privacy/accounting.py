"""What a run has spent, in closed form: Rényi divergences of sampled Gaussian steps, and filters that never overspend.

A step draws every record with probability q, clips, and adds noise with the multiplier sigma (Mironov, Talwar & Zhang
2019, arXiv:1908.10530; neighbours differ by one record that is there or not). Orders are integers, where the divergence
is a finite sum. `epsilon` converts by Canonne, Kamath & Steinke 2020 (arXiv:2004.00010, Proposition 12):

    epsilon = rdp(order) + log(1 - 1/order) - (log(delta) + log(order)) / (order - 1)

A filter is what an adaptive run needs: who chooses a step's noise after seeing earlier steps must ask before making it
(Feldman & Zrnic 2021, arXiv:2008.11193; for Gaussians without sampling Smith & Thakurta 2022, arXiv:2210.17520).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

ORDERS: tuple[int, ...] = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1024)

Step = tuple[float, float, int]  # sigma, q, number of steps


@lru_cache(maxsize=1 << 16)
def rdp(sigma: float, q: float, order: int) -> float:
    """The Rényi divergence of `order` that one step spends: sampling rate `q`, noise multiplier `sigma`.

    log(sum_k C(order, k) (1-q)^(order-k) q^k exp((k^2 - k) / (2 sigma^2))) / (order - 1), summed without the terms that
    are 1 together, so that small rates lose no digits. Infinite without noise, 0 if no record is ever drawn.
    Raises ValueError for a rate outside 0..1, a negative sigma, or an order that is no integer of at least 2.
    """
    _check_step(sigma, q)
    if order != int(order) or order < 2:
        raise ValueError(f"order={order}: the closed form is for integer orders of at least 2")
    order = int(order)
    inverse = _inverse_square(sigma)
    if q == 0 or inverse == 0:
        return 0.0
    if inverse == math.inf:
        return math.inf
    if q == 1:
        return order * inverse / 2
    # E[ratio^order] - 1 = sum_{k >= 2} C(order, k) (1-q)^(order-k) q^k (exp((k^2-k)/(2 sigma^2)) - 1)
    logs = [_log_binomial(order, k, q) + _log_expm1(k * (k - 1) * inverse / 2) for k in range(2, order + 1)]
    return _log1p_exp(_log_sum_exp(logs)) / (order - 1)


def rdp_of(history: Iterable[Step], order: int) -> float:
    """The divergence of a whole history of (sigma, q, steps): sums, rounded once, so that their order does not matter."""
    terms = [steps * rdp(float(sigma), float(q), int(order)) for sigma, q, steps in _checked(history)]
    return math.fsum(terms) if math.inf not in terms else math.inf


def epsilon(history: Sequence[Step], delta: float, *, orders: Sequence[int] = ORDERS) -> float:
    """The smallest epsilon over `orders` at which `history`, a sequence of (sigma, q, steps), is (epsilon, delta)-DP.

    For parameters that were fixed before training. 0 for steps that spend nothing, infinite for steps without noise.
    Raises ValueError for a delta outside 0..1 or no orders.
    """
    _check_delta(delta)
    if not orders:
        raise ValueError("there is no order; give at least one, such as orders=[8]")
    return min(converted(rdp_of(history, order), delta, order) for order in orders)


def converted(divergence: float, delta: float, order: int) -> float:
    """The epsilon at `delta` of something with this Rényi divergence; 0 divergence is epsilon 0."""
    if divergence <= 0:
        return 0.0
    return max(0.0, divergence - _overhead(delta, order))


def renyi_budget(epsilon: float, delta: float, order: int) -> float:
    """How much divergence of `order` still converts to (epsilon, delta); negative if the order cannot certify any."""
    return epsilon + _overhead(delta, order)


class RenyiFilter:
    """Admits steps, each with a sigma and a rate chosen after seeing the earlier ones, while (epsilon, delta) holds.

    With one order, the spent divergence stays within that order's budget. With several, each order is held to the budget
    of delta / len(orders), and a step is admitted while it leaves at least one order within: by a union bound over which
    order that is, the guarantee holds at (epsilon, delta). Use several only where no good order can be planned.
    """

    def __init__(self, epsilon: float, delta: float, *, orders: Sequence[int]) -> None:
        _check_epsilon(epsilon)
        _check_delta(delta)
        if not orders:
            raise ValueError("a filter needs at least one order, such as orders=[8]")
        if len(set(orders)) != len(orders):
            raise ValueError(f"orders={list(orders)} names an order twice")
        rdp(1.0, 1.0, max(orders)), rdp(1.0, 1.0, min(orders))  # refuses what is no order
        share = delta / len(orders)
        self.orders = tuple(orders)
        self.budgets = {order: renyi_budget(epsilon, share, order) for order in self.orders}
        self._spent = dict.fromkeys(self.orders, Fraction(0))  # exact, so that the steps' order does not matter

    @property
    def order(self) -> int:
        """The order that certifies the run so far: the one with the largest share of its budget left."""
        return max(self.orders, key=lambda order: (self._left(order), -order))

    @property
    def budget(self) -> float:
        """The budget of `order`; with a single order simply its budget."""
        return self.budgets[self.order]

    @property
    def spent(self) -> float:
        """The divergence of `order` spent so far."""
        return float(self._spent[self.order])

    def fits(self, sigma: float, q: float, *, steps: int = 1) -> bool:
        """Whether so many equal steps could be admitted now; spends nothing."""
        return self._after(sigma, q, steps) is not None

    def admit(self, sigma: float, q: float) -> bool:
        """Spend one step if it fits, and say whether it did. A step that is not admitted must not be made."""
        after = self._after(sigma, q, 1)
        if after is None:
            return False
        self._spent = after
        return True

    def _after(self, sigma: float, q: float, steps: int) -> dict[int, Fraction] | None:
        costs = {order: rdp(float(sigma), float(q), order) for order in self.orders}
        # An order whose cost is infinite is lost for ever; a budget below 0 admits nothing at that order.
        after = {
            order: self._spent[order] + steps * Fraction(cost if cost < math.inf else _NEVER)
            for order, cost in costs.items()
        }
        alive = any(after[order] <= Fraction(self.budgets[order]) for order in self.orders)
        return after if alive else None

    def _left(self, order: int) -> float:
        budget = self.budgets[order]
        return 1.0 - float(self._spent[order]) / budget if budget > 0 else -math.inf


class GaussianFilter:
    """Admits Gaussian steps without sampling while (epsilon, delta) holds: sum 1 / sigma^2 <= mu^2.

    mu is the largest parameter of a Gaussian mechanism that is (epsilon, delta)-DP (Balle & Wang 2018,
    arXiv:1805.06530). It is exact for whole batches, and not a bound for sampled ones: use `RenyiFilter` there.
    """

    def __init__(self, epsilon: float, delta: float) -> None:
        _check_epsilon(epsilon)
        _check_delta(delta)
        self.mu = gaussian_mu(epsilon, delta)
        self._spent = Fraction(0)

    @property
    def budget(self) -> float:
        """mu^2."""
        return self.mu**2

    @property
    def spent(self) -> float:
        """The sum of 1 / sigma^2 over admitted steps."""
        return float(self._spent)

    def admit(self, sigma: float) -> bool:
        """Spend one step if it fits, and say whether it did. A step that is not admitted must not be made."""
        _check_step(sigma, 1.0)
        cost = _inverse_square(sigma)
        if cost == math.inf or self._spent + Fraction(cost) > Fraction(self.budget):
            return False
        self._spent += Fraction(cost)
        return True


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The smallest delta of a Gaussian mechanism with sensitivity / deviation = mu (Balle & Wang 2018, Theorem 8)."""
    from scipy.special import log_ndtr, ndtr

    if mu == 0:
        return 0.0
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu)) - math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu that is (epsilon, delta)-DP, by bisection, rounded down."""
    return bracket(lambda mu: gaussian_delta(mu, epsilon) > delta, digits=1e-12)[0]


def bracket(
    fits: Callable[[float], bool], *, digits: float, start: float = 1.0, most: float = math.inf
) -> tuple[float, float]:
    """(x that does not fit, larger one that does), at most the share `digits` apart, where all that is large fits.

    The search doubles from `start`, and ends with infinity beyond `most`.
    """
    low, high = 0.0, start
    while not fits(high):
        low, high = high, 2 * high
        if high > most:
            return low, math.inf
    while high - low > digits * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low, high


_NEVER = 1e300


def _inverse_square(sigma: float) -> float:
    """1 / sigma^2; 0 or infinite where a float ends."""
    return (1.0 / sigma) / sigma if sigma > 0 and 1.0 / sigma < math.inf else math.inf


def _overhead(delta: float, order: int) -> float:
    """What the conversion takes off: epsilon = divergence - this."""
    return -math.log1p(-1 / order) + (math.log(delta) + math.log(order)) / (order - 1)


def _log_binomial(order: int, k: int, q: float) -> float:
    return math.log(math.comb(order, k)) + k * math.log(q) + (order - k) * math.log1p(-q)


def _log_expm1(x: float) -> float:
    return math.log(math.expm1(x)) if x < 1 else x + math.log1p(-math.exp(-x))


def _log1p_exp(x: float) -> float:
    return math.log1p(math.exp(x)) if x < 0 else x + math.log1p(math.exp(-x))


def _log_sum_exp(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(math.fsum(math.exp(value - top) for value in logs)) if math.isfinite(top) else top


def _checked(history: Iterable[Step]) -> Iterable[Step]:
    for sigma, q, steps in history:
        if steps < 0 or steps != int(steps):
            raise ValueError(f"{steps} steps in the history; it holds (sigma, q, number of steps)")
        if steps:
            yield sigma, q, int(steps)


def _check_step(sigma: float, q: float) -> None:
    if not 0 <= q <= 1:
        raise ValueError(f"q={q} is no sampling rate; it is a probability, from 0 to 1")
    if not sigma >= 0:
        raise ValueError(f"sigma={sigma} is no noise multiplier; it is a number of at least 0")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must be between 0 and 1, and below 1 / records to mean anything")


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon} must be a positive, finite number")
