"""Do training prompts hold benchmark questions? Overlap of word n-grams, as the GPT-3 and Llama reports measure it.

A benchmark question is flagged if at least `threshold` of its n-grams occur in the training texts, or, where it is
shorter than n words, if it occurs as a whole. Words are lower-cased; punctuation does not count, numbers do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmrl.data.files import read_files
from llmrl.data.rows import make_row
from llmrl.errors import EvalError
from llmrl.eval.load import load_questions
from llmrl.eval.tasks import find_task

NGRAM = 13
BARE = ("problem", "prompt", "code")  # columns that hold a question without its instructions
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContamination:
    """What a check found for one task."""

    task: str
    questions: int
    training: int
    overlaps: tuple[Overlap, ...]


def check_tasks(
    names: Sequence[str],
    training: str,
    *,
    column: str | None = None,
    data_dir: Path | None = None,
    n: int = NGRAM,
    threshold: float = 0.5,
) -> list[TaskContamination]:
    """Check tasks against a training file (.jsonl, .json, .parquet; globs too). EvalError or DataError for bad data."""
    if not names:
        raise EvalError("no task; give --tasks, for example --tasks gsm8k,math500")
    columns = {"prompt": column} if column else {}
    texts = []
    for place, default_id, record in read_files(training):
        row = make_row(record, columns=columns, origin=place, default_id=default_id)
        text = row.prompt if isinstance(row.prompt, str) else "\n".join(turn["content"] for turn in row.prompt)
        texts.append((place, text))
    found = []
    for name in names:
        task = find_task(name)
        asked = load_questions(task, data_dir=data_dir).questions
        # The bare question: the template's own words are in every prompt and would count as overlap.
        questions = [
            (q.id, str(next((q.columns[c] for c in BARE if c in q.columns), task.template.format(**q.columns))))
            for q in asked
        ]
        try:
            overlaps = find_overlaps(questions, texts, n=n, threshold=threshold)
        except ValueError as error:
            raise EvalError(str(error)) from error
        found.append(
            TaskContamination(task=task.name, questions=len(asked), training=len(texts), overlaps=tuple(overlaps))
        )
    return found
