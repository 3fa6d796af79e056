"""Choosing among samples with real scorers: a tiny sequence classifier, a value head, the sampler's own likelihood."""

from __future__ import annotations

import doctest
import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from llmrl.errors import ConfigError, EvalError
from llmrl.eval import scorers
from llmrl.eval.cli import app
from llmrl.eval.evaluate import evaluate
from llmrl.eval.plan import Options
from llmrl.eval.records import read_records
from llmrl.eval.results import right
from llmrl.eval.scorers import Likelihood, ScorerSpec, ValueModel, build_scorers
from llmrl.eval.strategies import STRATEGIES, as_weights, choosing, find_strategies, weighted_vote, weighted_vote_at_k
from llmrl.eval.tables import markdown, strategies_table
from llmrl.types import Prompt, Score, Status, Trajectory
from tests.eval.fakes import FakeEngine, byte_tokenizer
from tests.eval.test_evaluate import tiny_model

REWARD_MODEL = "llmrl.rewards.reward_model:RewardModel"


def tiny_classifier(folder: Path) -> Path:
    """A Llama of 16 dimensions with one random label."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.normal_(0, 2)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def say(number: int, seed: int | None) -> str:
    return ["5", "7", "11", "It is 12.", "thirteen"][(seed or 0) % 5]


def test_the_examples_hold() -> None:
    for module in (choosing, scorers):
        assert doctest.testmod(module).failed == 0


def test_a_reward_model_chooses_as_when_it_is_asked_alone_and_the_budget_is_counted(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    model, judge = str(tiny_model(tmp_path / "model")), tiny_classifier(tmp_path / "judge")
    spec = ScorerSpec(path=REWARD_MODEL, args={"model": str(judge)})
    options = Options(samples=4, limit=12, scorers=(spec, ScorerSpec(path="likelihood")), max_tokens=20)
    found = evaluate(model, ["addition"], out=tmp_path / "out", options=options, engine=lambda s: FakeEngine(say))
    (task,) = found.tasks
    assert task.settings["scorers"][0] == {"path": REWARD_MODEL, "args": {"model": str(judge)}}

    network = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    tokenizer = byte_tokenizer()
    _, records = read_records(tmp_path / "out" / "addition.jsonl")
    chosen: dict[int, list[float]] = {2: [], 4: []}
    for record in records:
        for sample in record.samples:
            text = f"{record.prompt.removesuffix('<assistant>')}<assistant>{sample.text}\n"
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                assert sample.scores["RewardModel"] == pytest.approx(network(ids).logits.item(), abs=1e-4)
            assert sample.scores["Likelihood"] == pytest.approx(math.exp(-0.5))
        for k, values in chosen.items():
            picks = [
                max(subset, key=lambda sample: sample.scores["RewardModel"])
                for subset in itertools.combinations(record.samples, k)
            ]
            values.append(sum(map(right, picks)) / len(picks))  # equal texts have equal scores and equal verdicts
    by = {(one.strategy, one.scorer, one.budget.samples): one for one in task.strategies}
    assert set(by) == {
        *itertools.product(("best_of_n", "weighted_vote"), ("RewardModel", "Likelihood"), (1, 2, 4)),
        *itertools.product(("majority",), (None,), (1, 2, 4)),
    }
    for k, values in chosen.items():
        assert by["best_of_n", "RewardModel", k].score.value == pytest.approx(sum(values) / len(values))
    one, four = by["best_of_n", "RewardModel", 1], by["best_of_n", "RewardModel", 4]
    assert one.score.value == pytest.approx(task.score.value)  # choosing among one is no choice
    assert (one.budget.tokens, four.budget.tokens) == (
        pytest.approx(task.tokens.mean),
        pytest.approx(4 * task.tokens.mean),
    )
    assert four.budget.scored_tokens == pytest.approx(4 * (task.tokens.mean + task.tokens.prompt_mean))
    assert by["majority", None, 4].budget.scored_tokens == 0
    assert by["majority", None, 4].score.value == pytest.approx(task.metrics["maj@4"].value)
    text = markdown([found])
    assert strategies_table(task) in text and "| best_of_n | RewardModel | 4 |" in text


def test_a_value_head_speaks_of_the_state_before_the_last_token(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    head = {
        "weight": torch.randn(64),
        "bias": torch.tensor(0.5),
        "mean": torch.tensor(2.0),
        "deviation": torch.tensor(3.0),
    }
    save_file(head, tmp_path / "head.safetensors")
    tokens = [7, 9, 30, 31, 2]
    trajectory = Trajectory(
        prompt=Prompt(id="q", tokens=(7, 9), text=""),
        tokens=tokens,
        mask=[0, 0, 1, 1, 1],
        logprobs=[0.0] * 5,
        step=[-1, -1, 0, 0, 0],
        text="",
        status=Status.done(),
    )
    scorer = ValueModel(model=str(tiny_model), head=str(tmp_path / "head.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0, -2]
    assert scorer(trajectory).value == pytest.approx(2 + 3 * float(hidden @ head["weight"] + 0.5), abs=1e-4)
    with pytest.raises(ValueError, match="no value head at"):
        ValueModel(model=str(tiny_model))(trajectory)
    save_file({"weight": torch.zeros(3), "bias": torch.tensor(0.0)}, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"weight \(3,\), not \[64\]"):
        ValueModel(model=str(tiny_model), head=str(tmp_path / "small.safetensors"))(trajectory)
    assert Likelihood()(trajectory).value == 1.0
    assert Likelihood()(replace(trajectory, logprobs=[np.nan] * 5)).value is None


def test_a_weighted_vote_among_k_equals_brute_force_and_sampling_it_comes_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(0)
    for _ in range(20):
        n = draw.randint(1, 7)
        answers = [draw.choice(["a", "b", None]) for _ in range(n)]
        weights = [draw.random() for _ in range(n)]
        correct = [answer == "a" for answer in answers]
        for k in range(1, n + 1):
            votes = [
                weighted_vote(*([column[i] for i in chosen] for column in (answers, weights, correct)))
                for chosen in itertools.combinations(range(n), k)
            ]
            assert weighted_vote_at_k(answers, weights, correct, k) == pytest.approx(sum(votes) / len(votes))
    answers, weights = ["a", "b"] * 6, [draw.random() for _ in range(12)]
    correct = [answer == "a" for answer in answers]
    exact = weighted_vote_at_k(answers, weights, correct, 5)
    monkeypatch.setattr(choosing, "SUBSETS", 500)
    sampled = weighted_vote_at_k(answers, weights, correct, 5)
    assert sampled == weighted_vote_at_k(answers, weights, correct, 5) != exact
    assert sampled == pytest.approx(exact, abs=0.07)


def test_equal_weights_vote_as_the_majority_does() -> None:
    answers = ["7", "7", "8", None, "9", "8", "8"]
    correct = [answer == "7" for answer in answers]
    for k in range(1, 8):
        plain = STRATEGIES["majority"].choose(answers, [0.0] * 7, correct, k)
        assert weighted_vote_at_k(answers, [0.3] * 7, correct, k) == pytest.approx(plain)


def test_scores_become_weights_of_one_scale_for_the_whole_evaluation() -> None:
    assert as_weights([[0.2, 0.9], [1.0]]) == [[0.2, 0.9], [1.0]]
    ((a, b), (c,)) = as_weights([[0.2, -900.0], [900.0]])
    assert (a, b, c) == (pytest.approx(1 / (1 + math.exp(-0.2))), pytest.approx(0.0), pytest.approx(1.0))


def test_a_scorer_that_fails_is_counted_and_said(tmp_path: Path) -> None:
    spec = ScorerSpec(path=REWARD_MODEL, args={"model": str(tmp_path / "absent")})
    model = str(tiny_model(tmp_path / "model"))
    options = Options(samples=2, limit=3, scorers=(spec,), max_tokens=20)
    found = evaluate(model, ["addition"], out=tmp_path / "out", options=options, engine=lambda s: FakeEngine(say))
    (task,) = found.tasks
    assert {one.strategy for one in task.strategies} == {"majority"}
    assert "scorer RewardModel failed on 6 samples" in markdown([found])


def first_of_all(answers: Any, scores: Any, correct: Any, k: int) -> float:
    return float(correct[0])


def test_strategies_are_found_by_name_or_import_path() -> None:
    assert find_strategies((), scorers=False) == ()
    assert [one.name for one in find_strategies((), scorers=True)] == ["best_of_n", "weighted_vote", "majority"]
    (own,) = find_strategies(("tests.eval.test_strategies:first_of_all",), scorers=True)
    assert own.choose(["a"], [0.0], [True], 1) == 1.0
    with pytest.raises(EvalError, match="did you mean 'best_of_n'"):
        find_strategies(("best_of_m",), scorers=True)
    with pytest.raises(EvalError, match="best_of_n chooses by a score; give --scorer"):
        find_strategies(("best_of_n",), scorers=False)
    with pytest.raises(ConfigError, match="has no 'nothing'"):
        find_strategies(("tests.eval.test_strategies:nothing",), scorers=True)


def test_scorers_that_cannot_be_built_say_why() -> None:
    for spec, reason in (
        (ScorerSpec(path="likelyhood"), "'package.module:name'.*or one of: likelihood"),
        (ScorerSpec(path="no.such:Thing"), "'no.such:Thing' cannot be imported"),
        (ScorerSpec(path=REWARD_MODEL, args={"modle": "x"}), "modle"),
    ):
        with pytest.raises(EvalError, match=reason):
            build_scorers([spec])
    named = build_scorers([ScorerSpec(path="likelihood"), ScorerSpec(path="likelihood")])
    assert list(named) == ["Likelihood", "Likelihood-2"]
    assert isinstance(named["Likelihood"], scorers.OneAtATime)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--scorer-args", "{a: 1}"], "1 --scorer-args for 0 --scorer"),
        (["--scorer", "likelihood", "--scorer-args", "[1]"], "holds no names and values"),
        (["--scorer", "likelihood", "--scorer-args", "{a: ["], "not readable as YAML"),
        (["--scorer", "nothing:here"], "'nothing:here' cannot be imported"),
        (["--scorer", "likelihood", "--strategy", "best_of_n"], "would draw samples=1; give --samples"),
        (["--strategy", "best_of_n", "--samples", "2"], "give --scorer"),
    ],
)
def test_wrong_scorers_on_the_command_line_are_one_message(tmp_path: Path, arguments: list[str], reason: str) -> None:
    model = str(tiny_model(tmp_path / "model"))
    start = ["--model", model, "--tasks", "addition", "--limit", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*start, *arguments])
    assert result.exit_code == 2
    assert reason in result.output
    assert "Traceback" not in result.output


def test_a_scorer_works_alone_although_judging_runs_in_threads(tmp_path: Path) -> None:
    busy: list[int] = []

    def scorer(trajectory: Trajectory) -> Score:
        busy.append(1)
        assert len(busy) == 1, "two threads at once"
        sum(range(20_000))
        busy.pop()
        return Score(value=0.5)

    named = {"own": scorers.OneAtATime(scorer)}
    options = Options(samples=2, limit=40, max_tokens=20)
    model = str(tiny_model(tmp_path / "model"))
    found = evaluate(
        model, ["addition"], out=tmp_path / "out", options=options, scorers=named, engine=lambda s: FakeEngine(say)
    )
    assert found.tasks[0].health.flags.get("scorer_failed:own") is None
    assert {one.scorer for one in found.tasks[0].strategies} == {"own", None}
