"""All algorithms x the properties that every one of them must have: the checks are those of `llmrl.conformance`."""

import inspect
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from pydantic import TypeAdapter

from llmrl.algos import ALGORITHMS, PRESETS
from llmrl.batch import Output
from llmrl.conformance.algorithms import algorithms, build, check_algorithm
from llmrl.conformance.cases import random_batch, random_output
from llmrl.conformance.report import summarise

TABLE = algorithms()
every_algorithm = pytest.mark.parametrize(("name", "algo"), TABLE.items(), ids=TABLE.keys())


@every_algorithm
def test_algorithm_has_the_common_properties(name, algo):
    results = summarise(check_algorithm(name, algo, seed=11))
    assert len(results) >= 6
    assert [result for result in results if not result.passed] == []


@every_algorithm
def test_every_algorithm_learns_from_something(name, algo):
    batch = algo.credit(random_batch(5))
    out = random_output(batch, 5)
    algo.loss(out, batch).value.backward()
    assert (out.logprobs.grad[batch.mask] != 0).double().mean() > 0.2


@every_algorithm
def test_credit_and_loss_leave_the_batch_as_it_was(name, algo):
    batch = random_batch(7)
    before = {item.name: getattr(batch, item.name) for item in fields(batch)}
    copies = {key: None if x is None else x.clone() for key, x in before.items()}
    algo.loss(random_output(batch, 7), algo.credit(batch))
    for key, x in before.items():
        assert getattr(batch, key) is x
        if x is not None:
            torch.testing.assert_close(x, copies[key], equal_nan=True, rtol=0, atol=0)


@every_algorithm
def test_an_algorithm_reads_only_what_it_needs(name, algo):
    """Fields that `needs` does not name are absent, as the trainer leaves them, and the loss still works."""
    optional = {"values", "ref_logprobs", "old_logprobs"}
    missing = {key: None for key in optional if not getattr(algo.needs, key)}
    batch = random_batch(3)
    batch = type(batch)(**{item.name: getattr(batch, item.name) for item in fields(batch)} | missing)
    out = random_output(batch, 3)
    given = {key: getattr(out, key) if getattr(algo.needs, key) else None for key in ("entropy", "values")}
    loss = algo.loss(Output(logprobs=out.logprobs, **given), algo.credit(batch))
    assert torch.isfinite(loss.value)
    full = algo.loss(out, algo.credit(random_batch(3)))
    torch.testing.assert_close(loss.value, full.value, rtol=0, atol=0)


@every_algorithm
def test_one_update_per_rollout_needs_no_old_logprobs(name, algo):
    batch = random_batch(3)
    batch = type(batch)(**{item.name: getattr(batch, item.name) for item in fields(batch)} | {"old_logprobs": None})
    loss = algo.loss(random_output(batch, 3), algo.credit(batch))
    assert torch.isfinite(loss.value)
    if algo.needs.old_logprobs:
        assert loss.metrics["ratio"].item() == pytest.approx(1.0)
        assert loss.metrics["approx_kl"].item() == pytest.approx(0.0)


@every_algorithm
def test_algorithms_are_frozen_and_their_docstring_names_every_field(name, algo):
    field = fields(algo)[0].name
    with pytest.raises((FrozenInstanceError, TypeError)):
        setattr(algo, field, 0)
    described = {line.split()[0] for line in inspect.getdoc(type(algo)).splitlines() if line}
    assert {item.name for item in fields(algo)} <= described


@pytest.mark.parametrize("name", [*ALGORITHMS, *PRESETS])
def test_every_name_is_a_config_schema(name):
    changes = {"constant_tokens": 12} if name == "dr_grpo" else {}
    algo = build(name, **changes)
    plain = {item.name: getattr(algo, item.name) for item in fields(algo)}
    assert TypeAdapter(type(algo)).validate_python(plain) == algo


def test_dr_grpo_asks_for_its_constant():
    with pytest.raises(ValueError, match="constant_tokens"):
        build("dr_grpo")


@every_algorithm
def test_a_batch_in_which_no_row_counts_gets_no_credit_and_no_loss(name, algo):
    batch = random_batch(9)
    batch = replace(batch, mask=torch.zeros_like(batch.mask), tokens_total=batch.tokens_total)
    credited = algo.credit(batch)
    assert credited.advantages is None or (credited.advantages == 0).all()
    assert algo.loss(random_output(batch, 9), credited).value.item() == 0.0


def test_listing_the_algorithms_imports_no_torch():
    code = "import sys, llmrl.algos; assert llmrl.algos.ALGORITHMS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_presets_name_registered_methods():
    assert {*ALGORITHMS, *PRESETS} >= {"grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo", "pacs"}
    assert set(ALGORITHMS).isdisjoint(PRESETS)
    assert {method for method, _ in PRESETS.values()} <= set(ALGORITHMS)
