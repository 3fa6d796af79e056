"""What is restored is what was saved, and pruning never takes the last good checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmrl.policy.model import Policy, load_policy
from llmrl.settings.recipe import ModelConfig
from llmrl.train.checkpoint import TrainState, Writer, checkpoints, digest, newest_valid, read_tensors, set_aside
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
        state = TrainState(step=step, metrics_bytes=10 * step, best_step=best_step)
        writer.save({"policy": policy.save}, {"optimizer": updater.state()}, state)
    writer.close()


def flip_a_byte(folder: Path) -> None:
    file = folder / "policy" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_newer_checkpoints_do_not_push_out_the_last_good_one(tmp_path: Path, policy: Policy) -> None:
    write(tmp_path, policy, [2, 40])
    flip_a_byte(checkpoints(tmp_path)[-1])
    set_aside(tmp_path)
    write(tmp_path, policy, [4], keep_last=1)
    folder, complaints = newest_valid(tmp_path)
    assert folder is not None and folder.name == "step-000004" and not complaints


def test_a_restored_optimizer_goes_on_bit_for_bit_and_rounds_its_masters_back(
    tmp_path: Path, tiny_model: Path, policy: Policy
) -> None:
    updater = updater_of(policy)
    learn(policy, updater)
    writer = Writer(tmp_path, keep_last=9, keep_best=False)
    writer.save({"policy": policy.save}, {"optimizer": updater.state()}, TrainState(step=1, metrics_bytes=0))
    learn(policy, updater)
    writer.save({"policy": policy.save}, {"optimizer": updater.state()}, TrainState(step=2, metrics_bytes=0))
    writer.close()
    first, second = checkpoints(tmp_path)
    settings = ModelConfig(path=str(tiny_model), dtype="bfloat16")
    again = load_policy(settings, source=str(tiny_model), device=torch.device("cpu"), seed=0)
    restored = updater_of(again)
    restored.load(read_tensors(first, "optimizer"))
    learn(again, restored)
    writer = Writer(tmp_path / "again", keep_last=9, keep_best=False)
    writer.save({"policy": again.save}, {"optimizer": restored.state()}, TrainState(step=2, metrics_bytes=0))
    writer.close()
    assert digest(checkpoints(tmp_path / "again")[0]) == digest(second) != digest(first)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(policy.weights(), again.weights(), strict=True))


def test_training_on_while_the_disk_is_written_does_not_leak_into_the_checkpoint(
    tmp_path: Path, policy: Policy
) -> None:
    updater = updater_of(policy)
    learn(policy, updater)
    before = {name: tensor.clone() for name, tensor in updater.state().items()}
    writer = Writer(tmp_path, keep_last=1, keep_best=False)
    writer.save({"policy": policy.save}, {"optimizer": updater.state()}, TrainState(step=1, metrics_bytes=0))
    for _ in range(5):
        learn(policy, updater)
    writer.close()
    stored = read_tensors(checkpoints(tmp_path)[0], "optimizer")
    assert stored.keys() == before.keys()
    assert all(torch.equal(stored[name], before[name]) for name in before)
    assert not torch.equal(before["master/model.norm.weight"], updater.state()["master/model.norm.weight"])
