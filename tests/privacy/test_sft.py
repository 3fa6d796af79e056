import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmrl.errors import ConfigError
from llmrl.privacy.controllers import Constant, Knobs, Limited, Quantile, Random, soft_actor_critic
from llmrl.privacy.ledger import Ledger, LedgerError, load_ledger, terms_of
from llmrl.privacy.planning import plan
from llmrl.privacy.randomness import SecureSource, SeededSource, poisson_sample
from llmrl.privacy.sft import PrivateRun, Row, Settings, by_unit, dp_sft, mean_loss, row_losses
from tests.tiny import random_model


def rows(count=24, seed=0, users=None):
    draw = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = int(torch.randint(4, 12, (1,), generator=draw))
        tokens = tuple(torch.randint(5, 60, (length,), generator=draw).tolist())
        unit = str(number if users is None else number % users)
        found.append(Row(tokens=tokens, mask=(False, *[True] * (length - 1)), unit=unit))
    return found


def model(seed=0):
    found = get_peft_model(random_model("llama", seed=seed), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return found


SETTINGS = Settings(steps=6, expected_batch=4.0, lr=1e-2, thresholds=0.5, micro_batch=3, groups="pair")


def ledger(settings=SETTINGS, records=24, target=8.0, mode="fixed", guarantee=False):
    found = plan(target, 1e-4, q=settings.expected_batch / records, steps=settings.steps)
    return Ledger(terms_of(found, unit="row", mode=mode, accountant="rdp", guarantee=guarantee))


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters() if p.requires_grad])


def test_the_loss_of_a_row_depends_on_nothing_else():
    net, some = model().eval(), rows(5)
    together = row_losses(net, some)
    alone = torch.cat([row_losses(net, [row]) for row in some])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    out = net(input_ids=torch.tensor([some[0].tokens]), labels=torch.tensor([some[0].tokens]))
    torch.testing.assert_close(alone[0], out.loss, rtol=1e-5, atol=1e-6)
    assert mean_loss(net, some, micro_batch=2) == pytest.approx(alone.mean().item(), rel=1e-5)


def test_a_step_is_the_clipped_sum_of_the_drawn_records_plus_noise_over_the_expected_batch():
    run = PrivateRun(model(), rows(), SETTINGS, ledger(), source=SeededSource(3))
    source, before = SeededSource(3), weights(run)
    drawn = poisson_sample(source, records=24, q=run.q, step=0)
    reference = model()
    names = [name for name, p in reference.named_parameters() if p.requires_grad]
    limit, groups = run.optimizer.thresholds[0], run.gradients.groups
    total = {name: torch.zeros_like(dict(reference.named_parameters())[name]) for name in names}
    for index in drawn:
        reference.zero_grad()
        row_losses(reference, [rows()[index]]).sum().backward()
        grads = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
        for group in groups:
            size = math.sqrt(sum(float(grads[n].square().sum()) for n in group))
            for n in group:
                total[n] += grads[n] * min(1.0, limit / size)
    deviation = run.optimizer.sigma * math.sqrt(sum(x * x for x in run.optimizer.thresholds))
    assert run.step() is not None
    for name in names:
        noise = source.normal(total[name].numel(), step=0, name=name).view(total[name].shape)
        noised = run.optimizer._last[name]
        torch.testing.assert_close(noised, total[name] + deviation * noise, rtol=1e-4, atol=1e-5)
    assert not torch.equal(weights(run), before)
    release = run.optimizer.release
    assert release.deviations == pytest.approx([deviation] * len(groups))
    assert sum(release.squared) == pytest.approx(sum(float(x.square().sum()) for x in run.optimizer._last.values()))


def test_an_empty_batch_is_a_step_of_noise_and_is_paid_for():
    class Nobody(SeededSource):
        def uniform(self, size, *, step, name):
            return torch.ones(size, dtype=torch.float64)

    run = PrivateRun(model(), rows(), SETTINGS, ledger(), source=Nobody(0))
    before = weights(run)
    assert run.step() is not None and run.ledger.paid == 1
    assert not torch.equal(weights(run), before) and torch.isfinite(weights(run)).all()


def test_steps_stop_where_the_ledger_stops(tmp_path):
    settings = replace(SETTINGS, steps=9)
    held = ledger()  # pays for six
    run = PrivateRun(model(), rows(), settings, held, source=SeededSource(0), ledger_file=tmp_path / "ledger.json")
    outcome = dp_sft(run)
    assert (outcome.steps, outcome.stopped) == (6, "the budget is spent")
    assert load_ledger(tmp_path / "ledger.json").paid == 6
    assert outcome.epsilon == math.inf and outcome.nominal_epsilon <= 8.0


def test_it_learns_where_the_noise_is_small():
    same = [Row(tokens=(5, 6, 7, 8, 9), mask=(False, True, True, True, True), unit=str(k)) for k in range(24)]
    settings = replace(SETTINGS, steps=30, expected_batch=12.0, thresholds=2.0)
    run = PrivateRun(model(), same, settings, ledger(settings, target=2000.0), source=SeededSource(1))
    before = mean_loss(run.model, same)
    dp_sft(run)
    assert mean_loss(run.model, same) < before - 0.5


def test_resume_equals_an_uninterrupted_run():
    def fresh():
        settings = replace(SETTINGS, counts_share=0.05)
        start = Knobs(thresholds=(0.25,) * 4)
        steered = Limited(Quantile(start), start, low=1e-3, high=10.0, warm_up=1)
        return PrivateRun(model(), rows(), settings, ledger(), controller=steered, source=SeededSource(5),
                          public=rows(3, seed=9))  # fmt: skip

    whole, first = fresh(), fresh()
    outcome = dp_sft(whole)
    kept = [first.step() for _ in range(3)]
    tensors, plain = first.state()
    second = fresh()
    second.ledger = Ledger(first.ledger.terms, first.ledger.entries)
    second.load({name: tensor.clone() for name, tensor in tensors.items()}, plain)
    kept += dp_sft(second).metrics
    assert kept == outcome.metrics
    assert torch.equal(weights(second), weights(whole))
    assert second.ledger.entries == whole.ledger.entries


def test_steps_that_were_lost_are_paid_again_with_other_noise():
    run = PrivateRun(model(), rows(), SETTINGS, ledger(guarantee=True))
    tensors, plain = run.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    run.step(), run.step()
    lost = weights(run)
    run.load(tensors, plain)
    assert run.done == 0 and run.ledger.paid == 2
    run.step(), run.step()
    assert not torch.allclose(weights(run), lost)
    assert [(entry.first, entry.steps) for entry in run.ledger.entries] == [(0, 2), (0, 2)]
    outcome = dp_sft(run)
    assert outcome.steps == 4 and outcome.stopped == "the budget is spent"


def test_a_checkpoint_that_is_ahead_of_the_ledger_is_refused():
    run = PrivateRun(model(), rows(), SETTINGS, ledger(), source=SeededSource(0))
    run.step()
    tensors, plain = run.state()
    other = PrivateRun(model(), rows(), SETTINGS, ledger(), source=SeededSource(0))
    with pytest.raises(LedgerError, match="only 0 steps were paid for"):
        other.load(tensors, plain)


def test_one_extreme_record_changes_nothing_that_a_controller_sees_given_the_same_releases():
    """The second run's releases are replaced by the first's; anything else that reached the view would differ."""
    seen = []

    class Records:
        def observe(self, view):
            seen[-1].append(view.signals())
            return Knobs(thresholds=(0.25,) * 4)

        def state(self):
            return {}

        def load(self, state):
            pass

    releases = []
    for extreme in (False, True):
        data = rows()
        if extreme:
            data[0] = Row(tokens=(5,) * 200, mask=(False, *[True] * 199), unit="0")
        seen.append([])
        run = PrivateRun(model(), data, SETTINGS, ledger(), controller=Records(), source=SeededSource(2))
        original = run.optimizer._describe

        def describe(noised, deviations, below, original=original, run=run):
            number = run.done
            if len(releases) <= number:
                releases.append(original(noised, deviations, below))
            return releases[number]

        run.optimizer._describe = describe
        dp_sft(run)
    assert len(seen[0]) == 6
    for first, second in zip(*seen):
        assert first == second


def test_a_user_with_many_rows_is_one_record():
    data = rows(24, users=6)
    assert [len(unit) for unit in by_unit(data, rows_per_unit=3)] == [3] * 6
    settings = replace(SETTINGS, rows_per_unit=4, expected_batch=3.0)
    run = PrivateRun(model(), data, settings, ledger(settings, records=6), source=SeededSource(0))
    assert run.q == 0.5 and dp_sft(run).steps == 6


def test_counts_are_paid_for_with_more_noise_on_the_gradient():
    settings = replace(SETTINGS, counts_share=0.1)
    run = PrivateRun(model(), rows(), settings, ledger(), controller=Quantile(Knobs(thresholds=(0.25,) * 4)),
                     source=SeededSource(0))  # fmt: skip
    run.step()
    planned = run.ledger.terms.sigmas[0][0]
    release = run.optimizer.release
    got = release.deviations[0] / math.sqrt(4 * 0.25**2)
    assert got == pytest.approx(planned / math.sqrt(0.9)) and len(release.below) == 4
    assert run.knobs.thresholds != (0.25,) * 4


def test_the_adaptive_mode_raises_what_a_greedy_controller_asks_for():
    greedy = Constant(Knobs(thresholds=(0.25,) * 4, sigma=0.3))
    settings = replace(SETTINGS, steps=40)
    run = PrivateRun(model(), rows(), settings, ledger(settings, mode="adaptive", target=3.0), controller=greedy,
                     source=SeededSource(0))  # fmt: skip
    dp_sft(run)
    assert run.ledger.share <= 1.0
    assert all(sigma > 0.3 for sigma, _, _ in run.ledger.history)


def test_metrics_hold_public_and_released_numbers_only():
    run = PrivateRun(model(), rows(), SETTINGS, ledger(), source=SeededSource(0), public=rows(2, seed=4))
    metrics = dp_sft(run).metrics[0]
    assert set(metrics) == {"step", "lr", "privacy/sigma", "privacy/spent", "privacy/threshold_mean",
                            "privacy/update_norm", "privacy/probe_loss"}  # fmt: skip


def test_a_guarantee_is_refused_where_none_holds():
    with pytest.raises(ConfigError, match="draws from a seed that is known"):
        PrivateRun(model(), rows(), SETTINGS, ledger(guarantee=True), source=SeededSource(0))
    with pytest.raises(ConfigError, match="shows the controller raw statistics"):
        PrivateRun(model(), rows(), replace(SETTINGS, raw_state=True), ledger(guarantee=True))
    with pytest.raises(ConfigError, match="promises a sampling rate"):
        PrivateRun(model(), rows(20), SETTINGS, ledger(guarantee=True))


def test_raw_state_shows_norms_and_claims_nothing():
    views = []

    class Looks(Random):
        def observe(self, view):
            views.append(view)
            return super().observe(view)

    start = Knobs(thresholds=(0.25,) * 4)
    run = PrivateRun(model(), rows(), replace(SETTINGS, raw_state=True), ledger(), source=SeededSource(0),
                     controller=Looks(start, low=0.1, high=1.0, seed=0))  # fmt: skip
    outcome = dp_sft(run)
    assert any(len(view.groups("raw_norms")) == 4 for view in views) and outcome.epsilon == math.inf


def test_losses_that_couple_records_are_refused():
    run = PrivateRun(model(), rows(), SETTINGS, ledger(), source=SeededSource(0))
    with pytest.raises(ConfigError, match="needs one loss a record"):
        run.optimizer.backward(row_losses(run.model, rows(3)).mean())


def test_poisson_draws_each_record_by_itself():
    source = SecureSource()
    sizes = [len(poisson_sample(source, records=200, q=0.1, step=step)) for step in range(400)]
    mean = sum(sizes) / 400
    variance = sum((size - mean) ** 2 for size in sizes) / 399
    assert mean == pytest.approx(20, abs=1.2) and variance == pytest.approx(18, rel=0.35)
    assert poisson_sample(source, records=50, q=1.0, step=0) == list(range(50))
    assert poisson_sample(source, records=50, q=0.0, step=0) == []


def test_secure_noise_is_standard_normal_and_never_repeats():
    source = SecureSource()
    first, second = (source.normal(200_001, step=0, name="x").double() for _ in range(2))
    assert not torch.equal(first, second)
    assert float(first.mean()) == pytest.approx(0, abs=0.012)
    assert float(first.var()) == pytest.approx(1, abs=0.02)
    assert float((first**4).mean()) == pytest.approx(3, abs=0.15)
    assert abs(float((first[:-1] * first[1:]).mean())) < 0.012
    assert abs(float((first * second).mean())) < 0.012


def test_seeded_noise_is_named_by_step_and_purpose():
    source = SeededSource(1)
    draw = source.normal(5, step=2, name="a")
    assert torch.equal(draw, SeededSource(1).normal(5, step=2, name="a"))
    for other in (
        source.normal(5, step=3, name="a"),
        source.normal(5, step=2, name="b"),
        SeededSource(2).normal(5, step=2, name="a"),
    ):
        assert not torch.equal(draw, other)


def test_a_learning_controller_steers_a_run_and_goes_on_after_a_restart():
    from llmrl.control.config import SACConfig

    settings = replace(SETTINGS, steps=10)

    def fresh():
        small = SACConfig(hidden=(8,), warmup=3, batch_size=2, updates_per_step=1)
        start = Knobs(thresholds=(0.25,) * 4)
        steered = soft_actor_critic(start, low=0.05, high=5.0, change=0.5, seed=1, config=small)
        return PrivateRun(model(), rows(), settings, ledger(settings), controller=steered, source=SeededSource(5),
                          public=rows(3, seed=9))  # fmt: skip

    whole, first = fresh(), fresh()
    outcome = dp_sft(whole)
    kept = [first.step() for _ in range(6)]
    tensors, plain = first.state()
    second = fresh()
    second.ledger = Ledger(first.ledger.terms, first.ledger.entries)
    second.load({name: tensor.clone() for name, tensor in tensors.items()}, plain)
    kept += dp_sft(second).metrics
    assert kept == outcome.metrics
    limits = [metrics["privacy/threshold_mean"] for metrics in kept]
    assert len(set(limits)) > 5 and all(0.05 <= 2 * limit <= 5.0 for limit in limits)
    assert all(abs(math.log(b / a)) <= 1.001 for a, b in pairwise(limits))
