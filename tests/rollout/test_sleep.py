"""Engines that step aside while the policy trains. What vLLM does with the calls needs a GPU; their order does not."""

import pytest

from llmrl.errors import ConfigError, EngineError
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.process import ProcessEngine
from llmrl.rollout.verify import VerifiedEngine
from llmrl.rollout.vllm import VLLMEngine
from llmrl.train.clock import Clock
from llmrl.train.sample import Sampler
from llmrl.train.world import World
from llmrl.types import Completion, Prompt, Score, Status
from tests.train.test_forward_mode import recipe


class Calls:
    """Stands where `vllm.LLM` is and writes down what it is asked."""

    def __init__(self):
        self.made = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.made.append((name, kwargs.get("level") or kwargs.get("tags")))


def engine(*, can_sleep):
    made = VLLMEngine.__new__(VLLMEngine)
    made._settings = EngineSettings(model="none")
    made._llm, made._can_sleep, made._asleep, made._reader = Calls(), can_sleep, False, None
    return made


def test_a_sleeping_engine_wakes_its_weights_before_and_its_cache_after_they_are_loaded():
    asleep = engine(can_sleep=True)
    asleep.sleep()
    asleep.sleep()  # twice is once
    with pytest.raises(EngineError, match="load weights before generating"):
        next(asleep.stream([]))
    asleep.load([], version=1)
    asleep.load([], version=2)
    assert asleep._llm.made == [
        ("sleep", 2),
        ("wake_up", ["weights"]), ("collective_rpc", None), ("wake_up", ["kv_cache"]), ("reset_prefix_cache", None),
        ("collective_rpc", None), ("reset_prefix_cache", None),
    ]  # fmt: skip


def test_on_a_cpu_there_is_nothing_to_give_back():
    awake = engine(can_sleep=False)
    awake.sleep()
    awake.load([], version=1)
    assert [name for name, _ in awake._llm.made] == ["collective_rpc", "reset_prefix_cache"]


class Napping:
    def __init__(self):
        self.made = []

    def generate(self, requests):
        self.made.append("generate")
        return [Completion(tokens=(5,), logprobs=(-1.0,), text="x", status=Status.done()) for _ in requests]

    def sleep(self):
        self.made.append("sleep")


class Same:
    """A stream that gives one prompt for ever."""

    def at(self, step):
        return [Prompt(id="p", tokens=(5, 6), text="")]


@pytest.mark.parametrize("sleep", [False, True])
def test_the_engine_rests_once_a_batch_is_sampled_if_the_recipe_says_so(sleep):
    napping = Napping()
    asked = recipe()
    asked = asked.model_copy(update={"rollout": asked.rollout.model_copy(update={"sleep": sleep, "group_size": 2})})
    sampler = Sampler(
        recipe=asked, world=World(), engine=VerifiedEngine(napping, "off"), stream=Same(), spare=Same(),
        score=lambda rows: [Score(value=1.0) for _ in rows],
    )  # fmt: skip
    assert len(sampler(0, 0, Clock(), {})) == 2
    assert napping.made == (["generate", "sleep"] if sleep else ["generate"])


def test_an_engine_in_a_child_process_is_told_to_rest_and_what_it_cannot_do_is_an_error(tiny_model, tmp_path):
    settings = EngineSettings(kind="hf", model=str(tiny_model), dtype="float32", max_length=64)
    child = ProcessEngine(settings, log=tmp_path / "engine.log")
    try:
        with pytest.raises(EngineError, match=r"HFEngine.*sleep"):
            child.sleep()
    finally:
        child.close()


@pytest.mark.parametrize(
    "changes", [{"engine": "native"}, {"placement": "server"}, {"max_staleness": 1}], ids=lambda c: next(iter(c))
)
def test_engines_that_cannot_rest_are_refused(changes):
    from llmrl.settings.load import parse_recipe

    values = recipe().model_dump()
    values["rollout"] |= {"sleep": True, **changes}
    with pytest.raises(ConfigError, match=r"rollout.sleep=true is for rollout.engine=vllm"):
        parse_recipe(values)
