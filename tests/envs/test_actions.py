"""The rule that reads an action: literals by hand; the definition by substrings is judged in tests/test_conformance.py."""

import doctest
import time

import pytest

from llmrl.envs import actions
from llmrl.envs.actions import parse_action


def test_the_examples_in_the_docstring_hold():
    assert doctest.testmod(actions).failed == 0


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('{"action": 0}', 0),
        ('I see a box.\n```json\n{"thoughts": "left of me", "action": 2}\n```', 2),
        ('{"thoughts": "a brace } in a string \\" and {", "action": 1}', 1),
        ('{"thoughts": {"why": "near"}, "action": 1}', 1),
        ('{"action": 1} {"action": 2}', 1),  # what is said first
        ('{ broken "action" {"action": 2}', 2),  # the outer brace never closes
        ('{"action": " 2 "}', 2),
        ('{"action": 3}', None),
        ('{"action": -1}', None),
        ('{"action": true}', None),
        ('{"action": 1.0}', None),
        ('{"action": null}', None),
        ('{"action": [1]}', None),
        ('{"action": "two"}', None),
        ('{"action": "²"}', None),
        ('{"act": 1}', None),
        ('{"thoughts": {"action": 1}}', None),  # not a key of the object itself
        ("{'action': 1}", None),  # Python, not JSON
        ('{left} {"action": 1}', None),  # the first balanced object is no JSON
        ('{"action": 1', None),
        ('["action", 1]', None),
        ("1", None),
        ("", None),
    ],
)
def test_actions_by_hand(text, action):
    assert parse_action(text, 3) == action


def test_nothing_is_evaluated(tmp_path):
    mark = tmp_path / "mark"
    attack = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for text in (f'{{"action": {attack}}}', f'{{"action": "{attack}"}}', f"{{'action': {attack} or 1}}"):
        assert parse_action(text, 3) is None
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "{" * 20_000,
        "{" * 20_000 + "}" * 20_000,
        '{"action": ' + "[" * 20_000 + "]" * 20_000 + "}",
        '{"action": ' + "9" * 20_000 + "}",
        '{"action": "' + "9" * 20_000 + '"}',
    ],
)
def test_hostile_text_costs_little_and_is_no_action(text):
    start = time.monotonic()
    assert parse_action(text, 3) is None
    assert time.monotonic() - start < 5
