"""Critique episodes: who is asked what, and what the reward makes of it in both stages."""

import json
from dataclasses import replace

import pytest

from llmrl.data.conversation import Renderer
from llmrl.envs.host import Inline, Maker
from llmrl.envs.protocol import Ask
from llmrl.rewards.critique_reward import CritiqueReward
from llmrl.rollout.episodes import Stage, play
from llmrl.rollout.partners import Partner
from llmrl.train.sample import judged
from llmrl.types import Ending, Prompt, Sampling, Score, Status
from tests.rollout.test_episodes import Scripted, prompts
from tests.tiny import tiny_tokenizer

RIGHT, WRONG = "Correctness of the final answer: Correct", "Correctness of the final answer: Wrong"


def rows(
    critic, actor, *, attempt="The answer is 7", answer="7", samples=1, reward=None, columns=None, ids=("q",), **args
):
    """(the episodes' rows with their scores, the actor)."""
    (asked,) = prompts("What is 3 + 4?", answers=[answer])
    columns = {"attempt": attempt} | (columns or {})
    friend = Scripted(actor)
    on = Stage(
        host=Inline(Maker(path="llmrl.envs.critique:Critique", args=args)), renderer=Renderer(tiny_tokenizer()), turns=4,
        max_length=2000, partners={"actor": Partner(friend, Renderer(tiny_tokenizer()), max_length=2000)},
    )  # fmt: skip
    found = play(
        Scripted(critic), [replace(asked, id=name, columns=columns) for name in ids], on, seed=0, step=0, version=0,
        sampling=Sampling(max_tokens=400), samples=samples,
    )  # fmt: skip
    score = reward or CritiqueReward()
    return judged(found, lambda ends: [score(end) for end in ends]), friend


@pytest.mark.parametrize(
    ("attempt", "said", "refined", "value"),
    [
        ("7", RIGHT, "7", 1.2), ("7", RIGHT, "8", 0.2), ("7", WRONG, "7", 1.0), ("7", WRONG, "8", 0.0),
        ("6", WRONG, "7", 1.2), ("6", RIGHT, "6", 0.0), ("6", "no verdict at all", "7", 1.0),
    ],
)  # fmt: skip
def test_stage_two_of_the_paper_rewards_refinement_and_verdict(attempt, said, refined, value):
    (row,), actor = rows(lambda text: said, lambda text: f"The answer is {refined}", attempt=f"The answer is {attempt}")
    assert row.reward == pytest.approx(value) and row.ending is Ending.TERMINATED
    draft = f"The answer is {attempt}"
    assert row.info == {"draft": draft, "critique": said, "refined": f"The answer is {refined}", "stored": True}
    ((asked,),) = actor.asked
    text = tiny_tokenizer().decode(asked.tokens)
    assert "What is 3 + 4?" in text and f"The answer is {attempt}" in text and said in text
    assert row.scores[-1].flags == (("malformed_critique",) if said.startswith("no") else ())
    word = {RIGHT: "correct", WRONG: "wrong"}.get(said, "malformed")
    assert row.scores[-1].reason.startswith(f"verdict {word}, draft {'right' if attempt == '7' else 'wrong'}")


@pytest.mark.parametrize(("said", "attempt", "value"), [(RIGHT, "7", 1.2), (WRONG, "7", -1.0), (RIGHT, "6", -1.0)])
def test_the_released_scheme_takes_everything_from_a_wrong_verdict(said, attempt, value):
    reward = CritiqueReward(scheme="released")
    (row,), _ = rows(lambda t: said, lambda t: "The answer is 7", attempt=f"The answer is {attempt}", reward=reward)
    assert row.reward == pytest.approx(value)


def test_stage_one_rewards_the_verdict_alone_and_asks_nobody():
    reward = CritiqueReward(stage=1, scheme="released")
    (row,), actor = rows(lambda text: WRONG, lambda text: "7", reward=reward, refine=False)
    assert row.reward == -1.0 and actor.asked == []
    assert "refined" not in row.info
    assert row.scores[-1].parts == {"verdict_right": 0.0, "draft_right": 1.0, "verdict_right_on_correct": 0.0}


def test_siblings_criticise_one_draft_written_online_and_another_prompt_gets_another():
    drafts = []

    def actor(text):
        drafts.append(text)
        return f"The answer is {len(drafts)}"

    reward = CritiqueReward(stage=1)
    settings = {"samples": 3, "online": 1.0, "refine": False, "ids": ("q", "r"), "reward": reward}
    found, asked = rows(lambda text: RIGHT, actor, answer="2", **settings)
    assert [row.info["draft"] for row in found] == ["The answer is 1"] * 3 + ["The answer is 2"] * 3
    assert [row.reward for row in found] == [0.0] * 3 + [1.0] * 3
    assert len(drafts) == 2  # the question once for all siblings
    assert all("stored" not in row.info for row in found)
    (first, second) = asked.asked[0]
    assert first.sampling.temperature == 1.0 and first.sampling.seed != second.sampling.seed


def test_some_prompts_get_their_draft_online_and_always_the_same_ones():
    ids = tuple(f"q{number}" for number in range(40))
    settings = {"online": 0.5, "refine": False, "ids": ids, "reward": CritiqueReward(stage=1)}
    found, again = (rows(lambda text: RIGHT, lambda text: "The answer is 8", **settings)[0] for _ in range(2))
    kinds = [row.info.get("stored", False) for row in found]
    assert kinds == [row.info.get("stored", False) for row in again] and 10 < sum(kinds) < 30


def test_a_row_without_a_stored_draft_gets_one():
    (row,), _ = rows(
        lambda text: WRONG, lambda text: "The answer is 6", attempt="", refine=False, reward=CritiqueReward(stage=1)
    )
    assert row.info["draft"] == "The answer is 6" and row.reward == 1.0


def test_what_the_data_knows_of_its_draft_is_believed_and_not_of_another():
    asked = {"columns": {"correct": False}, "refine": False, "reward": CritiqueReward(stage=1)}
    (stored,), _ = rows(lambda text: WRONG, lambda text: "The answer is 7", **asked)
    assert stored.reward == 1.0  # though the checker would call 7 right
    (written,), _ = rows(lambda text: WRONG, lambda text: "The answer is 7", online=1.0, **asked)
    assert written.reward == 0.0


def test_a_draft_given_as_steps_is_shown_in_lines():
    reward = CritiqueReward(stage=1)
    (row,), _ = rows(lambda text: RIGHT, lambda text: "", attempt=["3 + 4 = 7", "So 7"], refine=False, reward=reward)
    assert row.info["draft"] == "3 + 4 = 7\nSo 7" and row.reward == 1.0


def test_refinements_of_one_critique_are_averaged():
    answers = iter(["The answer is 7", "The answer is 8", "The answer is 7", "The answer is 9"])
    found, actor = several(lambda text: WRONG, lambda text: next(answers), 4, attempt="The answer is 6")
    assert found.reward == pytest.approx(0.5 * 1.2 + 0.5 * 0.2) and found.scores[-1].parts["refined_right"] == 0.5
    ((*asked,),) = actor.asked
    assert len({request.sampling.seed for request in asked}) == 4 and asked[0].sampling.temperature == 1.0


def several(critic, actor, count, **more):
    """One episode whose critique is refined `count` times."""
    (asked,) = prompts("What is 3 + 4?", answers=["7"])
    friend = Scripted(actor)
    on = Stage(
        host=Inline(Maker(path="llmrl.envs.critique:Critique", args={"samples": count})),
        renderer=Renderer(tiny_tokenizer()), turns=1, max_length=2000,
        partners={"actor": Partner(friend, Renderer(tiny_tokenizer()), max_length=2000)},
    )  # fmt: skip
    (row,) = play(
        Scripted(critic), [replace(asked, columns=more)], on, seed=0, step=0, version=0, samples=1,
        sampling=Sampling(max_tokens=400),
    )  # fmt: skip
    return judged([row], lambda ends: [CritiqueReward()(end) for end in ends])[0], friend


def test_a_second_round_criticises_the_refinement_and_the_episode_is_worth_the_mean():
    def critic(text):
        return WRONG if "is 6" in text.rpartition("Solution:")[2] else RIGHT

    found, _ = rows(critic, lambda text: "The answer is 7", attempt="The answer is 6", rounds=2)
    assert [row.turn for row in found] == [0, 1]
    assert found[1].info["draft"] == "The answer is 7" and found[1].info["critique"] == RIGHT
    assert found[0].info["critique"] == WRONG and found[0].info["refined"] == "The answer is 7"
    assert [one["critique"] for one in found[1].info["rounds"]] == [WRONG, RIGHT]
    assert found[1].reward == pytest.approx(1.2)  # both rounds: a right verdict and a right refinement
    assert found[1].scores[-1].reason.startswith("round 1: verdict wrong, draft wrong, refinement right; round 2:")


def test_graded_tasks_compare_the_score_that_a_critique_gives_with_the_oracles():
    reward = CritiqueReward(stage=1, checker="tests.envs.test_critique:Length", delta=4.0)
    (row,), _ = rows(
        lambda t: "Score of the final answer: 5", lambda t: "", attempt="abcdefg", refine=False, reward=reward
    )
    assert row.reward == pytest.approx(0.5)  # the oracle says 7
    second = replace(reward, stage=2, beta=0.2)
    (row,), _ = rows(lambda t: "Score of the final answer: 5", lambda t: "abc", attempt="abcdefg", reward=second)
    assert row.reward == pytest.approx(3 + 0.2 * 0.5)
    (row,), _ = rows(lambda t: "fine", lambda t: "abc", attempt="abcdefg", reward=second)
    assert row.reward == pytest.approx(3.0) and row.scores[-1].flags == ("malformed_critique",)


def length_help(before, after):
    return 10 * after + before


class Length:
    def __call__(self, trajectory):
        return Score(value=float(len(trajectory.text)))


def test_a_help_mode_of_ones_own_the_indirect_reward_and_class_weights():
    own = CritiqueReward(mode="tests.envs.test_critique:length_help")
    (row,), _ = rows(lambda text: RIGHT, lambda text: "The answer is 7", reward=own)
    assert row.reward == pytest.approx(11.2)
    indirect = CritiqueReward(mode="r_delta", indirect=True)
    (row,), _ = rows(lambda text: WRONG, lambda text: "The answer is 8", reward=indirect)
    assert row.reward == -1.0
    weighted = CritiqueReward(stage=1, wrong_weight=3.0)
    (row,), _ = rows(lambda t: WRONG, lambda t: "", attempt="The answer is 6", refine=False, reward=weighted)
    assert row.reward == 3.0


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"stage": 3}, "stage=3"), ({"mode": "r_help"}, "mode='r_help'"), ({"delta": 0.0}, "delta=0"),
        ({"delta": 1.0, "mode": "r_correction"}, "r_correction"), ({"wrong_weight": 0.0}, "wrong_weight=0"),
    ],
)  # fmt: skip
def test_senseless_rewards_are_refused(args, reason):
    with pytest.raises(ValueError, match=reason):
        CritiqueReward(**args)


def test_what_is_missing_is_said():
    (row,), _ = rows(lambda text: RIGHT, lambda text: "7", rounds=2, refine=False)
    assert "rounds above 1 need refine: true" in row.status.reason
    (row,), _ = rows(lambda text: RIGHT, lambda text: "7", refine=False)
    assert "stage 2 needs a refinement" in row.scores[-1].error
    assert CritiqueReward()(row) == Score(value=None, error=row.scores[-1].error)


class Broken(Scripted):
    def _one(self, request):
        return replace(super()._one(request), status=Status.error("lost"))


def partner(engine, file=None):
    return Partner(engine, Renderer(tiny_tokenizer()), max_length=200, file=file)


def ask(text, **how):
    return Ask(engine="actor", messages=({"role": "user", "content": text},), **how)


def test_a_partner_remembers_greedy_answers_alone_and_over_a_restart(tmp_path):
    file = tmp_path / "partners" / "actor-0.jsonl"
    counted = []

    def answer(text):
        counted.append(text)
        return f"answer {len(counted)}"

    one = partner(Scripted(answer), file)
    assert one.answers([(ask("a"), 1), (ask("b"), 2), (ask("a"), 3)]) == [("answer 1",), ("answer 2",), ("answer 1",)]
    assert one.answers([(ask("b"), 9)]) == [("answer 2",)]
    drawn = ask("a", temperature=1.0)
    assert one.answers([(drawn, 1), (drawn, 1), (drawn, 2)]) == [("answer 3",), ("answer 3",), ("answer 4",)]
    assert one.answers([(drawn, 1)]) == [("answer 5",)]  # draws are not remembered
    with file.open("a") as torn:
        torn.write(json.dumps({"x": "y"})[:-3])
    resumed = partner(Scripted(answer), file)
    assert resumed.answers([(ask("b"), 1)]) == [("answer 2",)] and len(counted) == 5
    assert resumed.answers([(ask("c"), 1)]) == [("answer 6",)]
    assert partner(Scripted(answer), file).answers([(ask("c"), 1), (ask("a"), 1)]) == [("answer 6",), ("answer 1",)]


def test_a_partner_that_fails_says_so_and_the_episode_is_lost():
    assert partner(Broken(lambda text: "x")).answers([(ask("a"), 1)]) == [None]
    on = Stage(
        host=Inline(Maker(path="llmrl.envs.critique:Critique", args={})), renderer=Renderer(tiny_tokenizer()), turns=1,
        max_length=2000, partners={"actor": partner(Broken(lambda text: "x"))},
    )  # fmt: skip
    asked = [Prompt(id="q", tokens=(5,), text="What?", columns={"attempt": "7"})]
    how = {"sampling": Sampling(max_tokens=40), "samples": 1, "seed": 0, "step": 0, "version": 0}
    (row,) = play(Scripted(lambda text: RIGHT), asked, on, **how)
    assert row.status.reason == "environment: engine 'actor' did not answer"
