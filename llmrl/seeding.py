"""Keyed random draws: every draw is named by what it is for, so that none depends on how many came before it.

There is no global random state anywhere in llmrl. `key(run_seed, step, "sample", i)` is the same number in every
process and every Python version, which is what makes a resumed run equal to one that was never stopped.
"""

from __future__ import annotations

import hashlib
import random

Part = str | int | float | bool | None

_PLAIN = (str, int, float, bool, type(None))


def key(*parts: Part) -> int:
    """A 63-bit number that depends on every part and on their order: a seed for torch, numpy, vLLM or `random`.

    Parts are told apart by type (1, 1.0, True and "1" give four keys). Raises TypeError for anything whose `repr` might
    change between versions (numpy numbers, tuples, objects): convert it first.

    >>> key(0, 17, "sample", 3) == key(0, 17, "sample", 3), key(1, 23) == key(12, 3)
    (True, False)
    """
    for part in parts:
        if type(part) not in _PLAIN:
            raise TypeError(
                f"a random key is made of str, int, float, bool and None, not {type(part).__name__}: {part!r}"
            )
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: Part) -> random.Random:
    """A fresh `random.Random` seeded with `key(*parts)`."""
    return random.Random(key(*parts))
