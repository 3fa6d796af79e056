"""The order of prompts: epochs, straddling steps, exact resume."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrl.data.stream import PromptStream
from llmrl.errors import DataError
from llmrl.types import Prompt


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=str(number), tokens=(number,), text=f"text {number}") for number in range(count)]


def ids(stream: PromptStream, steps: range) -> list[str]:
    return [prompt.id for step in steps for prompt in stream.at(step)]


sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(sizes, st.integers(0, 5), st.booleans())
def test_every_epoch_holds_each_prompt_once_and_no_step_holds_one_twice(size, seed, shuffle):
    count, per_step = size
    stream = PromptStream(prompts(count), seed=seed, prompts_per_step=per_step, shuffle=shuffle)
    steps = range(4 * count // per_step + 1)
    assert all(len({prompt.id for prompt in stream.at(step)}) == per_step for step in steps)
    flat = ids(stream, steps)
    for epoch in range(4):
        part = flat[epoch * count : (epoch + 1) * count]
        assert sorted(part) == sorted(str(number) for number in range(count))


@given(sizes, st.integers(0, 300))
def test_a_step_does_not_depend_on_which_steps_were_asked_before(size, step):
    count, per_step = size
    used = PromptStream(prompts(count), seed=1, prompts_per_step=per_step)
    for earlier in (*range(step), step + 3, 0, step):
        used.at(earlier)
    fresh = PromptStream(prompts(count), seed=1, prompts_per_step=per_step)
    assert used.at(step) == fresh.at(step)


def test_epochs_and_seeds_differ_and_unshuffled_is_in_order():
    stream = PromptStream(prompts(64), seed=0, prompts_per_step=16)
    orders = [ids(stream, range(4 * epoch, 4 * epoch + 4)) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    other = PromptStream(prompts(64), seed=1, prompts_per_step=16)
    assert ids(other, range(4)) != orders[0]
    plain = PromptStream(prompts(5), seed=0, prompts_per_step=2, shuffle=False)
    assert ids(plain, range(5)) == ["0", "1", "2", "3", "4", "0", "1", "2", "3", "4"]


def test_the_order_of_a_seed_never_changes():
    """Stored numbers: a change here breaks the resume of every run made before it."""
    stream = PromptStream(prompts(10), seed=0, prompts_per_step=4)
    assert ids(stream, range(5)) == GOLDEN


def test_first_places_are_uniform():
    counts = [0] * 6
    for seed in range(3000):
        counts[int(PromptStream(prompts(6), seed=seed, prompts_per_step=2).at(0)[0].id)] += 1
    assert all(420 < count < 580 for count in counts)


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(DataError, match="needs 4 different prompts and there are 3"):
        PromptStream(prompts(3), seed=0, prompts_per_step=4)
    with pytest.raises(DataError, match="at least 1"):
        PromptStream(prompts(3), seed=0, prompts_per_step=0)
    twice = [*prompts(3), Prompt(id="1", tokens=(9,), text="another text")]
    with pytest.raises(DataError, match=r"prompts 1 and 3 share the id '1' .*'text 1' and 'another text'"):
        PromptStream(twice, seed=0, prompts_per_step=2)
    with pytest.raises(ValueError, match="negative"):
        PromptStream(prompts(3), seed=0, prompts_per_step=1).at(-1)


GOLDEN = ["9", "8", "0", "4", "2", "7", "6", "5", "1", "3", "4", "6", "3", "1", "9", "7", "0", "2", "8", "5"]
