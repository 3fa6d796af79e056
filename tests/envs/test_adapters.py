"""Adapters against the packages themselves: gymnasium, MiniGrid and BabyAI, MiniWorld, TextWorld, TRL's environments."""

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from llmrl.envs.gym import Gym
from llmrl.envs.trl import TRLEnvironment
from llmrl.types import Completion, Prompt, Status
from tests.algos.test_against_trl import trl_trainer
from tests.envs import oracles
from tests.envs.test_games import make, played, said


def test_a_gymnasium_environment_gives_its_own_rewards_and_observations():
    gymnasium = pytest.importorskip("gymnasium")
    plain = gymnasium.make("CartPole-v1")
    seen, _ = plain.reset(seed=7)
    environment = make("gym", seed=7, id="CartPole-v1", names=["left", "right"], success=9.0)
    first = environment.start()
    assert first.messages[1]["content"] == " ".join(f"{number:.4g}" for number in seen.tolist())
    for number in (0, 1, 1, 0, *[1] * 12):
        seen, reward, terminated, _, _ = plain.step(number)
        turn = environment.act(said(("left", "right")[number]))
        assert turn.reward == reward and not turn.truncated
        assert (turn.next is None) == terminated
        if terminated:
            break
        assert turn.next.messages[0]["content"] == " ".join(f"{x:.4g}" for x in seen.tolist())
    assert turn.next is None and turn.info["success"]


def test_a_gymnasium_limit_cuts_and_pictures_are_what_it_draws():
    pytest.importorskip("gymnasium")
    environment = make("gym", seed=1, id="CartPole-v1", kwargs={"max_episode_steps": 2}, view="image", size=40)
    assert environment.start().media
    environment.act(said(0))
    turn = environment.act(said(1))
    assert turn.truncated and turn.next.media and turn.next.messages[0]["content"] == [{"type": "image"}]
    assert max(environment.game.frame().size) == 40
    environment.close()


def test_action_spaces_that_no_answer_can_name_are_refused():
    pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match="only Discrete"):
        Gym(seed=0, id="Pendulum-v1")
    with pytest.raises(ValueError, match="has 2 actions, and names has 3"):
        Gym(seed=0, id="CartPole-v1", names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("level", "oracle"),
    [
        ("MiniGrid-Empty-5x5-v0", oracles.to_the_goal),
        ("BabyAI-GoToRedBallGrey-v0", oracles.minigrid_bot),
        ("BabyAI-GoToLocal-v0", oracles.minigrid_bot),
        ("BabyAI-PickupLoc-v0", oracles.minigrid_bot),
    ],
)
def test_minigrid_levels_are_solved_and_seen(level, oracle):
    pytest.importorskip("minigrid")
    for seed in range(3):
        environment = make("minigrid", seed=seed, level=level)
        text = environment.start().messages[1]["content"]
        assert text.startswith("Mission: ") and "ahead" in text
        turns = played(environment, oracle)
        assert turns[-1].info["success"] and 0 < turns[-1].reward <= 1


def test_minigrid_says_what_it_shows():
    pytest.importorskip("minigrid")
    from minigrid.core.world_object import Ball, Door

    environment = make("minigrid", seed=0, level="MiniGrid-Empty-8x8-v0", names=["left", "right", "forward"])
    grid = environment.game.grid
    assert grid.agent_pos == (1, 1) and grid.agent_dir == 0  # in the upper left corner, looking right
    grid.grid.set(3, 1, Ball("red"))
    grid.grid.set(2, 3, Door("blue"))
    text = environment.game.words(seen=False)
    assert "red ball 2 ahead" in text and "closed blue door 1 ahead 2 right" in text and "wall 1 left" in text
    before = environment.game.frame()
    assert before.size == (64, 64)
    environment.act(said("right"))
    assert np.asarray(environment.game.frame()).tolist() != np.asarray(before).tolist()
    assert environment.act(said("pickup")).flags == ("invalid_action",)
    with pytest.raises(ValueError, match="not the first of MiniGrid's actions"):
        make("minigrid", names=["forward"])


@pytest.mark.slow
def test_miniworld_draws_without_a_display_and_its_box_is_reached():
    """In a process of its own: the LLVM of Mesa's renderer and that of triton do not live in one."""
    pytest.importorskip("gymnasium")
    if find_spec("miniworld") is None:
        pytest.skip("miniworld is not installed")
    code = "from tests.envs.test_adapters import miniworld_is_solved; miniworld_is_solved()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def miniworld_is_solved():
    environment = make("miniworld", seed=0, view="both")
    shown = environment.start()
    assert shown.media and environment.game.frame().size == (80, 60)
    turns = played(environment, oracles.towards_the_box)
    assert turns[-1].info["success"] and turns[-1].reward == pytest.approx(1 - 0.2 * len(turns) / 180, abs=0.01)


@pytest.mark.slow
def test_textworld_games_are_built_once_and_won(tmp_path, monkeypatch):
    pytest.importorskip("textworld")
    monkeypatch.setenv("LLMRL_CACHE", str(tmp_path))
    args = {"challenge": "coin_collector", "settings": {"level": 3}, "games": 1}
    environment = make("textworld", seed=5, **args)
    file = next(tmp_path.glob("textworld/*/game.z8"))
    built = file.stat().st_mtime_ns
    shown = environment.start().messages[1]["content"]
    assert "Commands: " in shown and "go " in shown
    assert environment.act(said("fly away")).flags == ("invalid_action",)
    turns = played(make("textworld", seed=6, **args), oracles.hint)
    assert turns[-1].info["success"] and sum(turn.reward for turn in turns) == 1.0
    assert file.stat().st_mtime_ns == built
    with pytest.raises(ValueError, match="none of TextWorld's: coin_collector, cooking"):
        make("textworld", challenge="chess")


class WordGame:
    """As TRL's documentation writes them: reset, tools with docstrings, get_reward."""

    def __init__(self, word="amber"):
        self.word = word

    def reset(self, hint=None, **row):
        self.tries, self.right = 0, False
        return f" Hint: {hint}." if hint else None

    def guess(self, word: str) -> str:
        """Guess the word.

        Args:
            word: What you think it is.

        Returns:
            Whether it is right.
        """
        if not word.isalpha():
            raise ValueError("letters only")
        self.tries += 1
        self.right = word == self.word
        return "right" if self.right else "wrong"

    async def letters(self) -> int:
        """How many letters the word has.

        Returns:
            The number.
        """
        return len(self.word)

    def get_reward(self) -> float:
        return 1.0 / self.tries if self.right else 0.0

    def _hidden(self):
        return None


def few_tries(prompts, completions, environments, **columns):
    """A TRL reward function that reads the environment."""
    assert completions[0][-1]["role"] == "assistant" and prompts[0][-1]["role"] == "user"
    return [float(environment.right) - 0.1 * environment.tries for environment in environments]


def call(name, **arguments):
    text = f"Let me see.\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    return Completion(tokens=(1,), logprobs=(-1.0,), text=text, status=Status.done())


def word_game(**args):
    messages = ({"role": "user", "content": "Find the word."},)
    prompt = Prompt(id="a", tokens=(1,), text="", messages=messages, columns={"hint": "a stone"})
    return TRLEnvironment(prompt=prompt, seed=0, factory="tests.envs.test_adapters:WordGame", **args)


def test_an_environment_factory_of_trl_is_played_as_it_is():
    environment = word_game()
    system, user = environment.start().messages
    assert user["content"] == "Find the word. Hint: a stone."
    schemas = [json.loads(line) for line in system["content"].splitlines()[1:]]
    assert [one["function"]["name"] for one in schemas] == ["guess", "letters"]
    assert environment.act(call("letters")).next.messages == ({"role": "tool", "name": "letters", "content": "5"},)
    failed = environment.act(call("guess", word="1"))
    assert failed.flags == ("failed_tool",) and failed.next.messages[0]["content"] == "{'error': 'letters only'}"
    assert environment.act(call("guess", word="topaz")).next.messages[0]["content"] == "wrong"
    assert "no call of a tool" in environment.act(call("reset")).next.messages[0]["content"]
    assert "no call of a tool" in environment.act(call("_hidden")).next.messages[0]["content"]
    environment.act(call("guess", word="amber"))
    end = environment.act(said(None))
    assert end.next is None and end.reward == 0.5 and not end.info["success"]


def test_a_reward_function_of_trl_sees_the_environment():
    environment = word_game(reward="tests.envs.test_adapters:few_tries", success=0.9)
    environment.start()
    environment.act(call("guess", word="amber"))
    end = environment.act(said(None))
    assert end.reward == pytest.approx(0.9) and end.info["success"]
    with pytest.raises(ValueError, match="no method reset"):
        TRLEnvironment(prompt=Prompt(id="a", tokens=(1,), text=""), factory="fractions:Fraction")


def test_trls_own_trainer_takes_the_same_object_and_finds_the_same_tools(tmp_path, tiny_model):
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer_class, config_class = trl_trainer("grpo_trainer", "GRPOTrainer"), trl_trainer("grpo_config", "GRPOConfig")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    arguments = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": [],
        "per_device_train_batch_size": 8,
        "bf16": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the interface is experimental
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(tiny_model), args=config_class(**arguments),
            processing_class=tokenizer, environment_factory=WordGame,
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "Find the word."}]}]),
        )  # fmt: skip
    assert [tool.__name__ for tool in trainer.tools] == list(word_game().tools()) == ["guess", "letters"]
    assert trainer.reward_func_names == ["WordGame"]
