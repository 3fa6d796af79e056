"""The one rule that reads an action out of what a model wrote: data in, a number or None out, nothing is evaluated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

MOST_STARTS = 64  # opening braces tried, so that a text of nothing but braces costs no more than its length times this


def parse_action(text: str, n_actions: int) -> int | None:
    """The action in the first balanced {...} of `text`: 0 .. n_actions - 1, or None if there is no valid one.

    The object must be JSON and its key "action" a whole number in range (a string of digits counts: models write
    `"action": "2"`). Braces inside JSON strings do not count. Later objects are not looked at: what a text says first
    is its action. An invalid action is None, never a default: the environment decides what that costs.

    >>> parse_action('I go left. {"thoughts": "a {wall}", "action": 2}', 4)
    2
    >>> parse_action('{"action": __import__("os").getpid()}', 4) is None
    True
    """
    action = _said(text)
    if isinstance(action, str) and action.strip().isascii() and action.strip().isdigit() and len(action) < 20:
        action = int(action)
    if isinstance(action, bool) or not isinstance(action, int):
        return None
    return action if 0 <= action < n_actions else None


def parse_choice(text: str, names: Sequence[str]) -> int | None:
    """As `parse_action`, where the action may also be one of `names`, whatever its case: their place in the list.

    A name that is a number means itself, not a place.

    >>> parse_choice('{"action": "Go  East"}', ["go west", "go east"]), parse_choice('{"action": 0}', ["5", "+"])
    (1, None)
    """
    action = _said(text)
    known = [name.lower() for name in names]
    if isinstance(action, str | int) and not isinstance(action, bool):
        said = " ".join(str(action).lower().split()) if not isinstance(action, str) or len(action) < 200 else ""
        if said in known:
            return known.index(said)
    return None if any(name.isdigit() for name in known) else parse_action(text, len(names))


def action_start(text: str) -> int | None:
    """Where the action begins: the place of the key "action" in the first balanced {...}; what lies before is thought.

    >>> action_start('{"thoughts": "", "action": 2}')
    17
    """
    found = _first_balanced(text)
    place = text.find('"action"', found[0], found[1]) if found is not None else -1
    return None if place < 0 else place


def _said(text: str) -> Any:
    """What the first balanced {...} of `text` has under "action"; None if it is no JSON or has nothing there."""
    found = _first_balanced(text)
    if found is None:
        return None
    try:
        return json.loads(text[slice(*found)]).get("action")
    except (ValueError, RecursionError):  # no JSON, a number of too many digits, nested too deep
        return None


def _first_balanced(text: str) -> tuple[int, int] | None:
    """(start, end) of the first {...} whose braces close, strings left out of the count; the outermost one."""
    starts = (i for i, character in enumerate(text) if character == "{")
    for start in islice(starts, MOST_STARTS):
        depth, quoted, escaped = 0, False, False
        for i in range(start, len(text)):
            character = text[i]
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = quoted
            elif character == '"':
                quoted = not quoted
            elif not quoted and character in "{}":
                depth += 1 if character == "{" else -1
                if depth == 0:
                    return start, i + 1
    return None
