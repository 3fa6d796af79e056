"""Keyed random draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrl.seeding import generator, key

parts = st.lists(
    st.one_of(st.integers(), st.text(max_size=5), st.booleans(), st.none(), st.floats(allow_nan=False)), max_size=5
)


def tagged(values: list) -> list[tuple[type, str]]:
    return [(type(value), repr(value)) for value in values]


@given(parts, parts)
def test_keys_are_equal_exactly_for_equal_parts(left, right):
    assert (key(*left) == key(*right)) == (tagged(left) == tagged(right))
    assert 0 <= key(*left) < 2**63


def test_keys_never_change():
    """Stored numbers: a change here changes every run."""
    assert [key(), key(0, "epoch", 1), key("a", 2.5, None, True)] == STORED
    assert generator(0, "x").random() == generator(0, "x").random() != generator(0, "y").random()


@pytest.mark.parametrize("part", [np.int64(3), (1, 2), b"x", object()])
def test_parts_whose_text_may_change_are_refused(part):
    with pytest.raises(TypeError, match="a random key"):
        key(0, part)


STORED = [5460801731388113703, 2031624461621881088, 3612601080879984648]
