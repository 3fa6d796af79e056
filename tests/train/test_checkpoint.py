"""Checkpoints are whole or not used, and pruning never takes the last good one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmrl.config import ModelConfig
from llmrl.policy.model import Policy, load_policy
from llmrl.train.checkpoint import (
    CheckpointError,
    TrainState,
    Writer,
    checkpoints,
    digest,
    newest_valid,
    read_optimizer,
    read_state,
    set_aside,
)
from llmrl.train.updater import Updater


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    settings = ModelConfig(path=str(tiny_model), dtype="bfloat16")
    return load_policy(settings, source=str(tiny_model), device=torch.device("cpu"), seed=0)


def updater_of(policy: Policy) -> Updater:
    return Updater(policy.trainable(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0)


def learn(policy: Policy, updater: Updater) -> None:
    for _, parameter in policy.trainable():
        parameter.square().sum().backward()
    assert updater.step(1e-3)[1]


def write(
    run: Path, policy: Policy, steps: list[int], *, keep_last: int = 9, best: dict[int, float] | None = None
) -> None:
    """Train and save after each of `steps`; `best` marks the step with the best accuracy so far."""
    updater = updater_of(policy)
    writer = Writer(run, keep_last=keep_last, keep_best=True)
    best_step = None
    for step in steps:
        learn(policy, updater)
        best_step = step if best and step in best else best_step
        writer.save(policy, updater.state(), TrainState(step=step, metrics_bytes=10 * step, best_step=best_step))
    writer.close()


def truncate(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_byte(folder: Path) -> None:
    file = folder / "policy" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def lose_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": 1, "fil')


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (truncate, "optimizer.safetensors has"),
        (flip_a_byte, "policy/model.safetensors does not match its checksum"),
        (lose_the_manifest, "its manifest cannot be read"),
        (garble_the_manifest, "its manifest cannot be read"),
        (lose_a_file, "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_is_used(
    tmp_path: Path, policy: Policy, harm: Callable[[Path], None], said: str
) -> None:
    write(tmp_path, policy, [2, 4])
    harm(checkpoints(tmp_path)[-1])
    folder, complaints = set_aside(tmp_path)
    assert folder is not None and read_state(folder) == TrainState(step=2, metrics_bytes=20)
    assert len(complaints) == 1 and "step-000004 is damaged" in complaints[0] and said in complaints[0]
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002"]
    assert (tmp_path / "checkpoints" / "damaged-step-000004").is_dir()


def test_damaged_newer_checkpoints_do_not_push_out_the_last_good_one(tmp_path: Path, policy: Policy) -> None:
    write(tmp_path, policy, [2, 40])
    flip_a_byte(checkpoints(tmp_path)[-1])
    set_aside(tmp_path)
    write(tmp_path, policy, [4], keep_last=1)
    folder, complaints = newest_valid(tmp_path)
    assert folder is not None and folder.name == "step-000004" and not complaints


def test_a_folder_that_was_never_renamed_is_ignored_and_removed_by_the_next_writer(
    tmp_path: Path, policy: Policy
) -> None:
    write(tmp_path, policy, [2])
    left = tmp_path / "checkpoints" / ".tmp-step-000004"
    shutil.copytree(checkpoints(tmp_path)[0], left)
    folder, complaints = newest_valid(tmp_path)
    assert folder is not None and folder.name == "step-000002" and not complaints
    Writer(tmp_path, keep_last=1, keep_best=True).close()
    assert not left.exists()


def test_the_last_and_the_best_are_kept(tmp_path: Path, policy: Policy) -> None:
    write(tmp_path, policy, [1, 2, 3, 4, 5], keep_last=2, best={2: 0.5})
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002", "step-000004", "step-000005"]


def test_training_on_while_the_disk_is_written_does_not_leak_into_the_checkpoint(
    tmp_path: Path, policy: Policy
) -> None:
    updater = updater_of(policy)
    learn(policy, updater)
    before = {name: tensor.clone() for name, tensor in updater.state().items()}
    writer = Writer(tmp_path, keep_last=1, keep_best=False)
    writer.save(policy, updater.state(), TrainState(step=1, metrics_bytes=0))
    for _ in range(5):
        learn(policy, updater)
    writer.close()
    stored = read_optimizer(checkpoints(tmp_path)[0])
    assert stored.keys() == before.keys()
    assert all(torch.equal(stored[name], before[name]) for name in before)
    assert not torch.equal(before["master/model.norm.weight"], updater.state()["master/model.norm.weight"])


def test_a_restored_optimizer_goes_on_bit_for_bit_and_rounds_its_masters_back(
    tmp_path: Path, tiny_model: Path, policy: Policy
) -> None:
    updater = updater_of(policy)
    learn(policy, updater)
    writer = Writer(tmp_path, keep_last=9, keep_best=False)
    writer.save(policy, updater.state(), TrainState(step=1, metrics_bytes=0))
    learn(policy, updater)
    writer.save(policy, updater.state(), TrainState(step=2, metrics_bytes=0))
    writer.close()
    first, second = checkpoints(tmp_path)
    settings = ModelConfig(path=str(tiny_model), dtype="bfloat16")
    again = load_policy(settings, source=str(tiny_model), device=torch.device("cpu"), seed=0)
    restored = updater_of(again)
    restored.load(read_optimizer(first))
    learn(again, restored)
    writer = Writer(tmp_path / "again", keep_last=9, keep_best=False)
    writer.save(again, restored.state(), TrainState(step=2, metrics_bytes=0))
    writer.close()
    assert digest(checkpoints(tmp_path / "again")[0]) == digest(second) != digest(first)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(policy.weights(), again.weights(), strict=True))


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path, policy: Policy) -> None:
    updater = updater_of(policy)
    state = {name: tensor for name, tensor in updater.state().items() if name != "master/model.norm.weight"}
    with pytest.raises(ValueError, match=r"of another model: 1 weights differ, such as model\.norm\.weight"):
        updater.load(state)


def test_a_failed_save_is_reported_by_the_next_one_and_leaves_nothing_behind(tmp_path: Path, policy: Policy) -> None:
    write(tmp_path, policy, [1])
    (tmp_path / "checkpoints" / "step-000002").mkdir()
    (tmp_path / "checkpoints" / "step-000002" / "in the way").touch()
    writer = Writer(tmp_path, keep_last=9, keep_best=False)
    writer.save(policy, updater_of(policy).state(), TrainState(step=2, metrics_bytes=0))
    with pytest.raises(CheckpointError, match=r"step 2 could not be written .* earlier checkpoints are intact"):
        writer.finish()
    writer.close()
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))
    assert newest_valid(tmp_path)[0] == tmp_path / "checkpoints" / "step-000001"
