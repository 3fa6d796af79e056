"""Checkpoints: whole or not there, damage found and named, the right ones kept."""

import json
import re
import shutil

import pytest
import torch

from llmrl.errors import CheckpointError
from llmrl.policy.model import load_policy
from llmrl.settings.recipe import ModelConfig
from llmrl.train import checkpoint
from llmrl.train.checkpoint import (
    TrainState,
    Writer,
    checkpoints,
    damage,
    digest,
    newest_valid,
    read_state,
    read_tensors,
    set_aside,
)


@pytest.fixture(scope="module")
def policy(tiny_model):
    return load_policy(
        ModelConfig(path="x", dtype="float32"), source=str(tiny_model), device=torch.device("cpu"), seed=0
    )


def optimizer(value=1.0):
    return {
        "master/w": torch.full((3, 2), value),
        "exp_avg/w": torch.arange(6.0).view(3, 2),
        "step/w": torch.tensor(4.0),
    }


def state(step, **more):
    return TrainState(step=step, metrics_bytes=10 * step, **more)


def write(run, policy, *steps, keep_last=9, keep_best=False, **more):
    writer = Writer(run, keep_last=keep_last, keep_best=keep_best)
    for step in steps:
        writer.save({"policy": policy.save}, {"optimizer": optimizer(float(step))}, state(step, **more))
    writer.close()


def test_a_checkpoint_holds_the_policy_the_optimizer_and_the_state(tmp_path, policy):
    write(tmp_path, policy, 7, skipped_in_a_row=2, best=0.5, best_step=3)
    (folder,) = checkpoints(tmp_path)
    assert folder.name == "step-000007" and damage(folder) is None
    assert read_state(folder) == TrainState(step=7, metrics_bytes=70, skipped_in_a_row=2, best=0.5, best_step=3)
    assert all(torch.equal(read_tensors(folder, "optimizer")[name], tensor) for name, tensor in optimizer(7.0).items())
    again = load_policy(
        ModelConfig(path="x", dtype="float32"), source=str(folder / "policy"), device=torch.device("cpu"), seed=0
    )
    assert all(torch.equal(p, q) for p, q in zip(again.model.parameters(), policy.model.parameters(), strict=True))
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert set(listed) == there - {"manifest.json"} and "policy/model.safetensors" in listed


def test_the_optimizer_is_copied_before_save_returns(tmp_path, policy):
    tensors = optimizer()
    writer = Writer(tmp_path, keep_last=2, keep_best=False)
    writer.save({"policy": policy.save}, {"optimizer": tensors}, state(1))
    tensors["master/w"].zero_()
    writer.close()
    assert bool((read_tensors(checkpoints(tmp_path)[0], "optimizer")["master/w"] == 1).all())


DAMAGES = {
    "a changed byte": (lambda f: flip(f / "policy" / "model.safetensors"), "policy/model.safetensors does not match"),
    "a cut file": (lambda f: cut(f / "optimizer.safetensors"), r"optimizer.safetensors has \d+ bytes instead of"),
    "a missing file": (lambda f: (f / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest cannot be read"),
    "half a manifest": (lambda f: cut(f / "manifest.json"), "manifest cannot be read"),
    "a manifest of something else": (lambda f: (f / "manifest.json").write_text("[]"), "manifest cannot be read"),
}


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, policy, name):
    spoil, message = DAMAGES[name]
    write(tmp_path, policy, 1, 2)
    first, second = checkpoints(tmp_path)
    spoil(second)
    found, complaints = newest_valid(tmp_path)
    assert found == first
    (complaint,) = complaints
    assert str(second) in complaint
    assert re.search(message, complaint)
    spoil(first)
    assert newest_valid(tmp_path)[0] is None and len(newest_valid(tmp_path)[1]) == 2


def test_no_checkpoints_are_no_complaint(tmp_path):
    assert newest_valid(tmp_path) == (None, [])


def test_an_unfinished_save_is_never_a_checkpoint_and_is_swept_away(tmp_path, policy):
    write(tmp_path, policy, 1)
    shutil.copytree(checkpoints(tmp_path)[0], tmp_path / "checkpoints" / ".tmp-step-000002")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000001"]
    write(tmp_path, policy, 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000001", "step-000002"]


def test_a_save_that_fails_leaves_the_earlier_ones_and_is_reported_at_the_next(tmp_path, policy, monkeypatch):
    writer = Writer(tmp_path, keep_last=2, keep_best=False)
    writer.save({"policy": policy.save}, {"optimizer": optimizer()}, state(1))
    writer.finish()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    writer.save({"policy": policy.save}, {"optimizer": optimizer()}, state(2))
    with pytest.raises(CheckpointError, match=r"step 2 .*No space left.*earlier checkpoints are intact"):
        writer.finish()
    writer.close()
    assert newest_valid(tmp_path) == (checkpoints(tmp_path)[0], [])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_a_damaged_checkpoint_is_set_aside_so_that_its_step_can_be_saved_again(tmp_path, policy):
    write(tmp_path, policy, 1, 2)
    first, second = checkpoints(tmp_path)
    flip(second / "optimizer.safetensors")
    found, (complaint,) = set_aside(tmp_path)
    assert found == first and "optimizer.safetensors does not match" in complaint
    assert checkpoints(tmp_path) == [first]
    write(tmp_path, policy, 2)
    assert newest_valid(tmp_path) == (second, [])


KEPT = {(1, False): ["4"], (2, False): ["3", "4"], (2, True): ["1", "3", "4"], (9, True): ["1", "2", "3", "4"]}


@pytest.mark.parametrize("keep", KEPT)
def test_the_last_and_the_best_are_kept(tmp_path, policy, keep):
    last, best = keep
    write(tmp_path, policy, 1, 2, 3, 4, keep_last=last, keep_best=best, best=0.9, best_step=1)
    assert [folder.name[-1] for folder in checkpoints(tmp_path)] == KEPT[keep]


def test_the_digest_is_of_step_weights_and_optimizer(tmp_path, policy):
    write(tmp_path / "a", policy, 1)
    write(tmp_path / "b", policy, 1)
    write(tmp_path / "c", policy, 2)
    one, same, other = (digest(checkpoints(tmp_path / name)[0]) for name in "abc")
    assert one == same != other


def test_checkpoints_are_ordered_by_step_beyond_six_digits(tmp_path):
    for step in (999_999, 1_000_000, 5):
        checkpoint.folder_of(tmp_path, step).mkdir(parents=True)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000005", "step-999999", "step-1000000"]
