"""Sums over records: scores, intervals, what is left out and what is said about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmrl.eval.metrics import clustered_interval, wilson_interval
from llmrl.eval.records import Record, Sample
from llmrl.eval.results import Results, budgets, question_scores, summarise
from llmrl.eval.strategies import best_of_k, weighted_vote
from llmrl.eval.tables import breakdown_tables, markdown, summary_table, table, warnings

SETTINGS = {
    "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 9, "seed": 0},
    "prompt": {"mode": "chat", "shots": 0, "template": "{problem}"},
    "data": {"sha256": "abcdef0123456789"},
}


def _sample(value: float | None, **more: Any) -> Sample:
    return Sample(**{"text": "t", "tokens": 10, "logprob": -1.0, "status": "done", "value": value, **more})


def _record(i: int, *samples: Sample, **columns: str) -> Record:
    return Record(
        index=i, question=f"q{i}", prompt="p?", prompt_tokens=5, gold="1", columns=columns, samples=tuple(samples)
    )


def test_one_sample_a_question_gives_accuracy_with_wilson() -> None:
    records = [_record(i, _sample(float(i < 9))) for i in range(30)]
    found = summarise("toy", SETTINGS, records)
    assert found.interval == "wilson"
    assert found.score.value == pytest.approx(0.3)
    assert (found.score.low, found.score.high) == wilson_interval(9, 30)
    assert set(found.metrics) == {"avg@1", "pass@1", "pass^1"}
    assert found.mean_reward is None


def test_several_samples_give_every_k_clustered_by_question() -> None:
    rows = [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    answers = ["7", "7", "8", "9"]
    records = [
        _record(i, *(_sample(float(v), answer=a if i < 2 else "7") for v, a in zip(row, answers)))
        for i, row in enumerate(rows)
    ]
    found = summarise("toy", SETTINGS, records)
    assert found.interval == "clustered"
    assert found.score.value == pytest.approx(0.5)
    assert (found.score.low, found.score.high) == clustered_interval([0.5, 0.0, 1.0])
    assert found.metrics["pass@2"].value == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert found.metrics["pass^2"].value == pytest.approx((1 / 6 + 0 + 1) / 3)
    assert found.metrics["pass@4"].value == pytest.approx(2 / 3)
    assert found.metrics["maj@4"].value == pytest.approx(2 / 3)
    assert budgets(4) == [1, 2, 4]


def test_what_could_not_be_scored_is_left_out_and_counted() -> None:
    records = [
        _record(0, _sample(1.0), _sample(None, error="timed out")),
        _record(1, _sample(None, status="error", error="the rollout failed"), _sample(None, reason="unreadable gold")),
        _record(2, _sample(0.0, status="truncated", flags=("many_boxes",)), _sample(1.0)),
    ]
    found = summarise("toy", SETTINGS, records)
    assert found.score.value == pytest.approx(0.75)
    assert found.score.questions == 2
    assert found.questions == 3
    health = found.health
    assert (health.failed, health.verifier_errors, health.not_applicable, health.unscored_questions) == (1, 1, 1, 1)
    assert health.truncated == pytest.approx(1 / 6)
    assert health.flags == {"many_boxes": 1}
    assert health.answered is None
    assert set(found.metrics) == {"avg@2", "pass@1", "pass^1"}  # one question has but one scored sample
    assert len(warnings(found)) == 4
    assert question_scores(records) == {"q0": 1.0, "q2": 0.5}
    with pytest.raises(ValueError, match="no sample could be scored; the first: timed out"):
        summarise("toy", SETTINGS, [_record(0, _sample(None, error="timed out"))])
    with pytest.raises(ValueError, match="no question was finished"):
        summarise("toy", SETTINGS, [])


def test_partial_credit_is_not_right_but_shows_in_the_mean_reward() -> None:
    found = summarise("toy", SETTINGS, [_record(0, _sample(0.5)), _record(1, _sample(1.0))])
    assert found.score.value == 0.5
    assert found.mean_reward == 0.75


def test_breakdowns_are_scored_apart_and_sorted_as_people_sort() -> None:
    records = [_record(i, _sample(float(i % 2)), level=str(level)) for i, level in enumerate([10, 2, 2, 10, 1])]
    found = summarise("toy", SETTINGS, records)
    assert list(found.breakdown["level"]) == ["1", "2", "10"]
    assert found.breakdown["level"]["2"].questions == 2
    assert found.breakdown["level"]["10"].value == 0.5
    assert "| 10 | 2 | 50.0 [" in breakdown_tables(found)


def test_results_survive_json_and_refuse_unknown_keys() -> None:
    found = Results(model="m", tasks=[summarise("toy", SETTINGS, [_record(0, _sample(1.0)), _record(1, _sample(0.0))])])
    text = found.model_dump_json()
    assert Results.model_validate_json(text) == found
    assert json.loads(text)["schema_version"] == "llmrl.eval.results/1"
    with pytest.raises(ValueError, match="surprise"):
        Results.model_validate({**json.loads(text), "surprise": 1})


def test_tables_carry_score_and_interval_and_survive_pipes() -> None:
    found = summarise("toy", SETTINGS, [_record(i, _sample(float(i < 9))) for i in range(30)])
    text = summary_table([Results(model="a|b", tasks=[found])])
    assert "| a\\|b | toy | 30 × 1 | 30.0 [16.7, 47.9] | – | – | 0.0 % | 10 |" in text
    whole = markdown([Results(model="m", tasks=[found])])
    assert "## m on toy" in whole
    assert "wilson intervals; data sha256 `abcdef012345`" in whole
    assert table(["a"], [["1"], ["2"]]) == "| a |\n| --- |\n| 1 |\n| 2 |"


def test_best_of_k_equals_brute_force_and_breaks_ties_fairly() -> None:
    from itertools import combinations

    scores, correct = [0.9, 0.5, 0.5, 0.1, 0.7], [0.0, 1.0, 0.0, 1.0, 1.0]
    for k in range(1, 6):
        total = 0.0
        subsets = list(combinations(range(5), k))
        for subset in subsets:
            best = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
            total += sum(correct[i] for i in best) / len(best)
        assert best_of_k(scores, correct, k) == pytest.approx(total / len(subsets), abs=1e-12)
    for bad in (([1.0], [1, 1], 1), ([1.0], [1], 2), ([float("nan")], [1], 1)):
        with pytest.raises(ValueError, match=r"scores|samples|NaN"):
            best_of_k(*bad)


def test_weighted_votes_sum_weights_by_class() -> None:
    assert weighted_vote(["7", "8", "8"], [0.6, 0.2, 0.3], [1, 0, 0]) == 1.0
    assert weighted_vote(["7", "8", "8"], [0.5, 0.25, 0.25], [1, 0, 0]) == 0.5
    assert weighted_vote([None, "8"], [9.0, 0.1], [0, 1]) == 1.0
    assert weighted_vote([None], [1.0], [0]) == 0.0
    with pytest.raises(ValueError, match="not negative"):
        weighted_vote(["7"], [-1.0], [1])
