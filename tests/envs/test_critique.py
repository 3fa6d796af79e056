"""Critique episodes: who is asked what, and what the reward makes of it in both stages."""

import pytest

from llmrl.envs.host import Inline, Maker
from llmrl.rewards.critique_reward import CritiqueReward
from llmrl.rollout.episodes import play
from llmrl.train.sample import judged
from llmrl.types import Ending, Sampling, Score
from tests.rollout.test_episodes import Scripted, prompts, stage
from tests.tiny import tiny_tokenizer

RIGHT, WRONG = "Correctness of the final answer: Correct", "Correctness of the final answer: Wrong"


def rows(critic, actor, *, attempt="The answer is 7", answer="7", samples=1, reward=None, **args):
    asked = prompts("ignored", answers=[answer])
    columns = {"question": "What is 3 + 4?", "attempt": attempt}
    asked = [type(asked[0])(id="q", tokens=asked[0].tokens, text="", answer=answer, columns=columns)]
    made = stage("faulty", partners={"actor": Scripted(actor)}, max_length=2000)
    host = Inline(Maker(path="llmrl.envs.critique:Critique", args=args))
    made = type(made)(host=host, renderer=made.renderer, turns=4, max_length=2000, partners=made.partners)
    found = play(
        Scripted(critic), asked, made, sampling=Sampling(max_tokens=400), samples=samples, seed=0, step=0, version=0
    )
    score = reward or CritiqueReward()
    return judged(found, lambda ends: [score(end) for end in ends]), made


@pytest.mark.parametrize(
    ("attempt", "said", "refined", "value"),
    [
        ("7", RIGHT, "7", 1.2), ("7", RIGHT, "8", 0.2), ("7", WRONG, "7", 1.0), ("7", WRONG, "8", 0.0),
        ("6", WRONG, "7", 1.2), ("6", RIGHT, "6", 0.0), ("6", "no verdict at all", "7", 1.0),
    ],
)  # fmt: skip
def test_stage_two_of_the_paper_rewards_refinement_and_verdict(attempt, said, refined, value):
    (row,), made = rows(lambda text: said, lambda text: f"The answer is {refined}", attempt=f"The answer is {attempt}")
    assert row.reward == pytest.approx(value) and row.ending is Ending.TERMINATED
    assert row.info == {"draft": f"The answer is {attempt}", "critique": said, "refined": f"The answer is {refined}"}
    (asked,) = made.partners["actor"].asked
    text = tiny_tokenizer().decode(asked[0].tokens)
    assert "What is 3 + 4?" in text and f"The answer is {attempt}" in text and said in text
    assert row.scores[-1].flags == (("malformed_critique",) if said.startswith("no") else ())


def test_stage_one_rewards_the_verdict_alone_and_asks_nobody():
    reward = CritiqueReward(stage=1, scheme="released")
    (row,), made = rows(lambda text: WRONG, lambda text: "7", reward=reward, refine=False)
    assert row.reward == -1.0 and made.partners["actor"].asked == []
    assert "refined" not in row.info and row.scores[-1].parts == {"verdict_right": 0.0, "draft_right": 1.0}


def test_a_second_round_criticises_the_refinement():
    def critic(text):
        return WRONG if "is 6" in text.rpartition("Solution:")[2] else RIGHT

    found, _ = rows(critic, lambda text: "The answer is 7", attempt="The answer is 6", rounds=2)
    assert [row.turn for row in found] == [0, 1]
    assert found[1].info["draft"] == "The answer is 7" and found[1].info["critique"] == RIGHT


def test_what_is_missing_is_said():
    (row,), _ = rows(lambda text: RIGHT, lambda text: "7", attempt="")
    assert "has no column 'attempt'" in row.status.reason
    (row,), _ = rows(lambda text: RIGHT, lambda text: "7", refine=False)
    assert "stage 2 needs a refinement" in row.scores[-1].error
    assert CritiqueReward()(row) == Score(value=None, error=row.scores[-1].error)
