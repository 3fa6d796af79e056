"""The recipe's `controller` section: what is refused, what a controller is shown and paid, and how it goes on."""

import math

import pytest
import torch

from llmrl.algos.build import build_algorithm
from llmrl.control.adaptive_kl import AdaptiveKL
from llmrl.control.build import described, knobs_of, make_controller
from llmrl.control.knob import Knob
from llmrl.control.pacing import Checked, Paced
from llmrl.errors import ConfigError
from llmrl.settings.load import parse_recipe

CLIP = {"clip_high": {"low": 0.1, "high": 0.5}}


def made(controller, **sections):
    """(recipe, algorithm) of a run with a `controller` section."""
    algo = sections.pop("algo", {"name": "grpo"})
    recipe = parse_recipe(
        {
            "name": "run", "model": {"path": "smollm2-135m", "max_length": 64}, "data": {"source": "addition"},
            "reward": {"r": {"name": "a:b"}}, "algo": algo, "train": {"steps": 8, "lr": 1e-5}, "controller": controller,
            **sections,
        }
    )  # fmt: skip
    return recipe, build_algorithm(recipe.algo)


@pytest.mark.parametrize(
    ("controller", "says"),
    [
        ({"name": "sca", "knobs": CLIP}, "'sca' is no controller; did you mean 'sac'"),
        ({"name": "sac", "knbos": CLIP}, "controller.knbos: unknown key; did you mean 'knobs'"),
        ({"name": "sac", "knobs": {"clip_high": {"lwo": 0.1, "high": 1}}}, "lwo: unknown key; did you mean 'low'"),
        ({"name": "sac", "knobs": {"clip_hihg": {"low": 0.1, "high": 1}}}, "no such number; did you mean 'clip_high'"),
        ({"name": "sac", "knobs": CLIP, "args": {"warmpu": 3}}, "no such setting; did you mean 'warmup'"),
        ({"name": "bandit", "knobs": CLIP, "args": {"arsm": 3}}, "Bandit has no such setting; did you mean 'arms'"),
        ({"name": "constant", "knobs": CLIP, "args": {"arms": 3}}, "it has none"),
        ({"name": "sac", "knobs": CLIP, "args": {"warmup": "soon"}}, "args.warmup: must be a whole number"),
        ({"name": "sac", "knobs": CLIP, "args": {"risk": 0.5}}, "risk needs distributional critics"),
        ({"name": "sac"}, "knobs is empty"),
        ({"name": "quantile", "knobs": CLIP}, "the noised counts of private training"),
        ({"name": "adaptive_kl", "knobs": CLIP}, "controller.knobs: adaptive_kl sets kl_coef by kl_ref"),
        ({"name": "adaptive_kl", "args": {"target": 0.1}}, "set algo.kl_coef above 0"),
        ({"name": "sac", "knobs": {"clip_high": {"low": 0.3, "high": 0.5}}}, "default=0.28"),
        ({"name": "sac", "knobs": {"clip_low": {"low": 0.1, "high": 1.5}}}, "set it between 0 and 1"),
        ({"name": "sac", "knobs": {"entropy_coef": {"low": 0.0, "high": 0.1}}}, "needs other things at 0.1 than at 0.0"),
        ({"name": "sac", "knobs": {"dual_clip": {"low": 2, "high": 3}}}, "dual_clip=None is no number to begin with"),
        ({"name": "sac", "knobs": {"lr": {"low": 0, "high": 1}}}, "lr=0.0 makes no step"),
        ({"name": "tests.control.test_build:Nobody", "knobs": CLIP}, "has no 'Nobody'"),
        ({"name": "tests.control.test_build:Silent", "knobs": CLIP}, "it has no observe"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_loaded(controller, says):
    with pytest.raises(ConfigError, match=says):
        make_controller(*made(controller))


@pytest.mark.parametrize(
    "sections",
    [{"rollout": {"max_staleness": 1}}, {"rollout": {"stored": "x.jsonl"}}, {"algo": {"name": "sft"}}],
    ids=str,
)
def test_a_temperature_is_set_only_where_the_policy_that_trains_draws_at_it(sections):
    recipe, algo = made({"name": "random", "knobs": {"temperature": {"low": 0.5, "high": 1.5}}}, **sections)
    with pytest.raises(ConfigError, match="samples of the very policy that trains"):
        knobs_of(recipe, algo)


def test_names_that_moved_say_where_they_are_now():
    with pytest.raises(ConfigError, match="adaptive_kl"):
        build_algorithm({"name": "ppo", "kl_coef": 0.1, "kl_target": 0.1})
    with pytest.raises(ConfigError, match=r"controller=sac is controller\.name"):
        made(None, algo={"name": "sft"}, privacy={"epsilon": 1, "delta": 1e-5, "controller": "sac"})


def test_knobs_begin_at_the_recipes_values_and_a_plan_says_what_happens():
    wide = {"lr": {"low": 1e-6, "high": 1e-4, "log": True}, "temperature": {"low": 0.5, "high": 2.0, "max_change": 0.5}}
    controller = {"name": "dsac_t", "knobs": CLIP | wide, "every": 2, "observes": ["progress", "loss"]}
    recipe, algo = made(controller, rollout={"temperature": 1.1})
    knobs = knobs_of(recipe, algo)
    assert [(k.name, k.default, k.log, k.max_change) for k in knobs] == [
        ("clip_high", 0.28, False, 1.0), ("lr", 1e-5, True, 1.0), ("temperature", 1.1, False, 0.5)
    ]  # fmt: skip
    assert described(recipe.controller, knobs) == (
        "dsac_t sets clip_high from 0.28 within 0.1 to 0.5, lr from 1e-05 within 1e-06 to 0.0001, temperature from 1.1 "
        "within 0.5 to 2, every 2 steps; sees progress, loss; is paid the change of reward/mean"
    )


def test_an_rl_stage_has_a_controller_of_its_own_or_none():
    own = {"name": "random", "knobs": {"beta": {"low": 0.5, "high": 2.0}}}
    train = {"steps": 2}
    recipe, _ = made(
        {"name": "sac", "knobs": CLIP},
        stages=[
            {"kind": "rl", "name": "one", "algo": {"name": "pacs"}, "train": train, "controller": own},
            {"kind": "rl", "name": "two", "train": train},
            {"kind": "rl"},
        ],
    )
    one, two = (recipe.of_stage(stage) for stage in recipe.before)
    assert one.controller.name == "random" and list(one.controller.knobs) == ["beta"] and two.controller is None


class Silent:
    def __init__(self, *, knobs, seed):
        pass


class Watches:
    """Keeps what it was shown; sets what it was told to."""

    def __init__(self, *, knobs=(), seed=0, sets: float = 0.3):
        self.seen, self.sets = [], {"clip_high": sets}

    def observe(self, view):
        self.seen.append(dict(view))
        return self.sets

    def state(self):
        return {"count": torch.tensor(len(self.seen))}

    def load(self, state):
        self.seen = [{}] * int(state["count"])


KNOB = Knob(name="clip_high", low=0.1, high=0.5, default=0.28)


def paced(inner=None, **how):
    settings = {"fields": ("loss", "kl"), "reward": "reward/mean", "change": True, "every": 2, **how}
    return Paced(inner or Watches(), [KNOB], **settings)


def steps(*rows):
    """Metrics of steps, from (loss, kl, reward)."""
    return [{"loss": loss, "kl": kl, "reward/mean": reward, "tokens/trained": 9.0} for loss, kl, reward in rows]


def test_it_sees_means_and_is_paid_the_change_since_the_last_decision():
    inner = Watches()
    held = paced(inner)
    found = [held.observe(row) for row in steps((1, 0, 0.2), (3, 2, 0.4), (5, 5, 1), (5, 7, 2))]
    assert [knobs["clip_high"] for knobs in found] == [0.28, 0.3, 0.3, 0.3]
    assert inner.seen == [
        {"loss": 2.0, "kl": 1.0, "reward": 0.0},
        {"loss": 5.0, "kl": 6.0, "reward": pytest.approx(1.2)},
    ]


def test_less_is_better_behind_a_minus_and_the_level_may_pay():
    inner = Watches()
    held = paced(inner, reward="-loss", change=False, every=1)
    for row in steps((2, 0, 0), (3, 0, 0)):
        held.observe(row)
    assert [view["reward"] for view in inner.seen] == [-2.0, -3.0]


def test_what_a_step_lacks_is_left_out_of_the_mean_and_pays_nothing():
    inner = Watches()
    held = paced(inner, every=1)
    for row in [
        *steps((1, 1, 0.5)),
        {"loss": math.nan, "reward/mean": math.nan, "tokens/trained": 0.0},
        *steps((2, 2, 0.75)),
    ]:
        held.observe(row)
    assert math.isnan(inner.seen[1]["kl"]) and math.isnan(inner.seen[1]["loss"]) and math.isnan(inner.seen[1]["reward"])
    assert inner.seen[2] == {"loss": 2.0, "kl": 2.0, "reward": 0.25}  # since the last level that was known


def test_a_name_that_is_no_metric_is_refused_at_the_first_step_that_trained():
    held = paced(fields=("approx_lk",))
    held.observe({"tokens/trained": 0.0})
    with pytest.raises(ConfigError, match="'approx_lk' is no metric of this run; did you mean 'approx_kl'"):
        held.observe({"approx_kl": 0.1, "reward/mean": 0.0, "tokens/trained": 9.0})


@pytest.mark.parametrize("stop", range(1, 8))
@pytest.mark.parametrize("name", ["random", "bandit", "sac", "dsac_t"])
def test_it_goes_on_bit_for_bit_in_the_middle_of_an_interval_too(name, stop):
    args = {"hidden": [8], "warmup": 1, "batch_size": 4} if name in ("sac", "dsac_t") else {}
    how = {"name": name, "knobs": CLIP, "every": 2, "observes": ["progress", "loss"], "args": args}
    draw = torch.Generator().manual_seed(0)
    rows = [dict(zip(("progress", "loss", "reward/mean"), torch.rand(3, generator=draw).tolist())) for _ in range(9)]
    whole, first, second = (make_controller(*made(how)) for _ in range(3))
    expected = [whole.observe(row) for row in rows]
    found = [first.observe(row) for row in rows[:stop]]
    second.load({key: x.clone() for key, x in first.state().items()})
    assert found + [second.observe(row) for row in rows[stop:]] == expected
    assert len({knobs["clip_high"] for knobs in expected}) > 2


def test_a_class_of_ones_own_is_held_to_the_recipes_knobs():
    own = {"name": "tests.control.test_build:Watches", "knobs": CLIP, "observes": ["loss"], "args": {"sets": 0.4}}
    held = make_controller(*made(own))
    assert held.observe({"loss": 1.0, "reward/mean": 0.0}) == {"clip_high": 0.4}
    with pytest.raises(ConfigError, match="'clip_high', which is no knob; did you mean 'clip_higher'"):
        Checked(Watches(), [Knob(name="clip_higher", low=0.1, high=0.5, default=0.2)]).observe({})
    for value in (0.6, math.nan):
        with pytest.raises(ConfigError, match=r"outside 0\.1 to 0\.5"):
            Checked(Watches(sets=value), [KNOB]).observe({})


@pytest.mark.parametrize(
    ("measured", "coefficient"),
    [(0.02, 0.1), (0.021, 0.1 * (1 + 0.5 * 0.05)), (9.0, 0.1 * 1.1), (-1.0, 0.1 * 0.9), (math.nan, 0.1)],
)
def test_the_kl_weight_follows_the_measured_kl_as_in_the_paper(measured, coefficient):
    recipe, algo = made(
        {"name": "adaptive_kl", "args": {"target": 0.02, "rate": 0.5}}, algo={"name": "ppo", "kl_coef": 0.1}
    )
    held = make_controller(recipe, algo)
    assert held.observe({"kl_ref": measured}) == {"kl_coef": pytest.approx(coefficient)}
    again = AdaptiveKL(target=0.02, rate=0.5, coef=0.7)
    again.load(held.state())
    assert again.observe({"kl_ref": 0.03}) == held.observe({"kl_ref": 0.03})
    assert held.observe({}) == again.observe({})  # no row trained: nothing is known


@pytest.mark.parametrize("wrong", [{"target": 0.0}, {"target": math.nan}, {"target": 0.1, "rate": 9.0}])
def test_an_adaptive_kl_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigError, match="set target above 0"):
        AdaptiveKL(coef=0.1, **wrong)
