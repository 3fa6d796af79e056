import math

import pytest

from llmrl.conformance.privacy import check_privacy
from llmrl.conformance.report import summarise
from llmrl.privacy import accounting, clipping


def failures(seeds=(1, 2, 3)):
    results = summarise(finding for seed in seeds for finding in check_privacy(seed))
    return {(result.name, result.check) for result in results if not result.passed}


def test_everything_passes():
    assert failures(range(20, 30)) == set()


@pytest.mark.parametrize(
    ("module", "name", "wrong", "caught"),
    [
        (clipping, "noise_std", lambda c, s, *, rule: [s * x for x in c], ("noise_std", "sensitivity")),
        (clipping, "_clipped", lambda rows, limit: rows.sum(0), ("clipped_sum", "definition")),
        (accounting, "rdp", lambda s, q, order: q**2 * order / s**2, ("rdp", "definition")),
        (
            accounting,
            "renyi_budget",
            lambda e, d, order: e + math.log(d) / (order - 1),  # the first conversion that papers used
            ("RenyiFilter", "definition"),
        ),
    ],
)
def test_a_wrong_function_is_caught(monkeypatch, module, name, wrong, caught):
    monkeypatch.setattr(module, name, wrong)
    assert caught in failures()
