"""The simulation against steps worked out by hand, and against what must hold for every split."""

import pytest
import simpy

from llmrl.errors import ConfigError
from llmrl.scale.cores import SharedCores
from llmrl.scale.costs import Costs
from llmrl.scale.simulate import Layout, Load, simulate
from llmrl.scale.sweep import allreduce_s, best_of_each_mode, layouts, on_shared_cores, sweep
from llmrl.scale.workload import Group, decode_steps, scaled

GROUP = Group(prompt=5, lengths=(10, 20), trained=35)  # every prompt of the hand-worked runs
COSTS = Costs(
    generate_step_s=0.1,
    generate_token_s=0.01,
    update_s=1.0,
    update_token_s=0.02,
    reward_s=0.05,
    sync_s=0.3,
    other_s=0.2,
)
# two prompts, four requests at once: ten steps of four tokens, then ten of two
GENERATE = 10 * (0.1 + 4 * 0.01) + 10 * (0.1 + 2 * 0.01)
UPDATE = 4 * 0.05 + 1.0 + 0.02 * 70
LOAD = Load(prompts_per_step=2, slots=8)


def steps_of(layout: Layout, load: Load = LOAD, costs: Costs = COSTS) -> float:
    return simulate(layout, costs, load, [GROUP], steps=10).step_s


def test_one_worker_takes_turns():
    found = simulate(Layout(trainers=1, engines=1, shared=True), COSTS, LOAD, [GROUP], steps=10)
    assert found.step_s == pytest.approx(GENERATE + UPDATE + 0.3 + 0.2)
    assert found.tokens_per_s == pytest.approx(60 / found.step_s)
    assert found.behind == 0


def test_fewer_slots_than_requests_make_waves():
    # two slots: 10 and 20 start, the third (10) follows at 10, the fourth (20) at 20: 40 steps, of which 20 + 0 alone
    both, alone = 0.1 + 2 * 0.01, 0.1 + 0.01
    expected = 20 * both + 20 * alone
    assert decode_steps([10, 20, 10, 20], 2) == 40
    assert steps_of(Layout(trainers=1, engines=1, shared=True), Load(prompts_per_step=2, slots=2)) == pytest.approx(
        expected + UPDATE + 0.5
    )


def test_two_workers_share_the_prompts_and_exchange_gradients():
    half = 10 * (0.1 + 2 * 0.01) + 10 * (0.1 + 0.01)
    update = 2 * 0.05 + 1.0 + 0.02 * 35
    load = Load(prompts_per_step=2, slots=8, allreduce_s=0.7)
    layout = Layout(trainers=2, engines=2, shared=True)
    assert steps_of(layout, load) == pytest.approx(half + update + 0.7 + 0.3 + 0.2)


def test_one_step_off_hides_the_shorter_side():
    found = simulate(Layout(trainers=1, engines=1, shared=False, staleness=1), COSTS, LOAD, [GROUP], steps=20)
    assert found.step_s == pytest.approx(max(GENERATE + 0.3, UPDATE + 0.2), rel=0.02)
    assert found.behind == pytest.approx(1.0)


def test_apart_without_staleness_gains_nothing_over_turns():
    apart = steps_of(Layout(trainers=1, engines=1, shared=False))
    assert apart == pytest.approx(steps_of(Layout(trainers=1, engines=1, shared=True)))


def test_a_queue_evens_out_batches_of_unequal_length():
    groups = [GROUP, Group(prompt=5, lengths=(10, 150), trained=35)]
    found = [
        simulate(Layout(trainers=1, engines=1, shared=False, staleness=k), COSTS, LOAD, groups, steps=60)
        for k in (0, 1, 4)
    ]
    assert found[0].step_s > found[1].step_s > found[2].step_s * 0.999
    assert [round(result.behind) for result in found] == [0, 1, 4]


def test_two_workers_on_cores_that_both_want_take_twice_as_long_for_what_speeds_up():
    costs = Costs(generate_token_s=0.01, cores=2)
    load = Load(prompts_per_step=2, slots=8)
    alone = steps_of(on_shared_cores(1, cores=2, bound=False), load, costs)
    both = steps_of(on_shared_cores(2, cores=2, bound=False), load, costs)
    bound = steps_of(on_shared_cores(2, cores=2, bound=True), load, costs)
    assert (alone, both, bound) == pytest.approx((0.6, 0.6, 0.6))  # half of the work each, at half the speed


def test_two_workers_gain_what_one_cannot_use_of_two_cores():
    costs = Costs(generate_token_s=0.01, generate_serial=1.0, cores=2)  # a second core does not help at all
    load = Load(prompts_per_step=2, slots=8)
    assert steps_of(on_shared_cores(1, cores=2, bound=True), load, costs) == pytest.approx(0.6)
    assert steps_of(on_shared_cores(2, cores=2, bound=True), load, costs) == pytest.approx(0.3)


def test_work_on_shared_cores_slows_down_only_while_others_want_them():
    env = simpy.Environment()
    cores, ends = SharedCores(env, 2), {}

    def worker(name, begin, seconds, wants):
        yield env.timeout(begin)
        yield from cores.work(seconds, wants=wants, serial=0.0)
        ends[name] = env.now

    env.process(worker("first", 0, 4, 2))
    env.process(worker("second", 1, 1, 2))
    env.run()
    # first: 1 s alone, then 2 s at half speed while second does its 1 s of work, then the last 2 s alone
    assert ends == pytest.approx({"second": 3.0, "first": 5.0})


def test_one_core_each_is_no_contention():
    env = simpy.Environment()
    cores, ends = SharedCores(env, 2), []

    def worker(seconds):
        yield from cores.work(seconds, wants=1, serial=0.3)
        ends.append(env.now)

    env.process(worker(1.0))
    env.process(worker(2.5))
    env.run()
    assert ends == pytest.approx([1.0, 2.5])


def test_every_split_is_tried_and_the_best_is_first():
    found = layouts(4, prompts_per_step=12, minibatches=1, max_staleness=3)
    assert {(x.trainers, x.engines, x.staleness) for x in found if not x.shared} == {
        (t, 4 - t, k) for t in (1, 2, 3) for k in (0, 1, 3)
    }
    results = sweep(found, COSTS, Load(prompts_per_step=12, slots=8), [GROUP], steps=6)
    assert [r.step_s for r in results] == sorted(r.step_s for r in results)
    best = best_of_each_mode(results)
    assert best[0] is results[0] and len({r.layout.mode for r in best}) == len(best) == 4


def test_trainers_that_cannot_share_the_prompts_are_left_out_and_none_is_an_error():
    assert {x.trainers for x in layouts(4, prompts_per_step=8, minibatches=2, max_staleness=1)} == {1, 2, 4}
    with pytest.raises(ConfigError, match="cannot be shared by 4 workers"):
        layouts(4, prompts_per_step=3, minibatches=2, max_staleness=1)


def test_a_ring_sends_twice_the_others_shares():
    assert allreduce_s(10**9, 4, bytes_per_s=10e9) == pytest.approx(4 * 2 * 3 / 4 / 10)
    assert allreduce_s(10**9, 1, bytes_per_s=10e9) == allreduce_s(10**9, 4, bytes_per_s=None) == 0


def test_the_same_question_has_the_same_answer():
    layout = Layout(trainers=1, engines=2, shared=False, staleness=2)
    groups = [GROUP, Group(prompt=9, lengths=(3, 200), trained=0)]
    assert simulate(layout, COSTS, LOAD, groups) == simulate(layout, COSTS, LOAD, groups)


def test_stretched_completions_keep_to_the_longest():
    (group,) = scaled([GROUP], 4.0, longest=60)
    assert group == Group(prompt=5, lengths=(40, 60), trained=125)
