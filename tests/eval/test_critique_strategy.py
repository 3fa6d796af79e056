"""`--strategy critique`: who is asked what, what it costs, what is reported, and that it goes on where it stopped."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmrl.errors import EngineError, EvalError
from llmrl.eval.evaluate import evaluate
from llmrl.eval.plan import Options
from llmrl.eval.records import read_records
from llmrl.eval.report import page
from llmrl.eval.results import read_results
from llmrl.eval.strategies import find_rewrites
from llmrl.eval.tables import markdown
from llmrl.rollout.engine import EngineSettings
from llmrl.types import Completion, Request, Status
from tests.eval.fakes import byte_tokenizer
from tests.eval.test_evaluate import tiny_model

LABEL = "Correctness of the final answer:"


def total(text: str) -> int:
    return sum(map(int, re.findall(r"\d+", re.findall(r"What is ([\d +]+)\?", text)[0])))


class Player:
    """An engine that answers by `say(shown text, seed)`; it remembers what it was shown."""

    def __init__(self, say: Callable[[str, int], str], *, dies_after: int | None = None) -> None:
        self.say, self.dies_after = say, dies_after
        self.shown: list[str] = []
        self.tokenizer = byte_tokenizer()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Completion:
        text = self.tokenizer.decode(request.tokens)
        if self.dies_after is not None and len(self.shown) >= self.dies_after:
            raise EngineError("out of luck")
        self.shown.append(text)
        said = self.say(text, request.sampling.seed or 0)
        tokens = tuple(self.tokenizer(said)["input_ids"])
        return Completion(tokens=tokens, logprobs=(0.0,) * len(tokens), text=said, status=Status.done())

    def load(self, weights: Any, *, version: int) -> None: ...

    def close(self) -> None: ...


def both(text: str, seed: int) -> str:
    """An actor whose drafts are wrong for even sums and that does what it is told; a critic that knows the truth."""
    right = total(text)
    if "Check this" in text:
        said = int(text.partition("Solution: ")[2].split()[0])
        return f"It is {right}.\n{LABEL} {'Correct' if said == right else 'Wrong'}"
    if "critique of your solution" in text:
        return str(right) if f"{LABEL} Wrong" in text else re.findall(r"<assistant>(\d+)", text)[0]
    return str(right + (right % 2 == 0))


def run(tmp_path: Path, say: Callable[[str, int], str] = both, *, name: str = "out", **more: Any) -> Any:
    model = tmp_path / "model"
    if not model.exists():
        tiny_model(model)
    engines: list[Player] = []

    def make(settings: EngineSettings) -> Player:
        engines.append(Player(say, dies_after=more.get("dies_after")))
        return engines[-1]

    how: dict[str, Any] = {"limit": 20, "strategies": ("critique",), "max_tokens": 8}
    how |= {name: value for name, value in more.items() if name not in ("dies_after",)}
    results = evaluate(str(model), ["addition"], out=tmp_path / name, options=Options(**how), engine=make)
    return results.tasks[0], engines


def test_drafts_are_criticised_and_refined_and_the_numbers_say_what_that_did(tmp_path: Path) -> None:
    task, (engine,) = run(tmp_path)
    found = task.rewritten["critique"]
    assert (
        found["acc_refined"] == 1.0 and found["acc_dis"] == 1.0 and found["malformed"] == 0.0 and found["kept"] == 0.0
    )
    assert found["acc_first"] == task.score.value and 0.2 < task.score.value < 0.8
    assert found["delta"] == pytest.approx(1 - task.score.value) and found["wrong_to_correct"] == found["delta"]
    assert len(engine.shown) == 60
    (result,) = task.strategies
    assert (result.strategy, result.budget.samples, result.score.value) == ("critique", 1, 1.0)
    _, records = read_records(tmp_path / "out" / "addition.critique.jsonl")
    _, drafts = read_records(tmp_path / "out" / "addition.jsonl")
    for record, draft in zip(records, drafts, strict=True):
        (sample,), (first,) = record.samples, draft.samples
        assert sample.info["draft"] == first.text and sample.text == record.gold
        spent = len(first.text) + len(sample.info["critique"]) + len(sample.text)
        assert sample.tokens == spent
    assert result.budget.tokens == pytest.approx(sum(r.samples[0].tokens for r in records) / 20)
    assert "acc_dis_on_wrong" in markdown([read_results(tmp_path / "out")])
    shown = page([tmp_path / "out"], [read_results(tmp_path / "out")])
    assert "<th>acc_dis_on_wrong</th>" in shown and "on addition: critique</h3>" in shown


def test_stopping_at_a_correct_verdict_keeps_the_draft_and_saves_the_refinement(tmp_path: Path) -> None:
    task, (engine,) = run(tmp_path, strategy_args={"stop": True})
    right = round(20 * task.score.value)
    assert len(engine.shown) == 40 + 20 - right
    assert task.rewritten["critique"]["kept"] == pytest.approx(right / 20)
    assert task.rewritten["critique"]["acc_refined"] == 1.0


def test_a_second_round_criticises_the_refinement(tmp_path: Path) -> None:
    def slow(text: str, seed: int) -> str:
        """Refines by one towards the truth: drafts are off by two."""
        right = total(text)
        if "Check this" in text:
            return f"{LABEL} {'Correct' if int(text.partition('Solution: ')[2].split()[0]) == right else 'Wrong'}"
        if "critique of your solution" in text:
            draft = int(re.findall(r"<assistant>(\d+)", text)[0])
            return str(draft - 1 if draft > right else draft)
        return str(right + 2)

    once, _ = run(tmp_path, slow, name="once")
    twice, _ = run(tmp_path, slow, name="twice", strategy_args={"rounds": 2})
    assert once.rewritten["critique"]["acc_refined"] == 0.0 and twice.rewritten["critique"]["acc_refined"] == 1.0
    assert twice.rewritten["critique"]["acc_dis"] == 1.0
    _, records = read_records(tmp_path / "twice" / "addition.critique.jsonl")
    assert set(records[0].samples[0].info) == {"draft", "critique", "draft_2", "critique_2"}


def test_majority_over_refinements_stands_beside_majority_over_drafts(tmp_path: Path) -> None:
    def say(text: str, seed: int) -> str:
        right = total(text)
        if "critique of your solution" in text or "Check this" in text:
            return both(text, seed)
        return str(right + (seed % 2))

    task, _ = run(tmp_path, say, samples=4, strategies=("critique", "majority"))
    shown = {(one.strategy, one.budget.samples): one for one in task.strategies}
    assert set(shown) == {(name, k) for name in ("critique", "majority") for k in (1, 2, 4)}
    assert shown["critique", 4].score.value == 1.0 > shown["majority", 4].score.value
    assert shown["critique", 4].budget.tokens > shown["majority", 4].budget.tokens
    assert shown["critique", 4].budget.tokens == pytest.approx(4 * shown["critique", 1].budget.tokens)


def test_another_model_is_the_critic(tmp_path: Path) -> None:
    critic = tiny_model(tmp_path / "critic")
    task, engines = run(tmp_path, strategy_args={"critic": str(critic)})
    assert task.rewritten["critique"]["acc_refined"] == 1.0 and len(engines) == 2
    assert all("Check this" in text for text in engines[1].shown) and len(engines[1].shown) == 20
    assert not any("Check this" in text for text in engines[0].shown)


def test_a_malformed_critique_is_counted_and_wrong(tmp_path: Path) -> None:
    task, _ = run(tmp_path, lambda text, seed: "I cannot say" if "Check this" in text else both(text, seed))
    found = task.rewritten["critique"]
    assert found["malformed"] == 1.0 and found["acc_dis"] == 0.0 and found["acc_refined"] == found["acc_first"]


def test_a_stopped_evaluation_goes_on_with_its_refinements(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, name="whole")
    with pytest.raises(EngineError, match="out of luck"):
        run(tmp_path, name="cut", dies_after=30)
    task, (engine,) = run(tmp_path, name="cut")
    assert len(engine.shown) == 40  # the drafts were there
    assert task == whole
    assert run(tmp_path, name="cut")[1] == []  # everything is there: no engine starts
    with pytest.raises(EvalError, match="strategy"):
        run(tmp_path, name="cut", strategy_args={"rounds": 2})


@pytest.mark.parametrize("args", [{"rounds": 0}, {"critics": "x"}, {"temperature": -1.0}])
def test_wrong_arguments_are_told(args: dict[str, Any]) -> None:
    with pytest.raises(EvalError, match="--strategy-args"):
        find_rewrites(("critique",), args)


def test_arguments_without_a_strategy_that_takes_any_are_told() -> None:
    with pytest.raises(EvalError, match="takes arguments"):
        find_rewrites(("majority",), {"rounds": 2})
