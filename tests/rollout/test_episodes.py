"""Episodes: scripted policies win, rows tell what happened, tokens are those that were sampled, failures are data."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from llmrl.data.conversation import Renderer, Talk
from llmrl.envs.host import Inline, Maker
from llmrl.rollout.episodes import Stage, play
from llmrl.rollout.partners import Partner
from llmrl.train.collate import collate
from llmrl.train.sample import judged
from llmrl.train.telemetry import describe_rollouts
from llmrl.types import Completion, Ending, Observation, Prompt, Sampling, Score, Status, StatusKind
from tests.tiny import tiny_tokenizer

END = 2  # <|end|> of the tiny tokenizer


class Scripted:
    """An engine whose answer is a function of the text it is shown; it remembers what it was asked."""

    def __init__(self, answer, *, end=True):
        self.answer, self.end, self.asked = answer, end, []
        self.tokenizer = tiny_tokenizer()

    def generate(self, requests):
        self.asked.append(list(requests))
        return [self._one(request) for request in requests]

    def _one(self, request):
        text = self.answer(self.tokenizer.decode(request.tokens))
        tokens = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], *([END] if self.end else []))
        tokens = tokens[: request.sampling.max_tokens]
        return Completion(tokens=tokens, logprobs=(-0.5,) * len(tokens), text=text, status=Status.done())


def prompts(*texts, answers=None):
    tokenizer = tiny_tokenizer()
    found = []
    for number, text in enumerate(texts):
        messages = ({"role": "user", "content": text},)
        shown = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        tokens = tuple(tokenizer(shown, add_special_tokens=False)["input_ids"])
        answer = answers[number] if answers else ""
        found.append(Prompt(id=f"p{number}", tokens=tokens, text=shown, messages=messages, answer=answer))
    return found


def stage(name, *, turns=8, window=None, max_length=400, partners=None, **args):
    path = {"guess": "llmrl.envs.guess:Guess", "calculator": "llmrl.envs.calculator:Calculator"}.get(
        name, "tests.envs.faulty:Faulty"
    )
    host = Inline(Maker(path=path, args=args))
    renderer = Renderer(tiny_tokenizer())
    others = {who: Partner(engine, renderer, max_length=max_length) for who, engine in (partners or {}).items()}
    return Stage(host=host, renderer=renderer, turns=turns, max_length=max_length, window=window, partners=others)


def played(engine, asked, on, **more):
    settings = {"samples": 2, "seed": 0, "step": 3, "version": 3, "sampling": Sampling(max_tokens=40), **more}
    return play(engine, asked, on, **settings)


def bisect(text):
    """Guess the middle of what is left, from the hints in the text."""
    low, high = 1, 16
    for word, number in re.findall(r"(higher|lower) than (\d+)", text):
        low, high = (int(number) + 1, high) if word == "higher" else (low, int(number) - 1)
    return str((low + high) // 2)


def test_a_scripted_oracle_guesses_every_number_and_sees_the_whole_conversation():
    rows = played(Scripted(bisect), prompts("a", "b", "c", "d"), stage("guess"))
    ends = [row for row in rows if row.ending is not Ending.CONTINUES]
    assert len(ends) == 8 and all(row.info == {"success": True} and row.scores[0].value == 1.0 for row in ends)
    assert max(row.turn for row in rows) >= 2 and len({row.episode for row in rows}) == 8
    for one, after in pairwise(rows):
        if after.episode == one.episode:
            assert after.turn == one.turn + 1
            assert after.prompt.tokens[: one.length] == tuple(one.tokens.tolist())  # token in, token out


def test_a_scripted_oracle_uses_the_calculator():
    def policy(text):
        found = re.findall(r"What is ([0-9+*() -]+)\?", text)[-1]
        reply = re.findall(r"<\|user\|>(-?\d+)<\|end\|>", text)
        return f"answer: {reply[-1]}" if reply else f"calc: {found}"

    rows = played(
        Scripted(policy), prompts("What is 37 * 4?", "What is 5 + 6?", answers=["148", "11"]), stage("calculator")
    )
    assert [row.turn for row in rows] == [0, 1] * 4
    assert [row.scores[0].value for row in rows] == [0.0, 1.0] * 4
    assert [row.text for row in rows[:2]] == [
        "calc: 37 * 4",
        "answer: 148",
    ]  # what a reward reads is the policy's alone
    assert (
        rows[0].prompt.tokens == prompts("What is 37 * 4?")[0].tokens
    )  # the data row's own prompt, not rendered again


def test_a_window_shows_the_last_observations_and_keeps_sampled_tokens():
    engine = Scripted(lambda text: "go on")
    rows = played(engine, prompts("a"), stage("faulty", turns=4, window=2), samples=1)
    shown = [tiny_tokenizer().decode(row.prompt.tokens) for row in rows]
    assert "task p0" in shown[1] and "task p0" not in shown[2] and "seen 1" in shown[2] and "seen 2" in shown[2]
    completion = tuple(rows[1].tokens[len(rows[1].prompt.tokens) :].tolist())
    text = ",".join(map(str, rows[2].prompt.tokens))
    assert ",".join(map(str, completion)) in text
    assert rows[-1].ending is Ending.TRUNCATED and "seen 4" in tiny_tokenizer().decode(rows[-1].final.tokens)


def test_a_turn_that_ran_out_of_tokens_is_closed_by_the_template():
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer)
    message = ({"role": "user", "content": "hi"},)
    ended = Completion(tokens=(9, END), logprobs=(0.0, 0.0), text="", status=Status.done())
    cut = Completion(tokens=(9,), logprobs=(0.0,), text="", status=Status.truncated())
    whole = tokenizer("<|end|><|user|>hi<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    assert list(renderer.following(cut, message)) == whole and list(renderer.following(ended, message)) == whole[1:]


def test_a_system_message_stays_in_the_window():
    talk = Talk(Renderer(tiny_tokenizer()), Prompt(id="a", tokens=(1,), text=""), window=1)
    talk.shows(Observation(messages=({"role": "system", "content": "RULES"}, {"role": "user", "content": "one"})))
    talk.said.append(Completion(tokens=(9, END), logprobs=(0.0, 0.0), text="x", status=Status.done()))
    talk.shows(Observation.of("two"))
    text = tiny_tokenizer().decode(talk.context().tokens)
    assert "RULES" in text and "two" in text and "one" not in text


def test_every_draw_has_a_key_of_its_own_and_an_episode_does_not_depend_on_the_others():
    engine = Scripted(bisect)
    rows = played(engine, prompts("a", "b"), stage("guess"))
    seeds = [request.sampling.seed for asked in engine.asked for request in asked]
    assert len(set(seeds)) == len(seeds)
    alone = played(Scripted(bisect), prompts("a", "b")[1:], stage("guess"))
    texts = [row.text for row in rows if row.prompt.id == "p1"]
    assert [row.text for row in alone] == texts
    other = played(Scripted(bisect), prompts("a", "b"), stage("guess"), step=4)
    assert [row.text for row in other] != [row.text for row in rows]


@pytest.mark.parametrize("fault", ["raise", "nonsense", "nan"])
def test_a_broken_environment_is_an_error_of_its_episode_only(fault):
    def policy(text):
        return fault if "p0" in text and "seen 1" in text else ("end" if "seen 1" in text else "go on")

    rows = judged(
        played(Scripted(policy), prompts("a", "b"), stage("faulty")), lambda ends: [Score(value=0.0)] * len(ends)
    )
    broken = [row for row in rows if row.prompt.id == "p0"]
    assert len(broken) == 4 and all(row.status.kind is StatusKind.ERROR for row in broken)
    batch = collate(rows)
    assert batch.mask[:4].sum() == 0 and batch.mask[4:].any(1).all()
    metrics = describe_rollouts(rows, step=3)
    assert metrics["episode/errored"] == 0.5 and metrics["episode/success"] == 1.0 and metrics["episode/turns"] == 2.0


def test_an_environment_that_cannot_start_leaves_a_row_that_says_so():
    asked = [replace(prompt, answer="bad start") for prompt in prompts("a")]
    (row,) = played(Scripted(lambda text: "end"), asked, stage("faulty"), samples=1)
    assert row.status == Status.error("environment: ValueError: no such level") and row.sampled == 0


def test_an_environment_may_ask_another_engine():
    friend = Scripted(lambda text: "look left")
    rows = played(
        Scripted(lambda text: "end" if "friend says" in text else "ask"), prompts("a", "b"),
        stage("faulty", partners={"friend": friend}),
    )  # fmt: skip
    assert len(friend.asked) == 1 and len(friend.asked[0]) == 1  # all ask the same: once
    assert [row.scores[0].value for row in rows] == [0.5, 1.0] * 4
    assert "friend says look left" in tiny_tokenizer().decode(rows[1].prompt.tokens)
    lonely = played(Scripted(lambda text: "ask"), prompts("a"), stage("faulty"), samples=1)
    assert "engine 'friend'; the recipe's engines: none" in lonely[0].status.reason


def test_a_context_that_leaves_no_room_cuts_the_episode():
    rows = played(Scripted(lambda text: "go on"), prompts("a"), stage("faulty", turns=50, max_length=60), samples=1)
    assert rows[-1].ending is Ending.TRUNCATED and rows[-1].length <= 60 and len(rows) < 50
