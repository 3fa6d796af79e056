"""Costs are found again from rows that were made from them."""

import numpy as np
import pytest

from llmrl.errors import ConfigError
from llmrl.scale.costs import Costs, Measured, Row, fit, nonnegative, slowdown

TRUE = {"step": 0.1, "token": 0.002, "fixed": 0.5, "each": 0.003, "serial": 0.6}


def measured(*, prompts: int, cores: int = 2, rows: int = 6) -> Measured:
    """A run whose phases cost exactly TRUE, with completions of varying lengths."""
    made = []
    slower = TRUE["serial"] + (1 - TRUE["serial"]) / cores
    slower /= TRUE["serial"] + (1 - TRUE["serial"]) / 2  # the costs are those of two cores
    for number in range(rows):
        tokens, steps, run = prompts * 8 * (10 + number), 16.0 + number, 60.0 * prompts + 37 * number**2
        generate = slower * (TRUE["step"] * steps + TRUE["token"] * tokens)
        update = slower * (TRUE["fixed"] + TRUE["each"] * run)
        made.append(
            Row(
                engine_cores=cores, trainer_cores=cores, tokens=tokens, decode_steps=steps, run_tokens=run, updates=1,
                samples=prompts * 8, generate_s=generate, update_s=update, reward_s=0.08 * prompts, sync_s=0.4,
                step_s=generate + update + 0.08 * prompts + 0.4 + 0.05,
            )
        )  # fmt: skip
    return Measured(
        run=None, recipe=None, workers=1, machine=cores, engine_threads=cores, trainer_threads=cores, rows=tuple(made),
        groups=(),
    )  # type: ignore[arg-type]  # fmt: skip


def test_costs_and_serial_share_are_found_from_runs_of_two_sizes_and_two_core_counts():
    costs, notes = fit([measured(prompts=16), measured(prompts=8), measured(prompts=8, cores=1)])
    assert costs.generate_step_s == pytest.approx(TRUE["step"], rel=1e-6)
    assert costs.generate_token_s == pytest.approx(TRUE["token"], rel=1e-6)
    assert (costs.update_s, costs.update_token_s) == pytest.approx((TRUE["fixed"], TRUE["each"]), rel=1e-6)
    assert (costs.generate_serial, costs.update_serial) == pytest.approx((TRUE["serial"],) * 2)
    assert (costs.reward_s, costs.sync_s, costs.other_s) == pytest.approx((0.01, 0.4, 0.05))
    assert notes == []


def test_runs_that_are_too_alike_come_with_notes():
    _, notes = fit([measured(prompts=16, rows=1)])
    assert any("speed up with cores in full" in note for note in notes)
    assert any("add one with fewer prompts_per_step" in note for note in notes)


def test_coefficients_are_never_negative_and_still_the_best():
    features = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert nonnegative(features, features @ [2.0, 3.0]) == pytest.approx([2.0, 3.0])
    found = nonnegative(features, np.array([3.0, 2.0, 1.0]))  # a falling line: only the constant can be used
    assert found == pytest.approx([2.0, 0.0])


@pytest.mark.parametrize(
    ("cores", "reference", "serial", "expected"),
    [(1, 2, 0, 2), (1, 2, 0.5, 4 / 3), (4, 2, 0, 0.5), (0.5, 2, 0.5, 8 / 3)],
)
def test_the_slowdown_is_amdahls_law_and_shares_of_a_core_below_one(cores, reference, serial, expected):
    assert slowdown(cores, reference, serial) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("update_tokens_s=1", "did you mean 'update_token_s'"),
        ("sync_s=fast", "'fast' is not a number"),
        ("sync_s=-1", "not below zero"),
        ("sync_s=nan", "not below zero"),
    ],
)
def test_a_wrong_cost_is_answered(given, message):
    with pytest.raises(ConfigError, match=message):
        Costs().with_given([given])


def test_given_costs_replace_measured_ones():
    costs = Costs(sync_s=1.0, update_s=2.0).with_given(["sync_s=0.25"])
    assert (costs.sync_s, costs.update_s) == (0.25, 2.0)
