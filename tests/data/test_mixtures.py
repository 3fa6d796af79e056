"""Several data sources in one recipe: shares, epochs, held-out problems, rewards, and what is refused."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmrl.cli import app
from llmrl.data.source import load_train_eval
from llmrl.data.stream import MixedStream
from llmrl.errors import ConfigError, DataError
from llmrl.rewards.combine import OfSources, WeightedSum
from llmrl.settings.data import DataConfig, EvalDataConfig, shares
from llmrl.settings.load import load_recipe, parse_recipe
from llmrl.types import Prompt, Score
from tests.tiny import trajectory

weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)
SMALL = {"source": "addition", "args": {"low": 2, "high": 30}, "limit": 90}
REWARD = {
    "exact": {"name": "llmrl.rewards.exact_number:ExactNumber"},
    "ascii": {"name": "tests.train.rewards:share_of_ascii"},
}


def prompts(name, count):
    return [Prompt(id=f"{name}/{number}", tokens=(number,), text="", source=name) for number in range(count)]


def recipe(sources, **sections):
    data = {"sources": sources, **sections.pop("data", {})}
    return parse_recipe(
        {"name": "x", "model": {"path": "smollm2-135m"}, "data": data, "reward": REWARD, "algo": {"name": "grpo"},
         "train": {"steps": 10}, **sections}
    )  # fmt: skip


@given(weights, st.integers(0, 500), st.integers(0, 50))
def test_shares_add_up_never_shrink_and_are_about_right(weights, count, more):
    found, later = shares(count, weights), shares(count + more, weights)
    assert sum(found) == count and sum(later) == count + more
    assert all(after >= before >= 0 for before, after in zip(found, later, strict=True))
    exact = [count * weight / sum(weights) for weight in weights]
    assert all(abs(one - other) < 1.5 for one, other in zip(found, exact, strict=True))


@settings(deadline=None)
@given(weights, st.integers(1, 9), st.integers(0, 3))
def test_no_step_holds_a_prompt_twice_and_each_epoch_of_a_source_holds_each_once(weights, per_step, seed):
    names = [f"s{number}" for number in range(len(weights))]
    sources = {name: prompts(name, per_step + 1 + number) for number, name in enumerate(names)}
    stream = MixedStream(sources, dict(zip(names, weights, strict=True)), seed=seed, prompts_per_step=per_step)
    steps = [stream.at(step) for step in range(40)]
    assert all(len({prompt.id for prompt in step}) == per_step for step in steps)
    for name in names:
        mine = [prompt.id for step in steps for prompt in step if prompt.source == name]
        count = Counter(mine)
        # a step's prompts are shuffled, so only what whole epochs give is the same for all
        epochs, rest = divmod(len(mine), len(sources[name]))
        assert all(epochs <= count[prompt.id] <= epochs + (rest > 0) for prompt in sources[name])
    used = MixedStream(sources, dict(zip(names, weights, strict=True)), seed=seed, prompts_per_step=per_step)
    assert used.at(23) == steps[23]


def test_the_order_of_a_mixture_never_changes():
    """Stored numbers: a change here breaks the resume of every run made before it."""
    stream = MixedStream({"a": prompts("a", 5), "b": prompts("b", 4)}, {"a": 2, "b": 1}, seed=0, prompts_per_step=3)
    found = [[prompt.id for prompt in stream.at(step)] for step in range(4)]
    assert found == GOLDEN


def test_a_source_with_too_few_prompts_is_named():
    with pytest.raises(
        DataError, match=r"data source b \(weight 3\): a step needs 3 different prompts and there are 2"
    ):
        MixedStream({"a": prompts("a", 9), "b": prompts("b", 2)}, {"a": 1, "b": 3}, seed=0, prompts_per_step=4)


def test_every_source_keeps_its_name_and_its_own_held_out_problems(tmp_path):
    rows = [{"question": f"Say {number}.", "reply": str(number)} for number in range(200)]
    test = [{"question": f"Say {number}!", "reply": str(number)} for number in range(7)]
    for name, part in (("words", rows), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    file = {"source": str(tmp_path / "words.jsonl"), "columns": {"prompt": "question", "answer": "reply"}}
    data = DataConfig.model_validate({"sources": [{**SMALL, "weight": 3}, file]})
    train, held_out = load_train_eval(data, EvalDataConfig(n=40), seed=0)
    assert Counter(row.source for row in held_out) == {"addition": 30, "words": 10}
    assert all(row.id.startswith(f"{row.source}/") for row in (*train, *held_out))
    assert Counter(row.source for row in train)["addition"] == 90
    own = {**file, "eval": {"source": str(tmp_path / "test.jsonl"), "columns": file["columns"], "n": 5}}
    train, held_out = load_train_eval(
        DataConfig.model_validate({"sources": [SMALL, own]}), EvalDataConfig(n=60), seed=0
    )
    assert Counter(row.source for row in train)["words"] == 200
    assert sum(row.source == "words" for row in held_out) == 5
    assert load_train_eval(data, None, seed=0)[1] == []


def test_a_problem_that_one_source_trains_and_another_holds_out_is_refused(tmp_path):
    rows = [{"prompt": f"Say {number}.", "answer": str(number)} for number in range(300)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:9]))
    some = {"source": str(tmp_path / "some.jsonl")}
    other = {**SMALL, "eval": {"source": str(tmp_path / "test.jsonl"), "n": None}}
    with pytest.raises(DataError, match="training rows pose a problem that the held-out data also poses"):
        load_train_eval(DataConfig.model_validate({"sources": [some, other]}), EvalDataConfig(), seed=0)


def test_mistakes_in_a_source_name_it(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"answer": "b"}\n')
    data = DataConfig.model_validate({"sources": [SMALL, {"source": str(tmp_path / "bad.jsonl")}]})
    with pytest.raises(DataError, match=r"data source bad: .*bad\.jsonl:2: no column prompt"):
        load_train_eval(data, None, seed=0)


def test_a_reward_of_some_sources_neither_judges_nor_sees_the_others():
    seen = []

    def judge(one):
        seen.append(one.prompt.source)
        return Score(value=1.0)

    row = trajectory((70,), [[80]])
    rows = [replace(row, prompt=replace(row.prompt, source=name)) for name in "abab"]
    whole = WeightedSum(
        rewards={"all": lambda _: Score(value=0.25), "own": OfSources(reward=judge, sources=frozenset("b"))}
    )
    scores = whole.score_batch(rows)
    assert [score.value for score in scores] == [0.25, 1.25, 0.25, 1.25] and seen == ["b", "b"]
    assert [sorted(score.parts) for score in scores] == [["all"], ["all", "own"]] * 2


WRONG = [
    ([{**SMALL, "weight": 0}], {}, r"data\.sources\.0\.weight: must be greater than 0 \(got 0\)"),
    ([{**SMALL, "weight": -1}], {}, r"data\.sources\.0\.weight: must be greater than 0"),
    ([{**SMALL, "weight": float("inf")}], {}, r"data\.sources\.0\.weight: must be a finite number"),
    ([{**SMALL, "wieght": 1}], {}, r"data\.sources\.0\.wieght: unknown key; did you mean 'weight'"),
    ([{**SMALL, "reward": "exct"}], {}, r"sources\.0\.reward: no part of `reward` is called 'exct'; did you mean 'exact'"),
    ([{**SMALL, "reward": "exact"}], {}, r"reward\.ascii judges none of data\.sources"),
    ([{**SMALL, "reward": []}, {**SMALL, "name": "b"}], {}, r"data\.sources\.0\.reward is empty"),
    ([SMALL, SMALL], {}, r"two of `sources` are called 'addition'; give one of them a `name`"),
    ([{"weight": 1}], {}, r"data\.sources\.0\.source: missing"),
    ([SMALL], {"data": {"source": "addition"}}, r"source='addition' is about one source"),
    ([SMALL], {"data": {"args": {"low": 1}}}, r"args=\{'low': 1\} is about one source"),
    ([SMALL], {"eval": {"data": {"split": "test"}}}, r"eval\.data\.split='test' with several sources"),
    ([], {}, r"no source; name one"),
]  # fmt: skip


@pytest.mark.parametrize(("sources", "more", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_what_does_not_fit_is_refused(sources, more, words):
    with pytest.raises(ConfigError, match=words):
        recipe(sources, **more)


def test_overrides_name_a_source_by_place_or_name(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "name: x\nmodel: {path: smollm2-135m}\nalgo: {name: grpo}\ntrain: {steps: 3}\n"
        "reward: {exact: {name: 'llmrl.rewards.exact_number:ExactNumber'}}\n"
        "data: {sources: [{source: addition}, {source: countdown, name: hard}]}\n"
    )
    changed = load_recipe(
        tmp_path / "r.yaml", ["data.sources.hard.weight=3", "data.sources.0.weight=0.5", "data.sources.0.args.high=9"]
    )
    assert changed.data.weights == {"addition": 0.5, "hard": 3} and changed.data.sources[0].args == {"high": 9}
    with pytest.raises(ConfigError, match="the list has no 'hrad'; did you mean 'hard'"):
        load_recipe(tmp_path / "r.yaml", ["data.sources.hrad.weight=3"])


def test_gold_answers_are_tried_on_the_rewards_of_their_source(tmp_path):
    (tmp_path / "words.jsonl").write_text("".join(f'{{"prompt": "Say w{n}!", "answer": "w{n}"}}\n' for n in range(30)))
    (tmp_path / "r.yaml").write_text(
        "name: x\nmodel: {path: smollm2-135m}\nalgo: {name: grpo}\ntrain: {steps: 3}\nreward:\n"
        "  number: {name: 'llmrl.rewards.exact_number:ExactNumber'}\n  word: {name: 'llmrl.rewards.text_answer:ExactMatch'}\n"
        f"data: {{sources: [{{source: addition, limit: 20, reward: number}}, "
        f"{{source: {tmp_path}/words.jsonl, reward: word}}]}}\neval: off\n"
    )
    told = CliRunner().invoke(app, ["rewards", "check", str(tmp_path / "r.yaml"), "--part", "number"])
    assert told.exit_code == 0 and "number: 20 rows, every gold answer gets full marks" in told.output


GOLDEN = [["a/3", "b/0", "a/1"], ["a/0", "b/2", "a/4"], ["b/3", "a/2", "a/1"], ["b/1", "a/4", "a/2"]]
