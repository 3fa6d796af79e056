"""The one number that is new in a final sentence: what remains of a text whose last sentence has no shape of a statement."""

from __future__ import annotations

import re

from llmrl.rewards.maths.plain import fractions
from llmrl.rewards.maths.plainer import spelled_out, without_denials
from llmrl.rewards.maths.sentences import DOUBT, RELATION, marked
from llmrl.rewards.maths.spans import FIGURES
from llmrl.rewards.maths.statement import DENIAL, ITEM, text_of, with_unit
from llmrl.rewards.maths.units import numerals

# What keeps a sentence's one new number from being its statement.
_OTHER_ROLES = """
    than|at (?:most|least|best|worst|first)|over|under|between|up to|about|around|roughly|approximately|almost|nearly
    above|below|multiples?|factors?|divisors?|divisible|square|cube|root|half|third|quarter|twice|double|triple|times|modulo|mod|digits?
    would|could|should|may|might|if|unless|suppose|assum\\w+|was|were|had|but|however|though|although|yet|only|still|first
    initial\\w*|original\\w*|before|until|except|instead|try|trying|check\\w*|verif\\w+|test\\w*|consider|let|plug|insert|replace
    theorem|lemma|proposition|corollary|chapter|step|case|method|approach(?:es)?|equation|problem|question|exercise|page|figure
    table|example|rule|formula|row|house|number \\d|bound\\w*|limit\\w*|cap\\w*|guess|target|goal|plan\\w*
    hop\\w+|want\\w*|expect\\w*|divid\\w+|multipl\\w+|subtract\\w*|add|adding|added|reject\\w*|discard\\w*|exclud\\w+|extraneous
    contradict\\w*|impossible|possible|others?|another|each|every|per|given|next|now|then|start|take|too|exceeds?
    parallel|perpendicular|proportional|depends?|differs?|different|ends? in|congruent|clos\\w+|prime|odd|even
    some\\w*|whoever|looks?|satisf\\w+|fits?|or (?:more|so|longer)|minus|plus|needed|remain\\w*|[Ii]
"""
_OTHER_ROLE = re.compile(
    rf"{DENIAL.pattern}|\b(?:{'|'.join(_OTHER_ROLES.replace('    ', '').split(chr(10))[1:-1])})\b|[<>≤≥?§]",
    re.IGNORECASE,
)


_LAST_PART = re.compile(
    r"[,;:]\s+(?:and )?(?:so|thus|hence|therefore|consequently|which means(?: that)?|(?:and )?this means"
    r"(?: that)?)\b,?\s+"
)


def only_new(sentence: str, known: frozenset[str]) -> str | None:
    """The one quantity of a sentence whose figures are not among the known ones, where no word gives it another role."""
    if cut := list(_LAST_PART.finditer(sentence)):
        known, sentence = known.union(FIGURES.findall(sentence[: cut[-1].start()])), sentence[cut[-1].end() :]
    text, items = marked(fractions(numerals(spelled_out(without_denials(sentence)))))
    if not known or DOUBT.search(text) or _OTHER_ROLE.search(text):
        return None
    places = [match.start() for match in ITEM.finditer(text)]
    new = [at for at in places if not known.issuperset(FIGURES.findall(text_of(text, at, items)) or ["?"])]
    if len(new) != 1 or RELATION.search(text_of(text, new[0], items)):
        return None
    return with_unit(text, new[0], items)
