import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import llmrl.conformance as conformance
from llmrl import credit, losses
from llmrl.algos.grpo import GRPO
from llmrl.algos.ppo import PPO
from llmrl.conformance.algorithms import check_algorithm
from llmrl.conformance.functions import check_function, subjects
from llmrl.conformance.measure import difference_quotient, gap
from llmrl.conformance.plain import check_plain, plain_subjects
from llmrl.conformance.report import summarise
from llmrl.eval import metrics
from llmrl.rewards import critique, outcomes

SUBJECTS = {subject.name: subject for subject in subjects()}
OUTSIDE = {
    **{name: getattr(outcomes, name) for name in ("outcome_of", "outcome_return")},
    **{name: getattr(critique, name) for name in ("verdict", "credited", "discrimination_reward")},
    **{name: getattr(critique, name) for name in ("refinement_reward", "graded_discrimination")},
    **{name: getattr(metrics, name) for name in ("n_at_k", "critique_metrics")},
}
PLAIN = {subject.name: subject for subject in plain_subjects(OUTSIDE)}


@pytest.mark.parametrize("name", SUBJECTS)
def test_function_is_its_definition_and_keeps_its_invariances(name):
    results = summarise(finding for seed in (11, 12, 13) for finding in check_function(SUBJECTS[name], seed))
    assert {"definition", "garbage", "padding", "row order"} <= {result.check for result in results}
    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize("name", PLAIN)
def test_function_of_plain_values_is_its_definition(name):
    results = summarise(finding for seed in (11, 12, 13) for finding in check_plain(PLAIN[name], seed))
    assert "definition" in {result.check for result in results}
    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("verdict", lambda text: "correct" if "final answer: Correct" in text else None),
        ("split_point", lambda p_pass, p_fail: p_pass.index(max(p_pass, default=0)) if p_pass else 0),
        ("best_failing", lambda p_pass, m: sorted(range(len(p_pass)), key=lambda i: p_pass[i])[-m:]),
        ("n_at_k", lambda hidden, example, n: float(any(hidden))),
        ("parse_action", lambda text, n_actions: int(text[text.find("action") + 9 :][:1] == "1")),
        ("episode_gae", lambda rewards, values, **_: (rewards, values)),
    ],
)
def test_a_wrong_function_of_plain_values_is_caught(name, wrong):
    findings = check_plain(replace(PLAIN[name], fast=wrong, alike=None), 1)
    assert [result.check for result in summarise(findings) if not result.passed] == ["definition"]


def test_every_public_function_is_a_subject():
    public = {
        *(name for name in vars(credit) if callable(getattr(credit, name)) and not name.startswith("_")),
        *(name for name in vars(losses) if callable(getattr(losses, name)) and not name.startswith("_")),
    }
    homes = ("llmrl.credit", "llmrl.losses", "llmrl.losses_outcome")
    own = {
        name for name in public if getattr(vars(credit).get(name, vars(losses).get(name)), "__module__", "") in homes
    }
    # Parts of the subjects, or tested by hand in test_losses.py and test_credit.py.
    parts = {"keep", "probability_ratio", "group_deviation", "length_adaptive_lambda"}
    parts |= {"pacs_proxy", "pacs_center"}
    assert own - parts == {name.split()[0] for name in SUBJECTS} | {"episode_gae"}


def failures(name, seed=1):
    return {result.check for result in summarise(check_function(SUBJECTS[name], seed)) if not result.passed}


@pytest.mark.parametrize(
    ("module", "function", "wrong", "subject", "caught_by"),
    [
        (
            losses,
            "clipped_surrogate",
            lambda new, old, a, *, clip_low, clip_high, dual_clip=None: -(new - old).exp() * a,
            "clipped_surrogate",
            {"definition"},
        ),
        (
            losses,
            "kl_estimate",
            lambda new, ref, *, estimator: (new - ref) * (new.detach() - ref) / 2,
            "kl_estimate k2",
            {"finite difference"},
        ),
        (
            losses,
            "aggregate",
            lambda x, mask, **_: (x * mask).sum() / 70.0,
            "aggregate token",
            {"garbage", "padding"},
        ),
        (
            credit,
            "leave_one_out",
            lambda score, group: score - (score.view(-1, 2).sum(dim=1).repeat_interleave(2) - score),
            "leave_one_out",
            {"definition", "row order"},
        ),
        (
            credit,
            "gae",
            lambda r, v, mask, *, gamma, lam: (losses.keep(r, mask) - losses.keep(v, mask),) * 2,
            "gae advantages",
            {"definition"},
        ),
    ],
)
def test_a_wrong_function_is_caught(monkeypatch, module, function, wrong, subject, caught_by):
    assert failures(subject) == set()
    monkeypatch.setattr(module, function, wrong)
    assert failures(subject) >= caught_by


class MeanOverTheMicroBatch(GRPO):
    """The classic mistake: the denominator is the micro-batch's own."""

    def loss(self, out, batch):
        return GRPO.loss(self, out, replace(batch, tokens_total=batch.mask.sum().clamp(min=1)))


class RowsMustBeAdjacent(GRPO):
    """Another classic: siblings are taken to be neighbours."""

    def credit(self, batch):
        rows = torch.arange(batch.rows) // 4
        return GRPO.credit(self, replace(batch, group=rows))


class WhitensAlone(PPO):
    """Every rank whitens its own rows."""

    @property
    def needs(self):
        return replace(PPO().needs, whole_batch=False)


class WrongSign(GRPO):
    def loss(self, out, batch):
        loss = GRPO.loss(self, out, batch)
        return replace(loss, value=-loss.value)


class MasksByMultiplying(GRPO):
    def loss(self, out, batch):
        loss = GRPO.loss(self, out, batch)
        return replace(loss, value=loss.value + 0.0 * (out.logprobs * batch.mask).sum())


@pytest.mark.parametrize(
    ("wrong", "caught_by"),
    [
        (MeanOverTheMicroBatch, "micro-batches"),
        (MeanOverTheMicroBatch, "ranks"),
        (WhitensAlone, "ranks"),
        (RowsMustBeAdjacent, "row order"),
        (WrongSign, "direction"),
        (MasksByMultiplying, "garbage"),
    ],
)
def test_a_wrong_algorithm_is_caught(wrong, caught_by):
    findings = check_algorithm("grpo", wrong(), 1)
    assert caught_by in {result.check for result in summarise(findings) if not result.passed}


def test_gap_does_not_hide_nan_or_shapes():
    assert gap(torch.tensor([1.0, math.nan]), torch.tensor([1.0, 1.0])) == math.inf
    assert gap(torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.inf])) == math.inf
    assert gap(torch.ones(2), torch.ones(1)) == math.inf
    assert gap(torch.tensor([3.0]), torch.tensor([1.0])) == 1.0


def test_difference_quotient_is_the_derivative():
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(difference_quotient(lambda x: (x**3).sum(), x), 3 * x**2)


def test_the_table_shows_every_result_and_counts_failures():
    results = [
        conformance.Result(name="whiten", check="definition", error=1e-16, tolerance=1e-11),
        conformance.Result(name="whiten", check="padding", error=0.25, tolerance=1e-11),
        conformance.Result(name="gae", check="padding", error=math.inf, tolerance=1e-11),
    ]
    console = Console(width=100, record=True)
    console.print(conformance.table(results))
    text = console.export_text()
    assert "1 of 3 checks pass" in text
    for word in ("whiten", "gae", "definition", "padding", "1e-16", "2e-01", "inf"):
        assert word in text


def test_a_narrow_console_gets_whole_words_and_the_worst_of_each_row():
    results = [
        conformance.Result(name="a function of many words", check=f"check number {n}", error=1e-16 * n, tolerance=1e-11)
        for n in range(9)
    ]
    results.append(conformance.Result(name="gae", check="padding", error=math.inf, tolerance=1e-11))
    wide, narrow = Console(width=200, record=True), Console(width=80, record=True)
    for console in (wide, narrow):
        console.print(conformance.fitting_table(results, console))
    text, brief = wide.export_text(), narrow.export_text()
    assert all(f"check number {n}" in text for n in range(9))
    assert "9 of 10 checks pass" in brief and "…" not in brief
    for word in ("a function of many words", "9 of 9", "8e-16", "check number 8", "0 of 1", "inf"):
        assert word in brief


@pytest.mark.slow
def test_run_covers_functions_and_algorithms():
    results = conformance.run(seeds=[3])
    assert all(result.passed for result in results)
    checks = {result.check for result in results if result.name == "ppo"}
    assert {"ranks", "micro-batches", "padding", "row order", "garbage", "finite difference"} <= checks
    names = {result.name for result in results}
    assert {"episode_gae", "split_point", "copies", "best_failing", "parse_action"} <= names
    assert {"gae advantages", "clipped_value", "pacs_loss", "grpo", "pacs", "ppo", "forward: values"} <= names
