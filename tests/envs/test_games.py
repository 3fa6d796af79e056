"""Games: an oracle solves each, rules by hand, what is seen in words and pictures, and what an invalid answer costs."""

import doctest
import io
import json
import random

import numpy as np
import pytest
from PIL import Image

from llmrl.envs import ENVIRONMENTS, PACKAGES, cards, game, gym
from llmrl.envs.actions import action_start, parse_choice
from llmrl.envs.build import check_environment
from llmrl.errors import ConfigError
from llmrl.importing import load
from llmrl.settings.env import EnvConfig
from llmrl.types import Completion, Prompt, Status
from tests.envs import oracles

PROMPT = Prompt(id="a", tokens=(1,), text="")
SMALL = {
    "numberline": ({}, oracles.hint),
    "ezpoints": ({}, oracles.hint),
    "points24": ({}, oracles.hint),
    "frozen_lake": ({}, oracles.hint),
    "sokoban": ({}, oracles.hint),
}
PICTURES = [*SMALL, "blackjack"]


def make(name, *, seed=0, **args):
    return load(check_environment(EnvConfig(name=name, args=args)))(prompt=PROMPT, seed=seed, **args)


def said(action, *, thoughts="hm {"):
    text = action if action is None else json.dumps({"thoughts": thoughts, "action": action})
    return Completion(tokens=(1,), logprobs=(-1.0,), text=text or "I do not know", status=Status.done())


def played(environment, oracle, *, most=200):
    """The turns of an episode in which `oracle` names its actions."""
    environment.start()
    turns = []
    for _ in range(most):
        number = oracle(environment.game)
        turns.append(environment.act(said(environment.game.actions[number])))
        if turns[-1].next is None or turns[-1].truncated:
            break
    environment.close()
    return turns


@pytest.mark.parametrize("name", SMALL)
def test_an_oracle_solves_every_level(name):
    args, oracle = SMALL[name]
    for seed in range(25):
        turns = played(make(name, seed=seed, **args), oracle)
        assert turns[-1].info["success"] and turns[-1].next is None, f"{name} {seed}"
        assert not any(turn.flags for turn in turns) and all(turn.learns for turn in turns)
        assert not any(turn.info["success"] for turn in turns[:-1])


def test_the_basic_strategy_loses_little_at_blackjack_and_chance_loses_much():
    def mean(choose):
        return np.mean([sum(t.reward for t in played(make("blackjack", seed=s), choose)) for s in range(1500)])

    draw = random.Random(0)
    assert mean(oracles.blackjack) > -0.15 and mean(lambda game: draw.randrange(2)) < -0.25


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_and_words_show_the_state_and_depend_on_the_seed_alone(name):
    for view in ("image", "both"):
        one, same, other = (make(name, seed=seed, view=view).start() for seed in (1, 1, 2))
        assert one == same and one.media != other.media
        image = Image.open(io.BytesIO(one.media[0].data))
        assert image.mode == "RGB" and min(image.size) >= 48 and len(image.getcolors(10**6)) > 2
        content = one.messages[1]["content"]
        assert content[0] == {"type": "image"} and len(one.media) == 1
        assert one.messages[0]["role"] == "system" and '{"action": ...}' in one.messages[0]["content"]
    text = make(name, seed=1).start()
    assert not text.media and text != make(name, seed=2).start()
    for before, after in ((make(name, seed=1), make(name, seed=1)),):
        frames = [picture.game.frame().tobytes() for picture in (before, after)]
        assert frames[0] == frames[1]


def test_a_scrambled_picture_has_the_same_pixels_elsewhere():
    plain, mixed, again = (
        make("numberline", seed=1, view="image", **more).start().media[0]
        for more in ({}, {"scrambled": True}, {"scrambled": True})
    )
    assert mixed == again and mixed != plain
    colours = [sorted(Image.open(io.BytesIO(shown.data)).getcolors(10**6)) for shown in (plain, mixed)]
    assert colours[0] == colours[1]


def test_number_line_by_its_rules():
    environment = make("numberline", seed=0, high=3)
    game = environment.game
    game.target, game.place = 2, 0
    assert "Target: 2. You are at: 0." in str(environment.start().messages[1]["content"])
    assert environment.act(said("-")).reward == -1.0 and game.place == 0  # the end of the line
    assert environment.act(said("+")).reward == 0.0
    last = environment.act(said(1))  # by number
    assert last.reward == 1.0 and last.next is None and last.info == {"success": True, "action": "+"}
    game.place, game.steps = 0, 5
    assert environment.act(said("-")).truncated


def test_points_by_their_rules():
    environment = make("ezpoints", seed=0)
    game = environment.game
    game.hand = (12, 2)  # a queen counts 10
    assert "Cards: Q, 2" in environment.start().messages[1]["content"]
    assert [environment.act(said(a)).reward for a in ("10", "10", "+", "7")] == [0.0, -1.0, 0.0, -1.0]
    assert environment.game.formula == ["10", "+"]
    assert environment.act(said(0)).flags == ("invalid_action",)  # 0 is no symbol, nor a place among them
    assert environment.act(said(2)).reward == 0.0
    last = environment.act(said("="))
    assert (last.reward, last.info["success"], last.next) == (10.0, True, None)
    wrong = make("ezpoints", seed=0)
    assert wrong.act(said("=")).reward == -1.0
    long = make("ezpoints", seed=0)
    turns = [long.act(said("+")) for _ in range(6)]
    assert turns[-1].truncated and turns[-1].reward == -1.0 and not turns[-2].truncated


def test_formulas_are_parsed_and_never_run():
    assert cards.value_of(["8", "/", "(", "3", "-", "8", "/", "3", ")"]) == 24
    for formula in (["2", "(", "3", ")"], ["1", "/", "(", "2", "-", "2", ")"], ["(", ")"], [], ["2", "3"], ["-", "2"]):
        assert cards.value_of(formula) is None
    assert cards.solution((1, 1, 1, 1), 24, ("+", "-", "*", "/", "(", ")")) == ()
    hard = cards.solution((3, 3, 8, 8), 24, ("+", "-", "*", "/", "(", ")"))
    assert cards.value_of(list(hard)) == 24 and len(hard) <= 20


def test_sokoban_pays_for_boxes_and_knows_walls():
    environment = make("sokoban", seed=0)
    world = environment.game
    world.lines = ("######", "#@$. #", "######")
    world.walls = frozenset((y, x) for y, row in enumerate(world.lines) for x, c in enumerate(row) if c == "#")
    world.targets, world.crates, world.at = frozenset({(1, 3), (1, 4)}), frozenset({(1, 2), (1, 4)}), (1, 1)
    assert environment.act(said("up")).reward == pytest.approx(-0.1) and world.at == (1, 1)
    won = environment.act(said("right"))
    assert won.reward == pytest.approx(1 - 0.1 + 10) and won.info["success"]


def test_frozen_lake_ends_in_holes_and_slips_when_asked():
    def paths(slippery):
        found = set()
        for seed in range(30):
            world = make("frozen_lake", seed=seed, slippery=slippery, holes=0.0).game
            world.act(2)
            found.add(world.at)
        return found

    assert paths(False) == {(0, 1)} and len(paths(True)) > 1
    environment = make("frozen_lake", seed=0)
    environment.game.map = ("SH..", "....", "....", "...G")
    turn = environment.act(said("right"))
    assert turn.next is None and turn.reward == 0.0 and not turn.info["success"]


@pytest.mark.parametrize("answer", [None, "jump", 7, True, '{"action": "-"'])
def test_an_invalid_answer_changes_nothing_and_costs(answer):
    environment = make("numberline", seed=3, penalty=0.25)
    first = environment.start()
    turn = environment.act(said(answer))
    assert turn.reward == -0.25 and turn.flags == ("invalid_action",) and turn.learns
    assert turn.next.messages[0] == first.messages[1] and turn.info == {"success": False, "action": None}


def test_a_drawn_action_is_left_out_of_the_loss_and_drawn_again_alike():
    def rewards():
        environment = make("numberline", seed=3, invalid="random", high=9)
        turns = [environment.act(said("jump")) for _ in range(6)]
        assert all(turn.flags == ("invalid_action",) and not turn.learns for turn in turns)
        return [turn.reward for turn in turns], environment.game.place

    assert rewards() == rewards()


def test_what_the_action_is_and_where_it_begins():
    text = 'so {"thoughts": "the \\"action\\" }", "action": " Go  Up "}'
    assert parse_choice(text, ["go down", "go up"]) == 1 and text[action_start(text) :].startswith('"action": " Go')
    assert parse_choice('{"action": "1"}', ["left", "right"]) == 1
    assert parse_choice('{"action": "3"}', ["3", "+"]) == 0 and parse_choice('{"action": 0}', ["3", "+"]) is None
    assert action_start("none") is None
    assert doctest.testmod(cards).failed == doctest.testmod(game).failed == doctest.testmod(gym).failed == 0


def test_a_wrong_argument_or_a_missing_package_is_told(monkeypatch):
    with pytest.raises(ConfigError, match="hihg"):
        make("numberline", hihg=3)
    with pytest.raises(ValueError, match="view='images'"):
        make("numberline", view="images")
    monkeypatch.setitem(PACKAGES, "minigrid", ("no_such_package", "pip install 'llmrl[agents]'"))
    with pytest.raises(ConfigError, match=r"needs the package no_such_package.*pip install 'llmrl\[agents\]'"):
        check_environment(EnvConfig(name="minigrid"))
    assert set(PACKAGES) <= set(ENVIRONMENTS)
