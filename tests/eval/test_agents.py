"""Policies in environments: success and its interval, resume, the table of models times environments, filmstrips."""

import json
from dataclasses import replace

import pytest

from llmrl.envs.demos import demonstrations, write_demonstrations
from llmrl.errors import ConfigError, EvalError
from llmrl.eval import agents
from llmrl.eval.agents import AgentOptions, agents_table, evaluate_agents, find_environment
from llmrl.report.filmstrip import filmstrips
from llmrl.settings.env import EnvConfig
from llmrl.types import Media
from tests.rollout.test_episodes import Scripted

LINE = "{name: numberline, args: {high: 3}, turns: 6, memory: window(1), isolated: false}"
LAKE = "{name: frozen_lake, args: {edge: 3}, turns: 6, memory: window(1), isolated: false}"
OPTIONS = AgentOptions(levels=12, max_tokens=40, max_length=250)


def walker(text):
    """Solves the number line, and walks to the right on the lake."""
    if "number line" not in text:
        return '{"thoughts": "<b>", "action": "right"}'
    target, place = (int(part[0]) for part in (text.rpartition("Target: ")[2], text.rpartition("at: ")[2]))
    return json.dumps({"action": "+" if target > place else "-"})


class Engine(Scripted):
    opened = 0

    def close(self):
        pass


@pytest.fixture
def scripted(monkeypatch):
    def make(model, options):
        Engine.opened += 1
        return Engine(walker)

    Engine.opened = 0
    monkeypatch.setattr(agents, "_engine", make)


def test_a_policy_is_measured_in_every_environment_and_not_twice(tmp_path, tiny_model, scripted):
    how = {"out": tmp_path, "options": OPTIONS, "say": lambda text: None}
    line, lake = evaluate_agents([str(tiny_model)], [LINE, LAKE], **how)
    assert (line.environment, lake.environment) == ("numberline", "frozen_lake")
    assert line.success == 1.0 and line.high == 1.0 and 0.7 < line.low < 1 and line.invalid == 0.0 and line.levels == 12
    assert 0 <= lake.low <= lake.success < 1 and lake.turns > 1
    assert evaluate_agents([str(tiny_model)], [LAKE, LINE], **how) == [lake, line] and Engine.opened == 1
    table = agents_table([line, lake])
    assert "| numberline | frozen_lake |" in table and "| 1.00 [" in table
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count('class="film"') == 16
    with pytest.raises(EvalError, match="other options"):
        evaluate_agents([str(tiny_model)], [LINE], out=tmp_path, options=replace(OPTIONS, seed=1), say=print)
    with pytest.raises(EvalError, match="called alike"):
        evaluate_agents([str(tiny_model)], [LINE, LINE], out=tmp_path, options=OPTIONS, say=print)


def test_a_model_that_sees_is_shown_the_game(tmp_path, tiny_vlm):
    shown = "{name: numberline, args: {view: image}, turns: 2, memory: window(1), isolated: false}"
    options = replace(OPTIONS, levels=2, max_tokens=4, max_length=400, engine="hf", dtype="float32")
    plain, mixed = evaluate_agents(
        [str(tiny_vlm)],
        [shown, shown.replace("image", "image, scrambled: true")],
        out=tmp_path,
        options=options,
        say=print,
    )
    assert (plain.environment, mixed.environment) == ("numberline-image", "numberline-image-scrambled")
    assert plain.invalid == 1.0 and plain.turns == 2 and plain.errored == 0.0
    assert len(list((tmp_path / "rollouts" / "media").iterdir())) == 4
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()


def test_levels_have_the_same_seeds_for_every_model_and_samples_cluster(tmp_path, tiny_model, scripted):
    options = replace(OPTIONS, samples=3, levels=5)
    (found,) = evaluate_agents([str(tiny_model)], [LAKE], out=tmp_path / "a", options=options, say=print)
    assert found.levels == 5 and found.success in [n / 5 for n in range(6)]  # siblings play the same lake, and alike
    (again,) = evaluate_agents([str(tiny_model)], [LAKE], out=tmp_path / "b", options=options, say=print)
    assert again == found


def test_an_environment_that_tells_no_success_is_refused(tmp_path, tiny_model, scripted):
    with pytest.raises(EvalError, match="critique does not tell success: environment: it asks engine"):
        evaluate_agents([str(tiny_model)], ["critique"], out=tmp_path, options=OPTIONS, say=print)
    for text in ("numberlin", "{name: numberline, turn: 3}", "recipes/arithmetic/grpo.yaml"):
        with pytest.raises((EvalError, ConfigError)):
            find_environment(text)
    assert find_environment("recipes/guess/grpo.yaml")[0] == "guess"


def test_demonstrations_show_the_form_and_every_action(tmp_path):
    config = EnvConfig(name="frozen_lake", turns=4)
    file = write_demonstrations(config, tmp_path / "lake.jsonl", rows=60)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 60 == len({json.dumps(row) for row in rows})
    answers = [json.loads(row["messages"][-1]["content"]) for row in rows]
    assert {answer["action"] for answer in answers} == {"left", "down", "right", "up"}
    for row, answer in zip(rows, answers):
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert answer["thoughts"] == " ".join(row["messages"][1]["content"].split())
    small = write_demonstrations(EnvConfig(name="numberline", args={"high": 1}), tmp_path / "s.jsonl", rows=60)
    assert len(small.read_text().splitlines()) == 4  # two states, two actions
    with pytest.raises(ConfigError, match="no list of actions"):
        next(demonstrations(EnvConfig(name="guess"), seed=0, thoughts=True))


def test_demonstrations_of_a_policy_repeat_what_it_does(tmp_path):
    config = EnvConfig(name="numberline", args={"high": 1}, turns=2)
    file = write_demonstrations(
        config, tmp_path / "s.jsonl", rows=40, choose=lambda game, draw: int(game.target > game.place)
    )
    rows = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    best = {"Target: 1. You are at: 0.": "+", "Target: 0. You are at: 1.": "-"}
    assert len(rows) == 40
    assert all(json.loads(row[-1]["content"])["action"] == best[row[1]["content"]] for row in rows)


def test_demonstrations_in_pictures_are_rows_with_images(tmp_path):
    from llmrl.data.gold import prompt_from_chat
    from llmrl.data.source import load_rows
    from llmrl.settings.data import DataConfig

    config = EnvConfig(name="numberline", args={"view": "image"})
    file = write_demonstrations(config, tmp_path / "line.jsonl", rows=20)
    rows = load_rows(DataConfig(source=str(file)), seed=0, shape=prompt_from_chat)  # as an sft run reads them
    assert all(len(row.images) == 1 and row.images[0].data.startswith(b"\x89PNG") for row in rows)
    first = json.loads(file.read_text().splitlines()[0])
    assert first["messages"][1]["content"] == ""
    assert json.loads(first["messages"][2]["content"])["thoughts"].startswith("Target: ")


def test_a_filmstrip_shows_what_was_seen_and_escapes_what_was_said():
    from tests.algos.test_vl_dac import episode

    first, last = episode("a<", [0.0, 1.0])
    first = replace(first, text="<script>", prompt=replace(first.prompt, media=(Media.of(b"png"),)))
    page = filmstrips([first, replace(last, info={"success": True})])
    assert "<script>" not in page and "&lt;script&gt;" in page and "data:image/png;base64," in page
    assert "a&lt;" in page and "solved, terminated, reward 1" in page and page.count("<figure>") == 2
    assert filmstrips([replace(first, episode="")]) == ""
