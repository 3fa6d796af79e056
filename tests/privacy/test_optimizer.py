"""Private steps by hand: the optimizer, its stream and its controller, without the loop around them."""

import math
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmrl.control.config import SACConfig
from llmrl.control.controllers import KnobController
from llmrl.control.knob import Knob
from llmrl.control.learner import Learner
from llmrl.errors import ConfigError
from llmrl.privacy.controllers import FIELDS, Quantile
from llmrl.privacy.gradients import RecordGradients
from llmrl.privacy.groups import parameter_groups
from llmrl.privacy.ledger import BudgetSpent, Ledger, LedgerError, load_ledger, terms_of
from llmrl.privacy.optimizer import PrivateOptimizer
from llmrl.privacy.planning import plan
from llmrl.privacy.randomness import PoissonStream, SecureSource, SeededSource, poisson_sample
from llmrl.privacy.steering import Steering
from llmrl.train.updater import Updater
from llmrl.types import Prompt
from tests.tiny import random_model

RECORDS, EXPECTED, STEPS = 24, 4.0, 6
Q = EXPECTED / RECORDS


def model(seed=0):
    found = get_peft_model(random_model("llama", seed=seed), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return found


def rows(count=RECORDS, seed=0):
    return torch.randint(5, 60, (count, 9), generator=torch.Generator().manual_seed(seed))


def losses_of(net, tokens):
    logits = net(input_ids=tokens, use_cache=False).logits[:, :-1]
    return -logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0].mean(1)


def ledger(steps=STEPS, target=8.0, mode="fixed", guarantee=False):
    found = plan(target, 1e-4, q=Q, steps=steps)
    return Ledger(terms_of(found, unit="row", mode=mode, accountant="rdp", guarantee=guarantee))


class Run:
    """The loop in miniature: draw, clip by micro-batches of three, step, show the controller."""

    def __init__(self, held=None, source=None, data=None, controller=None, file=None, steps=STEPS, probe=None, **more):
        self.net, self.data = model(), rows() if data is None else data
        named = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        inner = Updater(list(named.items()), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=math.inf)
        gradients = RecordGradients(self.net, parameter_groups(list(named), "pair"))
        source, self.inner = source or SeededSource(5), inner
        settings = {"thresholds": (0.25,) * 4, "rule": "isotropic", "expected_batch": EXPECTED} | more
        self.optimizer = PrivateOptimizer(inner, gradients, named, ledger=held or ledger(), file=file, source=source,
                                          **settings)  # fmt: skip
        prompts = [(Prompt(id=str(n), tokens=(n,), text=""),) for n in range(len(self.data))]
        self.stream = PoissonStream(prompts, source=source, q=Q)
        self.steering = None
        if controller is not None:
            self.steering = Steering(self.optimizer, controller, steps=steps, interval=1, reward="linear",
                                     probe=probe or (lambda: math.nan), raw=more.get("keep_norms", False))  # fmt: skip

    def accumulate(self):
        drawn = torch.tensor([prompt.tokens[0] for prompt in self.stream.at(self.optimizer.steps)], dtype=torch.long)
        for part in drawn.split(3):
            if len(part):
                self.optimizer.backward(losses_of(self.net, self.data[part]).sum(), torch.arange(len(part)))
        return drawn

    def step(self):
        self.accumulate()
        self.optimizer.step(1e-2)
        return self.steering and self.steering.observe({})

    def all(self, steps=STEPS):
        while self.optimizer.steps < steps and self.optimizer.next_sigma() is not None:
            self.step()
        return self

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.net.parameters() if p.requires_grad])


class Watches:
    """A controller that keeps what it was shown."""

    def __init__(self, **knobs):
        self.seen, self.knobs = [], knobs

    def observe(self, view):
        self.seen.append(dict(view))
        return self.knobs

    def state(self):
        return {}

    def load(self, state):
        pass


def test_a_step_is_the_clipped_sum_of_the_drawn_records_plus_noise_over_the_expected_batch():
    run, source, reference = Run(source=SeededSource(3)), SeededSource(3), model()
    before, names = run.weights(), [name for name, p in reference.named_parameters() if p.requires_grad]
    total = {name: torch.zeros_like(dict(reference.named_parameters())[name]) for name in names}
    drawn = poisson_sample(source, records=RECORDS, q=Q, step=0)
    for index in drawn:
        reference.zero_grad()
        losses_of(reference, rows()[index : index + 1]).sum().backward()
        grads = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
        for group in parameter_groups(names, "pair"):
            size = math.sqrt(sum(float(grads[n].square().sum()) for n in group))
            for n in group:
                total[n] += grads[n] * min(1.0, 0.25 / size)
    run.step()
    deviation = run.optimizer.sigma * math.sqrt(4 * 0.25**2)
    for name in names:
        noise = source.normal(total[name].numel(), step=0, name=name).view(total[name].shape)
        torch.testing.assert_close(run.optimizer.last[name], total[name] + deviation * noise, rtol=1e-4, atol=1e-5)
    assert len(drawn) and not torch.equal(run.weights(), before)
    release = run.optimizer.release
    assert release.deviations == pytest.approx([deviation] * 4)
    assert sum(release.squared) == pytest.approx(sum(float(x.square().sum()) for x in run.optimizer.last.values()))


def test_removing_any_record_moves_the_scaled_clipped_sum_by_at_most_one():
    """In units of the noise: sum over groups of (||difference|| / s_g)^2 <= 1 / sigma^2, for any rule and thresholds."""
    for rule in ("isotropic", "equal_budget", (0.4, 0.3, 0.2, 0.1)):
        whole = Run(thresholds=(0.01, 0.1, 1.0, 10.0), rule=rule)
        gradients, limits = whole.optimizer._gradients, whole.optimizer.thresholds
        data = rows(6)
        data[2] = 7  # an unusual record
        sums = gradients.clipped(losses_of(whole.net, data).sum(), limits, torch.arange(6))[0]
        whole.step()
        sigma, deviations = whole.optimizer.sigma, whole.optimizer.release.deviations
        fresh = Run(thresholds=limits, rule=rule)
        for out in range(6):
            kept = torch.tensor([row for row in range(6) if row != out])
            fewer = fresh.optimizer._gradients.clipped(losses_of(fresh.net, data[kept]).sum(), limits, kept)[0]
            moved = sum(
                sum(float((sums[name] - fewer[name]).square().sum()) for name in group) / s**2
                for group, s in zip(gradients.groups, deviations)
            )
            assert math.sqrt(moved) * sigma <= 1 + 1e-4


def test_an_empty_batch_is_a_step_of_noise_and_is_paid_for():
    class Nobody(SeededSource):
        def uniform(self, size, *, step, name):
            return torch.ones(size, dtype=torch.float64)

    run = Run(source=Nobody(0))
    before = run.weights()
    assert len(run.accumulate()) == 0
    run.step()
    assert run.optimizer.ledger.paid == 1 and not torch.equal(run.weights(), before)
    assert torch.isfinite(run.weights()).all()


def test_steps_stop_where_the_ledger_stops_and_it_is_written_first(tmp_path):
    file = tmp_path / "ledger.json"
    run = Run(file=file).all(steps=99)
    assert run.optimizer.steps == STEPS == load_ledger(file).paid
    before = run.weights()
    run.accumulate()
    with pytest.raises(BudgetSpent):
        run.optimizer.step(1e-2)
    assert torch.equal(run.weights(), before)
    assert run.optimizer.ledger.nominal_epsilon() <= 8.0

    class Dies(SeededSource):
        def normal(self, size, *, step, name):
            assert load_ledger(file).paid == 1, "noise is drawn for a step that is not paid for on disk"
            raise RuntimeError("the process dies")

    file.unlink()
    with pytest.raises(RuntimeError, match="dies"):
        Run(source=Dies(0), file=file).step()


def test_steps_that_were_lost_are_paid_again_with_other_noise():
    run = Run(ledger(guarantee=True), source=SecureSource(), controller=Watches())
    start = {name: x.clone() for name, x in run.inner.state().items()}, run.steering.state()
    run.step(), run.step()
    lost = run.weights()
    run.inner.load(start[0]), run.steering.load(start[1])
    assert run.optimizer.steps == 0 and run.optimizer.ledger.paid == 2
    run.step(), run.step()
    assert not torch.allclose(run.weights(), lost)
    assert [(entry.first, entry.steps) for entry in run.optimizer.ledger.entries] == [(0, 2), (0, 2)]
    assert run.all().optimizer.steps == 4  # two of six were lost


def test_a_checkpoint_that_is_ahead_of_the_ledger_is_refused():
    run, other = Run(controller=Watches()), Run(controller=Watches())
    run.step()
    with pytest.raises(LedgerError, match="only 0 steps were paid for"):
        other.steering.load(run.steering.state())


def test_one_extreme_record_changes_nothing_that_a_controller_sees_given_the_same_releases():
    """The second run's releases are replaced by the first's; anything else that reached the view would differ."""
    releases, watching = [], [Watches(), Watches()]
    for extreme, controller in zip((False, True), watching):
        data = rows()
        if extreme:
            data[0] = 5
        run = Run(data=data, controller=controller, source=SeededSource(2), counts_share=0.05)
        original = run.optimizer._describe

        def describe(noised, deviations, below, original=original, run=run):
            number = run.optimizer.steps
            if len(releases) <= number:
                releases.append(original(noised, deviations, below))
            return releases[number]

        run.optimizer._describe = describe
        run.all()
    first, second = (controller.seen for controller in watching)
    assert len(first) == STEPS and all(math.isfinite(x["below/3"]) for x in first)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        assert all(x == other[name] or (math.isnan(x) and math.isnan(other[name])) for name, x in one.items())


def test_counts_are_paid_for_with_more_noise_on_the_gradient():
    run = Run(counts_share=0.1, controller=Quantile((0.25,) * 4, low=1e-3, high=10.0))
    run.step()
    release, planned = run.optimizer.release, run.optimizer.ledger.planned_sigma
    assert release.deviations[0] / math.sqrt(4 * 0.25**2) == pytest.approx(planned / math.sqrt(0.9))
    assert len(release.below) == 4 and run.optimizer.thresholds != [0.25] * 4


def test_the_adaptive_mode_raises_what_a_greedy_controller_asks_for():
    run = Run(ledger(steps=40, mode="adaptive", target=3.0), controller=Watches(sigma=0.3)).all(steps=60)
    history = run.optimizer.ledger.history
    assert run.optimizer.ledger.share <= 1.0 and history[0][0] > 0.0
    assert run.optimizer.next_sigma() is None or run.optimizer.steps == 60
    assert all(sigma > 0.3 for sigma, _, _ in history[1:])


def test_a_guarantee_is_refused_where_none_holds():
    with pytest.raises(ConfigError, match="draws from a seed that is known"):
        Run(ledger(guarantee=True))
    with pytest.raises(ConfigError, match="shows the controller raw statistics"):
        Run(ledger(guarantee=True), source=SecureSource(), keep_norms=True)


def test_raw_state_shows_norms():
    watching = Watches()
    Run(controller=watching, keep_norms=True).all()
    assert any(x["raw_norms/3"] > 0 for x in watching.seen)
    assert "raw_norms" not in Watches().seen


def test_a_step_must_be_told_which_rows_are_one_record():
    run = Run()
    with pytest.raises(ConfigError, match="which rows are one record"):
        run.optimizer.backward(losses_of(run.net, run.data[:2]).sum())


def test_a_learning_controller_steers_a_run_and_goes_on_after_a_restart():
    def fresh():
        small = SACConfig(hidden=(8,), warmup=3, batch_size=2, updates_per_step=1)
        learner = Learner(fields=len(FIELDS), knobs=1, config=small, seed=1)
        knob = Knob(name="threshold", low=0.1, high=10.0, default=1.0, log=True, max_change=0.2)
        controller = KnobController(knobs=[knob], fields=FIELDS, reward="utility", chooser=learner)
        held = ledger(steps=10)
        run = Run(held, controller=controller, steps=10)
        run.steering._probe = lambda: float(run.weights().square().sum())
        return run

    whole, first, second = fresh(), fresh(), fresh()
    steered = [whole.step() for _ in range(10)]
    kept = [first.step() for _ in range(6)]
    second.optimizer.ledger = Ledger(first.optimizer.ledger.terms, first.optimizer.ledger.entries)
    second.inner.load({name: x.clone() for name, x in first.inner.state().items()})
    second.steering.load({name: x.clone() for name, x in first.steering.state().items()})
    kept += [second.step() for _ in range(4)]
    assert kept == steered and torch.equal(second.weights(), whole.weights())
    assert second.optimizer.ledger.entries == whole.optimizer.ledger.entries
    scales = [knobs["threshold"] for knobs in kept]
    assert len(set(scales)) > 5 and all(0.1 <= scale <= 10 for scale in scales)
    assert all(abs(math.log(b / a)) <= 0.2 * math.log(100) + 1e-9 for a, b in pairwise(scales))


def test_poisson_draws_each_record_by_itself():
    source = SecureSource()
    sizes = [len(poisson_sample(source, records=200, q=0.1, step=step)) for step in range(400)]
    mean = sum(sizes) / 400
    variance = sum((size - mean) ** 2 for size in sizes) / 399
    assert mean == pytest.approx(20, abs=1.2) and variance == pytest.approx(18, rel=0.35)
    assert poisson_sample(source, records=50, q=1.0, step=0) == list(range(50))
    assert poisson_sample(source, records=50, q=0.0, step=0) == []
    prompts = [Prompt(id=str(n), tokens=(n,), text="") for n in range(3)]
    drawn = PoissonStream([(prompts[0], prompts[1]), (prompts[2],)], source=source, q=1.0).at(0)
    assert drawn == prompts


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
