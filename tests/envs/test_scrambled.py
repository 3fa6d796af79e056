"""The check that a policy looks shows pictures of other levels and nothing else that differs."""

import pytest

from llmrl.envs.build import check_environment
from llmrl.importing import load
from llmrl.settings.env import EnvConfig
from llmrl.types import Completion, Prompt, Status
from tests.bench.scrambled import scrambled

LEVEL = {"prompt": Prompt(id="a", tokens=(1,), text=""), "seed": 5, "high": 9, "view": "image"}


def said(text):
    return Completion(tokens=(1,), logprobs=(0.0,), text=text, status=Status.done())


def test_text_and_rewards_are_the_levels_own_and_pictures_are_of_others():
    plain = load(check_environment(EnvConfig(name="numberline")))(**LEVEL)
    mixed, again = scrambled(**LEVEL, of="numberline"), scrambled(**LEVEL, of="numberline")
    ours, theirs = plain.start(), mixed.start()
    assert ours.messages == theirs.messages and ours.media != theirs.media and len(theirs.media) == 1
    shown = [theirs.media]
    for action in "+-++--":
        one, other = (env.act(said(f'{{"action": "{action}"}}')) for env in (plain, mixed))
        assert one.reward == other.reward and (one.next is None) == (other.next is None)
        if other.next is None:
            break
        shown.append(other.next.media)
    assert shown[0] == again.start().media and len({media[0].hash for media in shown}) > 1


def test_an_environment_without_pictures_cannot_be_scrambled():
    with pytest.raises(ValueError, match="numberline shows no pictures"):
        scrambled(**{**LEVEL, "view": "text"}, of="numberline")
