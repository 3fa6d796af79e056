"""Rollouts ahead of training: which version samples which batch, in which order, whatever the timing."""

import threading
import time

import pytest
import torch

from llmrl.train.clock import Clock
from llmrl.train.rollout_queue import RolloutQueue
from llmrl.types import Prompt, Status, Trajectory


class Engine:
    """Records what it is given; `delay_s` before every load."""

    def __init__(self, delay_s=0.0):
        self.version, self.delay_s, self.history = None, delay_s, []

    def load(self, weights, *, version):
        time.sleep(self.delay_s)
        self.version = version
        self.history.append(("load", version, [float(tensor.sum()) for _, tensor in weights]))


def trajectory(step, version):
    return Trajectory(
        prompt=Prompt(id=f"p{step}", tokens=(1,), text=""), tokens=[1, 2], mask=[False, True], logprobs=[0.0, -1.0],
        step=[-1, 0], text="", status=Status.done(), version=(version, version),
    )  # fmt: skip


def run(staleness, *, steps=6, start=0, pending=None, delay_s=0.0, stop=None):
    """The trainer's loop without a trainer; returns (versions by step, RolloutQueue, engine)."""
    engine = Engine(delay_s)

    def make(step, version, clock, knobs):
        with clock("generate"):
            time.sleep(delay_s * (step % 2))
        assert engine.version == version
        return [trajectory(step, version)]

    rollouts = RolloutQueue(engine, make, staleness=staleness, steps=steps, step=start, pending=pending)
    weight = torch.zeros(3)
    rollouts.load([("w", weight + start)], version=start)
    seen = {}
    for step in range(start, stop or steps):
        (found,) = rollouts.take(step, Clock(), {})
        assert found.prompt.id == f"p{step}"
        seen[step] = found.version[0]
        weight.fill_(step + 1)
        rollouts.load([("w", weight)], version=step + 1)
    return seen, rollouts, engine


@pytest.mark.parametrize("delay_s", [0.0, 0.01])
@pytest.mark.parametrize(
    ("staleness", "expected"), [(0, [0, 1, 2, 3, 4, 5]), (1, [0, 0, 1, 2, 3, 4]), (3, [0, 0, 0, 0, 1, 2])]
)
def test_the_batch_of_step_n_is_sampled_by_version_n_minus_staleness(staleness, expected, delay_s):
    seen, rollouts, engine = run(staleness, delay_s=delay_s)
    assert list(seen.values()) == expected
    rollouts.run(lambda: None)
    assert engine.history == [
        ("load", v, [3.0 * v]) for v in range(7)
    ]  # weights as they were when they were handed over
    assert rollouts.pending() == {}


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_stopped_run_goes_on_with_its_pending_batches_as_if_nothing_had_been(staleness, stop):
    whole, _, _ = run(staleness, steps=9)
    first, rollouts, _ = run(staleness, steps=9, stop=stop)
    pending = rollouts.pending()
    assert sorted(pending) == list(range(stop, min(stop + staleness, 9)) if staleness else [])
    second, _, _ = run(staleness, steps=9, start=stop, pending=pending)
    assert first | second == whole


def test_batches_too_old_for_a_lower_staleness_are_counted_and_sampled_again():
    _, rollouts, _ = run(3, steps=9, stop=4)
    seen, again, _ = run(1, steps=9, start=4, pending=rollouts.pending())
    assert again.take_too_stale() == 3 and again.take_too_stale() == 0
    assert list(seen) == [4, 5, 6, 7, 8] and list(seen.values()) == [4, 4, 5, 6, 7]


def test_sampling_runs_beside_the_training_and_not_with_staleness_zero():
    engine, threads = Engine(), []

    def make(step, version, clock, knobs):
        threads.append(threading.current_thread() is threading.main_thread())
        return [trajectory(step, version)]

    for staleness in (0, 1):
        rollouts = RolloutQueue(engine, make, staleness=staleness, steps=2)
        rollouts.load([], version=0)
        clock = Clock()
        rollouts.take(0, clock, {})
        rollouts.close()
    assert threads[0] and not any(threads[1:])


def test_what_fails_beside_the_training_is_raised_and_nothing_uses_what_it_left():
    engine = Engine()
    calls = []

    def make(step, version, clock, knobs):
        calls.append(step)
        return [trajectory(step, version)]

    def broken(weights, *, version):
        raise RuntimeError("no such weights")

    rollouts = RolloutQueue(engine, make, staleness=2, steps=9)
    rollouts.load([], version=0)
    rollouts.take(0, Clock(), {})
    rollouts.run(lambda: None)
    engine.load = broken
    rollouts.load([], version=1)
    rollouts.take(1, Clock(), {})  # was sampled before
    rollouts.take(2, Clock(), {})
    with pytest.raises(RuntimeError, match="no such weights"):
        rollouts.take(3, Clock(), {})
    assert 3 not in calls
    rollouts.close()


def test_phases_beside_the_training_are_told_apart():
    engine = Engine()

    def make(step, version, clock, knobs):
        with clock("reward"):
            time.sleep(0.02)
        return [trajectory(step, version)]

    rollouts = RolloutQueue(engine, make, staleness=1, steps=2)
    clock = Clock()
    rollouts.take(0, clock, {})
    seconds = clock.seconds()
    assert seconds["time/overlapped_reward"] >= 0.02 and "time/reward" not in seconds
    # The rest of the wait, however little the thread left of it before the clock started.
    assert seconds["time/generate"] > 0
    rollouts.close()
