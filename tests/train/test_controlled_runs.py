"""Whole runs of a tiny model whose hyper-parameters a controller sets."""

import io
import os
import signal

import pytest
from rich.console import Console

from llmrl.compose import resolve
from llmrl.control.controllers import KnobController
from llmrl.errors import ConfigError
from llmrl.start import run
from llmrl.train.checkpoint import checkpoints, digest
from llmrl.train.folder import read_metrics
from llmrl.train.log import Log
from llmrl.train.replay import replay
from tests.durability.harness import result
from tests.train.test_runs import recipe as plain
from tests.train.test_runs import trained

pytestmark = pytest.mark.usefixtures("settings_as_before")
KNOBS = {
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "temperature": {"low": 0.6, "high": 1.6},
    "clip_high": {"low": 0.05, "high": 0.5},
}
SMALL = {"hidden": [8], "warmup": 1, "batch_size": 4, "updates_per_step": 2}


def recipe(folder, model, *, steps=6, controller=None, **sections):
    how = {"name": "sac", "knobs": KNOBS, "observes": ["progress", "kl_ref", "reward/mean"], "args": SMALL}
    train = {"save_every": 2, "keep_last": 9, "epochs": 2, **sections.pop("train", {})}
    sections = {"algo": {"name": "grpo", "kl_coef": 0.02}, **sections}
    return plain(folder, model, steps=steps, train=train, controller=how | (controller or {}), **sections)


def test_what_a_controller_sets_is_recorded_and_used_in_the_next_step(tmp_path, tiny_model):
    rows = trained(recipe(tmp_path, tiny_model))
    assert not any(name.startswith("knob/") for name in rows[0]) and rows[0]["lr"] == 1e-3  # the recipe's own
    for row in rows[1:]:
        assert row["lr"] == row["knob/lr"] and 0.6 <= row["knob/temperature"] <= 1.6
        # Trainer and engine agree on the probabilities: both know at which temperature was drawn.
        assert row["mismatch/mean_abs_logprob"] < 1e-5
    for name in KNOBS:
        assert len({row[f"knob/{name}"] for row in rows[1:]}) == 5


def test_a_stopped_and_resumed_run_equals_a_whole_one_bit_for_bit(tmp_path, tiny_model, monkeypatch):
    whole, halves = (recipe(tmp_path / part, tiny_model, controller={"every": 2}) for part in ("whole", "halves"))
    trained(whole)
    original = Log.step

    def stops(self, state, metrics, clock):
        if state.step == 2:  # in the middle of an interval
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, state, metrics, clock)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "step", stops)
        assert run(halves, resolve(halves), console=Console(file=io.StringIO())).summary["status"] == "interrupted"
    assert (
        run(halves, resolve(halves), console=Console(file=io.StringIO()), resume=True).summary["status"] == "finished"
    )
    assert result(halves.run_dir) == result(whole.run_dir)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_step_is_replayed_exactly_with_what_was_set(tmp_path, tiny_model, name):
    made = recipe(tmp_path, tiny_model, algo={"name": name, "kl_coef": 0.02}, train={"save_every": 3})
    rows = trained(made)
    parts = resolve(made)
    for step in (2, 6):  # from the start, and from the checkpoint of step 3
        again = replay(made.run_dir, step=step, recipe=made, algo=parts.algo, sources=parts.sources)
        assert again.reproduced and again.replayed["kl_ref"] == again.recorded["kl_ref"]
    (tmp_path / "run" / "metrics.jsonl").write_text(
        "".join(line.replace('"knob/temperature"', '"other"') for line in lines(tmp_path / "run"))
    )
    again = replay(made.run_dir, step=2, recipe=made, algo=parts.algo, sources=parts.sources)
    assert not again.reproduced and rows[1]["knob/temperature"] != 1


def lines(run_dir):
    return (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)


class Stairs:
    """A controller of one's own: the rate halves at every decision."""

    def __init__(self, *, knobs, seed, factor: float):
        (knob,) = knobs
        self.rate, self.factor, self.seen = knob.default, factor, []

    def observe(self, view):
        self.seen.append(sorted(view))
        self.rate *= self.factor
        return {"lr": self.rate}

    def state(self):
        import torch

        return {"rate": torch.tensor(self.rate, dtype=torch.float64)}

    def load(self, state):
        self.rate = float(state["rate"])


def test_a_controller_of_ones_own_is_named_by_its_import_path(tmp_path, tiny_model):
    own = {"name": "tests.train.test_controlled_runs:Stairs", "knobs": {"lr": {"low": 1e-6, "high": 1e-2}}}
    made = recipe(tmp_path, tiny_model, steps=5, controller=own | {"every": 2, "args": {"factor": 0.5}})
    assert [row["lr"] for row in trained(made)] == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]


def test_constant_knobs_leave_a_run_as_it_is(tmp_path, tiny_model):
    held = trained(recipe(tmp_path / "held", tiny_model, controller={"name": "constant", "args": {}}))
    free = trained(
        plain(tmp_path / "free", tiny_model, steps=6, train={"epochs": 2}, algo={"name": "grpo", "kl_coef": 0.02})
    )
    assert [row["loss"] for row in held] == pytest.approx([row["loss"] for row in free], rel=1e-4, abs=1e-7)
    assert [row["reward/mean"] for row in held] == [row["reward/mean"] for row in free]


def test_a_metric_that_this_run_has_not_is_named_after_the_first_step(tmp_path, tiny_model):
    made = recipe(tmp_path, tiny_model, controller={"observes": ["explained_varaince"]}, algo={"name": "ppo"})
    with pytest.raises(ConfigError, match="did you mean 'explained_variance'"):
        trained(made)


def test_a_network_that_is_not_a_number_leaves_training_with_the_last_good_knobs(tmp_path, tiny_model, monkeypatch):
    original, broken = KnobController.observe, []

    def breaks(self, view):
        if self.decisions == 3:
            self.chooser.agent.policy.net.weights[0].data.fill_(float("nan"))
            broken.append(dict(zip((knob.name for knob in self.knobs), self.last.tolist(), strict=True)))
        return original(self, view)

    monkeypatch.setattr(KnobController, "observe", breaks)
    rows = trained(recipe(tmp_path, tiny_model))
    assert broken and len({row["knob/lr"] for row in rows[3:]}) == 1 and len({row["knob/lr"] for row in rows[1:4]}) == 3
    assert digest(checkpoints(tmp_path / "run")[-1]) and len(read_metrics(tmp_path / "run")) > 6
