"""What people see while an evaluation takes time: how many completions are finished, and at which rate."""

import io
import re

import pytest
from rich.console import Console

from llmrl.rollout.engine import collect, generated
from llmrl.train import log as log_module
from llmrl.train.checkpoint import TrainState
from llmrl.train.clock import Clock
from llmrl.train.log import Log
from llmrl.train.world import World
from llmrl.types import Completion, Request, Sampling, Status
from tests.train.test_runs import recipe

REQUESTS = [Request(tokens=(1, number), sampling=Sampling(max_tokens=1)) for number in range(3)]


class Backwards:
    """A streaming engine that finishes its requests in reverse order, with signs of life between."""

    def stream(self, requests):
        for index in reversed(range(len(requests))):
            yield None
            token = requests[index].tokens[-1]
            yield index, Completion(tokens=(token,), logprobs=(0.0,), text=str(token), status=Status.done())

    def generate(self, requests):
        return collect(self, requests)


class Silent:
    """An engine without a stream."""

    def generate(self, requests):
        return Backwards().generate(requests)


@pytest.fixture
def shown(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(log_module, "SILENCE_S", 0.05)
    made = recipe(tmp_path, tiny_model, steps=1)
    made.run_dir.mkdir(parents=True)
    file = io.StringIO()

    def start(*, terminal):
        console = Console(file=file, force_terminal=terminal, width=140)
        return Log(made, World(), console, state=TrainState(step=0, metrics_bytes=0)), file

    return start


def test_groups_without_contrast_since_the_start_are_pointed_out_once(shown):
    steps = {"never": [1.0] * 6, "late": [1.0, 0.5, 1.0, 1.0, 1.0], "short": [1.0]}
    for name, shares in steps.items():
        log, file = shown(terminal=False)
        state = TrainState(step=0, metrics_bytes=0)
        for share in shares:
            metrics = {"group/uniform": share, "reward/mean": 0.0, "length/mean": 1.0, "loss": 0.0, "grad_norm": 0.0,
                       "tokens/trained": 4.0, "update/skipped": 0.0}  # fmt: skip
            state = log.step(state, metrics, Clock())
        log.close()
        said = file.getvalue().count("every completion got the reward of its siblings")
        file.seek(0)
        file.truncate()
        assert said == (name == "never")


def test_every_completion_is_told_and_the_order_is_that_of_the_requests():
    told = []
    found = generated(Backwards(), REQUESTS, lambda done, total: told.append((done, total)))
    assert [c.text for c in found] == ["0", "1", "2"] and told == [(1, 3), (2, 3), (3, 3)]
    assert [c.text for c in generated(Silent(), REQUESTS, told.append)] == ["0", "1", "2"] and len(told) == 3


def test_a_terminal_shows_a_bar_of_the_evaluation_until_it_is_over(shown):
    log, file = shown(terminal=True)
    log.doing("evaluating")
    log.counted(2, 8)
    log._progress.refresh()
    assert "evaluation" in file.getvalue() and "2/8" in file.getvalue() and "a second" in file.getvalue()
    log.doing("step 1")
    file.truncate(file.seek(0))
    log._progress.refresh()
    assert "evaluation" not in file.getvalue()
    log.close()


def test_elsewhere_the_line_that_says_what_takes_time_says_how_far_it_is(shown):
    log, file = shown(terminal=False)
    log.doing("evaluating")
    log.counted(2, 8)
    while "completions" not in file.getvalue():
        log._ended.wait(0.05)
    log.close()
    assert re.search(r"evaluating: \d s so far, 2 of 8 completions, [\d.]+ a second", file.getvalue())
