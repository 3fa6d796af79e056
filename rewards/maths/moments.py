"""The date, year or time of day that a text ends with. Reads text only."""

from __future__ import annotations

import re

from llmrl.rewards.maths.final_sentence import split_sentences
from llmrl.rewards.maths.sentences import DOUBT
from llmrl.rewards.maths.statement import DENIAL
from llmrl.rewards.maths.units import MONTH

_MONTH_DAY = rf"{MONTH} \d{{1,2}}(?:st|nd|rd|th)?"
_LEADS_TO = re.compile(
    r"\b(?:is|will be|shows?|arrives? at|ends? at|starts? at|by|on|(?:days?|weeks?) to"
    r"|(?:brings?|takes?|gets?|leads?) (?:us|it|them|you) to)"
    rf" (?:{_MONTH_DAY}|(?:the )?\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{MONTH}|in"
    r" (?:the year )?\d{4}|\d{1,2}:\d\d(?: ?[ap]\.?m\b\.?)?)\W*$",
    re.IGNORECASE,
)
YEAR = re.compile(
    r"(?<![\d.,$])(?<!before )(?<!after )(?<!until )(?<!since )(?<!from )(?:1[5-9]|20)\d\d(?![\d,.]\d|\d| [-+])"
)
CLOCK = re.compile(
    r"(?<!before )(?<!after )(?<!until )(?<!from )\b\d{1,2}:\d\d(?!\d)(?: ?[ap]\.?m\b\.?)?", re.IGNORECASE
)
DATE = re.compile(
    r"(?<!before )(?<!after )(?<!until )(?<!from )\b"
    rf"(?:{MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:, \d{{4}}\b)?|\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{MONTH}\b)"
)
_DAY_FIRST = re.compile(rf"^(\d{{1,2}}) (?:of )?({MONTH})$")


def moment(text: str, form: re.Pattern[str]) -> str | None:
    """The one date, year or time of the last sentence that names any, where nothing denies or doubts it."""
    dated = [sentence for sentence in split_sentences(text) if form.search(sentence)]
    if not dated or DENIAL.search(dated[-1]) or DOUBT.search(dated[-1]) or dated[-1].endswith("?"):
        return None
    found = [re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", match.group()) for match in form.finditer(dated[-1])]
    found = [_DAY_FIRST.sub(r"\2 \1", one) for one in found]
    return found[-1] if len(set(found)) == 1 or _LEADS_TO.search(dated[-1]) else None
