"""Tighter epsilons for reports, by numerical composition of privacy losses: only where every step was fixed beforehand.

Their theorem composes parameters that do not depend on the data, so they say nothing about a history whose noise was
chosen on the way; `RenyiFilter` is for that. Both libraries are optional and imported here only.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmrl.privacy.accounting import Step


class AccountantMissing(ValueError):
    """The library that a report asks for is not installed; the message says how to install it."""


def prv_epsilon(history: Sequence[Step], delta: float, *, error: float = 0.01) -> float:
    """An upper bound on epsilon by opacus' privacy random variables (Gopi et al. 2021, arXiv:2106.02848).

    `history` holds (sigma, q, steps), all fixed before training; `error` is the bound's slack. Takes about a second for
    each different (sigma, q). Raises AccountantMissing without opacus.
    """
    try:
        from opacus.accountants import PRVAccountant
    except ImportError as missing:
        raise AccountantMissing("the PRV accountant needs opacus: pip install 'llmrl[privacy]'") from missing
    accountant = PRVAccountant()
    accountant.history = [(float(sigma), float(q), int(steps)) for sigma, q, steps in history if steps]
    return float(accountant.get_epsilon(delta, eps_error=error)) if accountant.history else 0.0


def pld_epsilon(history: Sequence[Step], delta: float) -> float:
    """An upper bound on epsilon by dp-accounting's privacy loss distributions (Doroshenko et al. 2022, arXiv:2207.04380).

    `history` holds (sigma, q, steps), all fixed before training. Raises AccountantMissing without dp-accounting.
    """
    try:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant
    except ImportError as missing:
        raise AccountantMissing("this accountant needs dp-accounting: pip install dp-accounting") from missing
    accountant = PLDAccountant()
    for sigma, q, steps in history:
        if steps:
            accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)), steps)
    return float(accountant.get_epsilon(delta)) if any(steps for _, _, steps in history) else 0.0
