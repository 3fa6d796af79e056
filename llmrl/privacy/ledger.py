"""The ledger: every step that was paid for, written before the step is made, and computed again when it is read.

A step that was paid for and then lost, because the process died before its checkpoint, stays in the ledger: the run that
resumes draws other records and other noise for it, and pays again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llmrl.atomic import replacing
from llmrl.errors import LlmrlError
from llmrl.privacy.accounting import RenyiFilter, Step, bracket, epsilon
from llmrl.privacy.planning import Accountant, Plan, epsilon_by

Mode = Literal["fixed", "adaptive"]
VERSION = 1


class LedgerError(LlmrlError, ValueError):
    """The ledger is damaged or contradicts itself; nothing can be claimed or continued from it."""


class BudgetSpent(LlmrlError, RuntimeError):
    """A step was asked for that the budget does not admit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """`steps` equal steps from number `first` on."""

    first: int
    steps: int
    sigma: float  # the multiplier of everything that the step released together
    q: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a ledger promises, fixed before training."""

    epsilon: float
    delta: float
    unit: str  # what one record is: "row", or the column that names it
    mode: Mode  # fixed: sigmas planned beforehand; adaptive: each step asks the filter
    accountant: Accountant
    sigmas: tuple[tuple[float, int], ...]  # fixed mode: (sigma, steps) in order; adaptive: the planned one
    q: float
    orders: tuple[int, ...]  # of the filter; adaptive mode
    guarantee: bool = True  # False for runs whose state or randomness breaks the promise
    adjacency: str = "add or remove one record"
    sampler: str = "poisson"

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.sigmas)


def terms_of(
    plan: Plan,
    *,
    unit: str,
    mode: Mode,
    accountant: Accountant,
    sigmas: Sequence[tuple[float, int]] = (),
    guarantee: bool = True,
) -> Terms:
    """The terms of a plan. `sigmas` is a schedule of the fixed mode that costs no more than the target.

    Raises LedgerError if it costs more.
    """
    schedule = tuple((float(sigma), int(steps)) for sigma, steps in sigmas) or ((plan.sigma, plan.steps),)
    if mode == "fixed":
        cost = epsilon_by(accountant, [(sigma, plan.q, steps) for sigma, steps in schedule], plan.delta)
        if cost > plan.epsilon:
            raise LedgerError(f"the schedule costs epsilon {cost:.4g} by {accountant}, more than {plan.epsilon}")
    return Terms(
        epsilon=plan.epsilon, delta=plan.delta, unit=unit, mode=mode, accountant=accountant, sigmas=schedule, q=plan.q,
        orders=(plan.order,) if mode == "adaptive" else (), guarantee=guarantee,
    )  # fmt: skip


class Ledger:
    """What may still be spent. `admit` is asked before every step; what it refuses must not be made."""

    def __init__(self, terms: Terms, entries: Sequence[Entry] = ()) -> None:
        self.terms = terms
        self._entries: list[Entry] = []
        self._filter = (
            RenyiFilter(terms.epsilon, terms.delta, orders=terms.orders) if terms.mode == "adaptive" else None
        )
        for entry in entries:
            for step in range(entry.first, entry.first + entry.steps):
                if not self.admit(entry.sigma, entry.q, step=step):
                    raise LedgerError(f"the ledger holds a step that its own terms do not admit: step {step}")

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    @property
    def paid(self) -> int:
        """How many steps were paid for, lost ones too."""
        return sum(entry.steps for entry in self._entries)

    @property
    def history(self) -> list[Step]:
        """(sigma, q, steps) as they were paid for."""
        return [(entry.sigma, entry.q, entry.steps) for entry in self._entries]

    @property
    def planned_sigma(self) -> float | None:
        """Fixed mode: the multiplier of the next step; None if all planned steps are paid for."""
        before = self.paid
        for sigma, steps in self.terms.sigmas:
            if before < steps:
                return sigma
            before -= steps
        return None

    @property
    def share(self) -> float:
        """The share of the budget that is spent, 0 to 1, by the cheap closed form: for controllers and progress."""
        if self._filter is not None:
            return self._filter.spent / self._filter.budget if self._filter.budget > 0 else 1.0
        return self.paid / self.terms.steps

    def fits(self, sigma: float, q: float) -> bool:
        """Whether such a step would be admitted now; spends nothing."""
        if self._filter is not None:
            return self._filter.fits(sigma, q)
        planned = self.planned_sigma
        return planned is not None and sigma >= planned and q <= self.terms.q

    def nearest(self, sigma: float, q: float) -> float | None:
        """The smallest multiplier from `sigma` up that is admitted now, within 0.1 %; None if not even 64 times is."""
        if self.fits(sigma, q):
            return sigma
        _, found = bracket(lambda more: self.fits(more, q), digits=1e-3, start=2 * sigma, most=64 * sigma)
        return found if found < math.inf else None

    def admit(self, sigma: float, q: float, *, step: int) -> bool:
        """Spend one step of multiplier `sigma` at rate `q` if it fits, and say whether it did.

        In the fixed mode a step fits if it has at least the planned noise; it is charged as planned.
        """
        if not self.fits(sigma, q):
            return False
        if self._filter is not None:
            self._filter.admit(sigma, q)
        else:
            sigma, q = self.planned_sigma or sigma, self.terms.q
        last = self._entries[-1] if self._entries else None
        if last and (last.sigma, last.q, last.first + last.steps) == (sigma, q, step):
            self._entries[-1] = replace(last, steps=last.steps + 1)
        else:
            self._entries.append(Entry(first=step, steps=1, sigma=sigma, q=q))
        return True

    def epsilon(self) -> float:
        """What may be claimed: the target while steps are made by a filter or not all planned ones are paid for, and
        the planned schedule's cost. Stopping early certifies nothing smaller; infinite without a guarantee.
        """
        return self.terms.epsilon if self.terms.guarantee else math.inf

    def nominal_epsilon(self) -> float:
        """The closed form's epsilon of the steps that were paid for: a reading, not a guarantee of an adaptive run."""
        return epsilon(self.history, self.terms.delta) if self._entries else 0.0

    def save(self, file: Path) -> None:
        """Write the ledger whole or not at all, and wait for the disk."""
        body = {"version": VERSION, "terms": asdict(self.terms), "entries": [asdict(e) for e in self._entries]}
        body["spent"] = {"steps": self.paid, "epsilon_reading": self.nominal_epsilon()}
        body = json.loads(json.dumps(body))
        text = json.dumps({**body, "sha256": _digest(body)}, indent=1)
        with replacing(file, on_disk=True) as temporary:
            temporary.write_text(text)


def load_ledger(file: Path) -> Ledger:
    """Read a ledger and compute everything in it again. Raises LedgerError if anything does not fit."""
    try:
        body = json.loads(file.read_text())
        claimed = body.pop("sha256")
        if body["version"] != VERSION:
            raise LedgerError(f"{file} is a ledger of version {body['version']}; this is version {VERSION}")
        terms, entries, spent = _terms(body["terms"]), [Entry(**entry) for entry in body["entries"]], body["spent"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, LedgerError):
            raise
        raise LedgerError(f"{file} is no ledger: {type(error).__name__}: {error}") from error
    if claimed != _digest(body):
        raise LedgerError(f"{file} was changed after it was written; nothing can be claimed from it")
    if terms.mode == "fixed":
        cost = epsilon_by(terms.accountant, [(sigma, terms.q, steps) for sigma, steps in terms.sigmas], terms.delta)
        if cost > terms.epsilon * (1 + 1e-9):
            raise LedgerError(
                f"{file}: the planned steps cost epsilon {cost:.4g}, more than the promised {terms.epsilon}"
            )
    ledger = Ledger(terms, entries)
    reading = ledger.nominal_epsilon()
    if spent["steps"] != ledger.paid or not math.isclose(spent["epsilon_reading"], reading, rel_tol=1e-9):
        raise LedgerError(f"{file} says {spent}, but its entries give {ledger.paid} steps and epsilon {reading:.6g}")
    return ledger


def _terms(data: dict[str, Any]) -> Terms:
    lists = {"sigmas": tuple((float(s), int(n)) for s, n in data["sigmas"]), "orders": tuple(data["orders"])}
    return Terms(**{**data, **lists})


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
