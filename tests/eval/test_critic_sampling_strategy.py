"""`--strategy critic_sampling`: example tests choose, hidden tests judge, a critic cuts, every token is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrl.errors import EvalError
from llmrl.eval.evaluate import evaluate
from llmrl.eval.load import load_questions
from llmrl.eval.plan import Options
from llmrl.eval.records import read_records
from llmrl.eval.strategies import find_rewrites
from llmrl.eval.tasks import find_task
from llmrl.policy.model import load_policy
from llmrl.policy.outcome_critic import OutcomeCritic, OutcomeHead
from llmrl.rollout.engine import EngineSettings
from llmrl.settings.model import ModelConfig
from tests.eval.test_critique_strategy import Player
from tests.eval.test_evaluate import tiny_model

ASKED = 2
PROGRAMS = {
    q.columns["problem"]: q for q in load_questions(find_task("programs"), data_dir=None, limit=ASKED).questions
}


def answer(text: str) -> str:
    """The reference of the problem that a prompt shows."""
    return next(q.answer for problem, q in PROGRAMS.items() if problem in text)


def run(tmp_path: Path, say: Callable[[str, int], str], *, name: str = "out", **args: Any) -> Any:
    model = tmp_path / "model"
    if not model.exists():
        tiny_model(model)
    engines: list[Player] = []

    def make(settings: EngineSettings) -> Player:
        engines.append(Player(say))
        return engines[-1]

    options = Options(limit=ASKED, samples=2, strategies=("critic_sampling",), strategy_args=args, max_length=2048)
    results = evaluate(str(model), ["programs"], out=tmp_path / name, options=options, engine=make)
    return results.tasks[0], engines[0]


def test_failing_programs_are_repaired_and_judged_by_hidden_tests(tmp_path: Path) -> None:
    def say(text: str, seed: int) -> str:
        return answer(text) if "does not pass the examples" in text else "def solve(x):\n    return 'wrong'\n"

    task, engine = run(tmp_path, say)
    found = task.rewritten["critic_sampling"]
    assert task.score.value == 0.0 and found["repaired"] == 1.0 and found["refined"] == 0.0 and found["1_at_k"] == 1.0
    assert len(engine.shown) == 4 + 4 and all("return 'wrong'" in shown for shown in engine.shown[4:])
    assert all("failed" in shown for shown in engine.shown[4:])  # what the tests said is shown
    _, first = read_records(tmp_path / "out" / "programs.jsonl")
    _, new = read_records(tmp_path / "out" / "programs.critic_sampling.jsonl")
    for old, record in zip(first, new, strict=True):
        for before, sample in zip(old.samples, record.samples, strict=True):
            assert sample.value == 1.0 and "repaired" in sample.flags and sample.parts["first_right"] == 0.0
            assert sample.tokens == before.tokens + len(sample.text)  # one token a byte


def test_passing_programs_are_cut_where_the_critic_says_and_continued(tmp_path: Path) -> None:
    """A critic that sees nothing but the last token: it likes the end of a signature best, so that is where all are cut."""
    tiny_model(tmp_path / "model")
    own = load_policy(ModelConfig(path=str(tmp_path / "model"), dtype="float32"), source=str(tmp_path / "model"),
                      device=torch.device("cpu"), seed=0)  # fmt: skip
    head = OutcomeHead(own.causal_lm.get_output_embeddings().weight.shape[1], 2)
    OutcomeCritic(head=head, model=own).save(tmp_path / "critic", own)

    def say(text: str, seed: int) -> str:
        whole = answer(text)
        return whole if "def solve" not in text.rpartition("assistant>")[2][1:] else whole[1:]

    task, engine = run(tmp_path, say, critic=str(tmp_path / "critic"))
    found = task.rewritten["critic_sampling"]
    # The head is zero: every prefix is as good as the other, so the first token alone is kept.
    assert all(shown.endswith("assistant>d") for shown in engine.shown[4:])
    assert found["refined"] == 1.0 and found["repaired"] == 0.0
    _, new = read_records(tmp_path / "out" / "programs.critic_sampling.jsonl")
    assert {sample.text[:4] for record in new for sample in record.samples} == {"ddef"}


def test_a_task_without_example_tests_and_wrong_arguments_are_refused(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    options = Options(limit=2, strategies=("critic_sampling",))
    with pytest.raises(EvalError, match="no row of addition has any"):
        evaluate(
            str(tmp_path / "model"), ["addition"], out=tmp_path / "out", options=options,
            engine=lambda settings: Player(lambda text, seed: "1"),
        )  # fmt: skip
    with pytest.raises(EvalError, match="rounds=0"):
        find_rewrites(["critic_sampling"], {"rounds": 0})
