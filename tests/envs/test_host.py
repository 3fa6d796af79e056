"""Environments that raise, hang, die or talk nonsense fail alone; the other episodes of their worker go on as if nothing."""

import pytest

from llmrl.envs.build import check_environment
from llmrl.envs.calculator import evaluate
from llmrl.envs.host import Call, Failure, Hosted, Inline, Maker
from llmrl.envs.protocol import Ask, Turn
from llmrl.errors import ConfigError
from llmrl.settings.env import EnvConfig
from llmrl.types import Completion, Observation, Prompt, Status

FAULTY = Maker(path="tests.envs.faulty:Faulty")


def said(text):
    return Completion(tokens=(1,), logprobs=(-1.0,), text=text, status=Status.done())


def started(host, names, **answers):
    prompts = {name: Prompt(id=name, tokens=(1,), text="", answer=answers.get(name, "")) for name in names}
    return host.answer([Call(episode=name, prompt=prompts[name], seed=5) for name in names])


@pytest.fixture(params=["inline", "hosted"])
def host(request):
    made = Inline(FAULTY) if request.param == "inline" else Hosted(FAULTY, workers=2, timeout_s=3.0)
    yield made
    made.close()


def test_an_environment_that_raises_or_talks_nonsense_fails_alone(host):
    first = started(host, "abcd", d="bad start")
    assert [type(answer) for answer in first] == [Observation, Observation, Observation, Failure]
    assert first[3].reason == "ValueError: no such level"
    answers = host.answer([Call(episode=n, given=said(t)) for n, t in zip("abc", ("raise", "nonsense", "go on"))])
    assert answers[0] == Failure("RuntimeError: fell over")
    assert "dict instead of a Turn" in answers[1].reason
    assert answers[2] == Turn(next=Observation.of("seen 1"))
    assert "not a finite number" in host.answer([Call(episode="c", given=said("nan"))])[0].reason
    (ask,) = host.answer([Call(episode="c", given=said("ask"))])
    assert isinstance(ask, Ask)
    assert host.answer([Call(episode="c", given=("yes",))])[0].next == Observation.of("friend says yes")


@pytest.mark.parametrize(("fault", "reason"), [("hang", "no answer in 1"), ("die", "exit code 7")])
def test_the_episodes_beside_one_that_hangs_or_dies_are_played_again(fault, reason):
    host = Hosted(FAULTY, workers=1, timeout_s=1.0)
    try:
        started(host, "abc")
        host.answer([Call(episode=name, given=said(f"first of {name}")) for name in "abc"])
        texts = {"a": "second of a", "b": fault, "c": "second of c"}
        answers = host.answer([Call(episode=name, given=said(text)) for name, text in texts.items()])
        assert reason in answers[1].reason and host.restarts == 1
        assert answers[0] == answers[2] == Turn(next=Observation.of("seen 2"))
        ends = host.answer([Call(episode=name, given=said("end")) for name in "ac"])
        assert ends[0].info["seen"] == ["first of a", "second of a", "end"]
        assert ends[1].info["seen"] == ["first of c", "second of c", "end"]
        assert isinstance(host.answer([Call(episode="b", given=said("end"))])[0], Failure)
        host.forget(["a", "c"])
    finally:
        host.close()


def test_a_wrong_name_or_argument_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'calculator'"):
        check_environment(EnvConfig(name="calculater"))
    with pytest.raises(ConfigError, match="hihg"):
        check_environment(EnvConfig(name="guess", args={"hihg": 3}))
    with pytest.raises(ConfigError, match=r"env\.name='no\.module:X' cannot be imported"):
        check_environment(EnvConfig(name="no.module:X"))


@pytest.mark.parametrize(("text", "value"), [("2 * (3 + 4) - 5", 9), ("-3*-3", 9), ("7", 7), (" 12 - 5 - 4 ", 3)])
def test_the_calculator_computes(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text", ["", "2 **9", "1/2", "__import__('os')", "a", "9" * 65, "(" * 60, "1 if 1 else 2", "True", "999999999999*9"]
)
def test_the_calculator_refuses_what_is_no_sum(text):
    with pytest.raises(ValueError):
        evaluate(text)
