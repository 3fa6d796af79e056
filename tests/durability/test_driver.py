"""The moments at which runs are killed exist: a renamed function would leave its moment out in silence."""

import importlib

import pytest

from tests.durability.driver import POINTS


@pytest.mark.parametrize("point", POINTS)
def test_every_moment_names_a_function(point):
    when, target, number = point.split()
    module, _, path = target.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    assert callable(found) and when in ("before", "after", "torn") and int(number) > 0
