"""Did you mean …? The one place that looks for a known name near a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

CUTOFF = 0.6  # of difflib's ratio; below it a suggestion is more often wrong than right


def closest(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` that is nearest to `name` (never `name` itself), or None if none is near.

    Case is ignored, and a swap of letters is nearest.

    >>> closest("gpro", ["grpo", "gspo"]), closest("GRPO", ["grpo"]), closest("grpo", ["grpo"])
    ('grpo', 'grpo', None)
    """
    others = {word.casefold(): word for word in known if word != name}
    typed = name.casefold()
    swapped = [word for word in others if sorted(word) == sorted(typed)]
    found = swapped or get_close_matches(typed, others, n=1, cutoff=CUTOFF)
    return others[found[0]] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?", or the list of what is known if nothing is near.

    >>> nearest("gpro", ["grpo", "gspo"]), nearest("sleep", ["grpo", "gspo"])
    ("did you mean 'grpo'?", 'known: grpo, gspo')
    """
    words = list(known)
    close = closest(name, words)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(words))}"
