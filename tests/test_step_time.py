"""Predicted steps against steps worked out by hand; costs are found again from rows that were made from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmrl.errors import ConfigError
from llmrl.step_time import (
    Costs,
    Group,
    Layout,
    Measured,
    Work,
    accepted,
    allreduce_s,
    decode_steps,
    fit,
    on_cores,
    on_gpus,
    predict,
    slowdown,
)

GROUP = Group(prompt=5, lengths=(10, 20), trained=35)  # every prompt of the hand-worked runs
COSTS = Costs(
    generate_step_s=0.1, generate_token_s=0.01, update_s=1.0, update_token_s=0.02, reward_s=0.05, sync_s=0.3, other_s=0.2
)  # fmt: skip
# two prompts, four requests at once: ten steps of four tokens, then ten of two
GENERATE = 10 * (0.1 + 4 * 0.01) + 10 * (0.1 + 2 * 0.01)
UPDATE = 4 * 0.05 + 1.0 + 0.02 * 70
WORK = Work(prompts_per_step=2, slots=8)
ONE, APART = Layout(trainers=1, engines=1), Layout(trainers=1, engines=1, apart=True)


def step_of(layout: Layout, work: Work = WORK, costs: Costs = COSTS) -> float:
    return predict(layout, costs, work, [GROUP], steps=10).step_s


def test_one_worker_takes_turns() -> None:
    found = predict(ONE, COSTS, WORK, [GROUP], steps=10)
    assert found.step_s == pytest.approx(GENERATE + UPDATE + 0.3 + 0.2)
    assert found.tokens_per_s == pytest.approx(60 / found.step_s)
    assert found.engines_busy == pytest.approx(GENERATE / found.step_s)
    assert step_of(APART) == pytest.approx(found.step_s)  # apart without staleness gains nothing


def test_fewer_slots_than_requests_make_waves() -> None:
    # two slots: 10 and 20 start, the third (10) follows at 10, the fourth (20) at 20: 40 steps for 60 tokens
    assert decode_steps([10, 20, 10, 20], 2) == 40
    expected = 40 * 0.1 + 60 * 0.01
    assert step_of(ONE, replace(WORK, slots=2)) == pytest.approx(expected + UPDATE + 0.5)


def test_two_workers_share_the_prompts_and_exchange_gradients() -> None:
    half = 10 * (0.1 + 2 * 0.01) + 10 * (0.1 + 0.01)
    update = 2 * 0.05 + 1.0 + 0.02 * 35
    work = replace(WORK, parameters=10**9, bytes_per_s=10e9)
    assert allreduce_s(work, 2) == pytest.approx(4 * 2 * 1 / 2 / 10)  # a ring sends twice the others' shares
    assert allreduce_s(WORK, 2) == allreduce_s(work, 1) == 0
    assert step_of(Layout(trainers=2, engines=2), work) == pytest.approx(half + update + 0.4 + 0.3 + 0.2)


def test_one_step_off_hides_the_shorter_side() -> None:
    found = predict(replace(APART, staleness=1), COSTS, WORK, [GROUP], steps=40)
    assert found.step_s == pytest.approx(max(GENERATE + 0.3, UPDATE + 0.2), rel=0.02)


def test_a_queue_evens_out_batches_of_unequal_length() -> None:
    groups = [GROUP, Group(prompt=5, lengths=(10, 150), trained=35)]
    steps = [predict(replace(APART, staleness=k), COSTS, WORK, groups, steps=60).step_s for k in (0, 1, 4)]
    assert steps[0] > steps[1] > steps[2] * 0.999


def test_the_same_question_has_the_same_answer() -> None:
    groups = [GROUP, Group(prompt=9, lengths=(3, 200), trained=0)]
    assert predict(ONE, COSTS, WORK, groups) == predict(ONE, COSTS, WORK, groups)


def test_two_workers_gain_what_one_cannot_use_of_two_cores() -> None:
    parallel = Costs(generate_token_s=0.01, cores=2)
    stubborn = replace(parallel, generate_serial=1.0)  # a second core does not help at all
    one, two = (next(x for x in on_cores(2, [n], 1) if not x.staleness) for n in (1, 2))
    assert [step_of(one, WORK, costs) for costs in (parallel, stubborn)] == pytest.approx([0.6, 0.6])
    assert [step_of(two, WORK, costs) for costs in (parallel, stubborn)] == pytest.approx([0.6, 0.3])


@pytest.mark.parametrize(
    ("cores", "reference", "serial", "expected"), [(1, 2, 0, 2), (1, 2, 0.5, 4 / 3), (4, 2, 0, 0.5)]
)
def test_the_slowdown_is_amdahls_law(cores: int, reference: int, serial: float, expected: float) -> None:
    assert slowdown(cores, reference, serial) == pytest.approx(expected)


def test_every_split_that_a_launch_can_start_is_proposed() -> None:
    found = on_gpus(2, 2, 3)
    assert [(x.trainers, x.engines) for x in found if not x.apart] == [(4, 4)]
    # three trainers would be two on one node and one on the other
    assert {(x.trainers, x.engines, x.staleness) for x in found if x.apart} == {
        (t, 4 - t, k) for t in (1, 2) for k in (0, 1, 3)
    }
    assert {(x.trainers, x.staleness) for x in on_cores(2, [1, 2], 3)} == {(1, 0), (1, 1), (1, 3), (2, 0)}


def test_refused_layouts_are_left_out_with_one_reason_a_mode() -> None:
    def check(layout: Layout) -> None:
        if layout.staleness:
            raise ConfigError("too old")

    kept, reasons = accepted(on_cores(4, [1, 2], 2), check)
    assert [x.trainers for x in kept] == [1, 2]
    assert reasons == [f"left out together, {when}, 1 trainers: too old" for when in ("one step off", "2 steps off")]


def measured(*, prompts: int, rows: int = 6, cores: int = 2) -> Measured:
    """A run whose phases cost exactly 0.1 s a decode step, 2 ms a token, 0.5 s an update and 3 ms a token run."""
    number, slower = np.arange(rows), 2 / cores
    tokens, steps, run = prompts * 8.0 * (10 + number), 16.0 + number, 60.0 * prompts + 37 * number**2
    parts = {
        "generate_s": slower * (0.1 * steps + 0.002 * tokens), "update_s": slower * (0.5 + 0.003 * run),
        "reward_s": np.full(rows, 0.08 * prompts), "sync_s": np.full(rows, 0.4),
    }  # fmt: skip
    columns = {
        "tokens": tokens, "decode_steps": steps, "run_tokens": run, "updates": np.ones(rows),
        "samples": np.full(rows, prompts * 8.0), **parts, "step_s": sum(parts.values()) + 0.05,
    }  # fmt: skip
    return Measured(
        run=Path("run"), recipe=None, workers=1, engine_cores=cores, trainer_cores=cores, columns=columns, groups=()
    )  # type: ignore[arg-type]  # fmt: skip


def test_costs_are_found_from_runs_of_two_sizes_and_two_core_counts() -> None:
    costs, notes = fit([measured(prompts=16), measured(prompts=8), measured(prompts=8, cores=1)])
    assert (costs.generate_step_s, costs.generate_token_s) == pytest.approx((0.1, 0.002), rel=1e-6)
    assert (costs.update_s, costs.update_token_s) == pytest.approx((0.5, 0.003), rel=1e-6)
    assert (costs.reward_s, costs.sync_s, costs.other_s, costs.cores) == pytest.approx((0.01, 0.4, 0.05, 2))
    assert not any("alike" in note for note in notes)
    assert any("alike in size" in note for note in fit([measured(prompts=16, rows=1)])[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("update_tokens_s=1", "did you mean 'update_token_s'"),
        ("sync_s=fast", "'fast' is not a number"),
        ("sync_s=-1", "not below zero"),
        ("sync_s=nan", "not below zero"),
    ],
)
def test_a_wrong_cost_is_answered(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Costs().with_given([given])


def test_given_costs_replace_measured_ones() -> None:
    costs = Costs(sync_s=1.0, update_s=2.0).with_given(["sync_s=0.25"])
    assert (costs.sync_s, costs.update_s) == (0.25, 2.0)
