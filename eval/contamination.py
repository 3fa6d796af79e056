"""Do training prompts hold benchmark questions? Overlap of word n-grams, as the GPT-3 and Llama reports measure it.

A benchmark question is flagged if at least `threshold` of its n-grams occur in the training texts, or, where it is
shorter than n words, if it occurs as a whole. Words are lower-cased; punctuation does not count, numbers do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NGRAM = 13
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A flagged question: `share` of its n-grams that training texts hold, and the id of one such text."""

    question: str
    share: float
    training: str


def words(text: str) -> tuple[str, ...]:
    """Lower-cased words and numbers.

    >>> words("Find $x+2$, Ann!")
    ('find', 'x', '2', 'ann')
    """
    return tuple(_WORD.findall(text.lower()))


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of n words; of a shorter text the whole (nothing of an empty one)."""
    if tokens:
        for start in range(max(1, len(tokens) - n + 1)):
            yield tuple(tokens[start : start + n])


def find_overlaps(
    questions: Iterable[tuple[str, str]],
    training: Iterable[tuple[str, str]],
    *,
    n: int = NGRAM,
    threshold: float = 0.5,
) -> list[Overlap]:
    """Flagged questions, worst first. Both arguments are (id, text) pairs; training texts are read once, as a stream.

    ValueError for n < 1 or a threshold outside (0, 1].
    """
    if n < 1:
        raise ValueError(f"n={n}; an n-gram has at least one word")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold:g}; it must be above 0 and at most 1")
    grams = {name: frozenset(ngrams(words(text), n)) for name, text in questions}
    wanted = {gram for found in grams.values() for gram in found}
    short = {len(gram) for gram in wanted if len(gram) < n}
    holders: dict[tuple[str, ...], str] = {}
    for name, text in training:
        tokens = words(text)
        for size in (n, *short):
            for gram in ngrams(tokens, size):
                if gram in wanted:
                    holders.setdefault(gram, name)
    found = []
    for question, own in grams.items():
        hits = [gram for gram in own if gram in holders]
        if hits and len(hits) / len(own) >= threshold:
            sources = [holders[gram] for gram in hits]
            found.append(
                Overlap(question=question, share=len(hits) / len(own), training=max(set(sources), key=sources.count))
            )
    return sorted(found, key=lambda overlap: (-overlap.share, overlap.question))
