"""Chains of sums with worked solutions, planted mistakes, critiques of them and what follows from a critique.

A problem for two players: an actor that solves, a critic that says where a solution goes wrong. `part` says what a row
teaches. question: the problem alone, for rollouts; draft: its solution; critique: a solution, every second one with a
planted mistake, and what a perfect critic says of it; refine: the solution written anew with that critique; mixed: draft,
critique and refine by the weights of `mix`. A critique recomputes step by step as far as the first wrong one:

    Compute 47 + 38 - 19 step by step.
    47 + 38 = 86          47 + 38 = 85. Wrong
    86 - 19 = 67          Correctness of the final answer: Wrong
    The answer is 67
"""

from __future__ import annotations

from random import Random
from typing import Any, Literal

from llmrl.errors import DataError
from llmrl.seeding import generator

# The actor's and the critic's texts, shared with the environment `critique` and the evaluation's strategy. The interface
# strings are those of Critique-RL (arXiv:2510.24320); the wording around them is ours.
CRITIC = (
    'Check this solution step by step. For each step write "Step sentence:", then "Correctness of the step:" Correct or '
    'Wrong, then "Explanation:". End with a line "Correctness of the final answer:" Correct or Wrong.\n\n'
    "Question: {question}\nSolution: {attempt}"
)
REFINE = (
    'Here is a critique of your solution. Follow it and write the whole solution again; end with "The answer is ...".\n\n'
    "{critique}"
)
Part = Literal["question", "draft", "critique", "refine", "mixed"]
Step = tuple[int, str, int, int]  # left, operator, right, result


def filled(template: str, **texts: str) -> str:
    """`template` with {name} replaced by each of `texts`, and by nothing else: they may hold braces.

    >>> filled("{a} and {b}", a="{b}", b="x")
    '{b} and x'
    """
    pieces: list[str] = []
    while True:
        found = [(place, name) for name in texts if (place := template.find(f"{{{name}}}")) >= 0]
        if not found:
            return "".join([*pieces, template])
        place, name = min(found)
        pieces += [template[:place], texts[name]]
        template = template[place + len(name) + 2 :]


def chains(
    seed: int, index: int, *, part: Part = "question", steps: int = 2, low: int = 2, high: int = 20, wrong: float = 0.5,
    mix: tuple[int, int, int] = (1, 1, 1), critic: str = CRITIC, refine_with: str = REFINE,
) -> dict[str, Any]:  # fmt: skip
    """One row of `part`: `steps` additions and subtractions of numbers in low..high, no result below 0.

    `wrong` is the share of drafts with a planted mistake. `critic` and `refine_with` are the environment's prompts.

    >>> row = chains(0, 0, part="draft")
    >>> row["completion"].splitlines()[-1] == f"The answer is {row['answer']}"
    True
    """
    if steps < 1 or not 0 < low <= high:
        raise DataError(f"chains(steps={steps}, low={low}, high={high}): at least one step, and 0 < low <= high")
    rng = generator(seed, "chains", index)
    numbers, chain = _problem(rng, steps, low, high)
    expression = str(numbers[0]) + "".join(f" {op} {right}" for _, op, right, _ in chain)
    question, answer = f"Compute {expression} step by step.", str(chain[-1][3])
    row: dict[str, Any] = {
        "id": f"chains/{expression.replace(' ', '')}", "problem": question, "answer": answer, "identity": expression,
    }  # fmt: skip
    kind = rng.choices(("draft", "critique", "refine"), weights=mix)[0] if part == "mixed" else part
    if kind == "question":
        return row
    if kind == "draft":
        return {**row, "completion": solution(chain)}
    bad = _mistake(rng, chain) if rng.random() < wrong else None
    draft = solution(
        chain if bad is None else _continued(chain[: bad[0]], bad[1], chain[bad[0]][:3], chain[bad[0] + 1 :])
    )
    said = critique(chain, None if bad is None else bad[0])
    row |= {"attempt": draft, "correct": bad is None}
    if kind == "critique":
        return {**row, "problem": filled(critic, question=question, attempt=draft), "completion": said}
    turns = ("user", question), ("assistant", draft), ("user", filled(refine_with, critique=said))
    messages = [{"role": role, "content": text} for role, text in turns]
    return {**row, "problem": messages, "completion": solution(chain)}


def solution(chain: list[Step]) -> str:
    """The worked solution: a line a step, then the answer."""
    lines = [f"{left} {op} {right} = {result}" for left, op, right, result in chain]
    return "\n".join([*lines, f"The answer is {chain[-1][3]}"])


def critique(chain: list[Step], bad: int | None) -> str:
    """What a perfect critic says of a solution of `chain` whose first wrong step is number `bad`, if any."""
    seen = chain if bad is None else chain[: bad + 1]
    lines = [
        f"{left} {op} {right} = {result}. {'Wrong' if place == bad else 'Correct'}"
        for place, (left, op, right, result) in enumerate(seen)
    ]
    return "\n".join([*lines, f"Correctness of the final answer: {'Correct' if bad is None else 'Wrong'}"])


def chain_of(text: str) -> list[Step]:
    """The right steps of the question in `text`.

    >>> chain_of("Compute 47 + 38 - 19 step by step.")
    [(47, '+', 38, 85), (85, '-', 19, 66)]
    """
    question = text.partition("Compute ")[2].partition(" step by step.")[0].split()
    chain: list[Step] = []
    value = int(question[0])
    for op, number in zip(question[1::2], map(int, question[2::2]), strict=True):
        result = value - number if op == "-" else value + number
        chain.append((value, op, number, result))
        value = result
    return chain


def first_wrong(chain: list[Step], draft: str) -> int | None:
    """The number of the first step of `draft` that is not that of `chain`; None if it is all right.

    >>> chain = chain_of("Compute 47 + 38 - 19 step by step.")
    >>> first_wrong(chain, "47 + 38 = 85\\n85 - 19 = 64\\nThe answer is 64"), first_wrong(chain, solution(chain))
    (1, None)
    """
    wanted, given = solution(chain).splitlines(), draft.strip().splitlines()
    wrong = next((place for place, line in enumerate(wanted) if given[place : place + 1] != [line]), None)
    return None if wrong is None else min(wrong, len(chain) - 1)


def _problem(rng: Random, steps: int, low: int, high: int) -> tuple[list[int], list[Step]]:
    numbers = [rng.randint(low, high) for _ in range(steps + 1)]
    chain: list[Step] = []
    value = numbers[0]
    for number in numbers[1:]:
        op = "-" if rng.random() < 0.5 and value >= number else "+"
        result = value - number if op == "-" else value + number
        chain.append((value, op, number, result))
        value = result
    return numbers, chain


def _mistake(rng: Random, chain: list[Step]) -> tuple[int, int]:
    """(number of a step, a wrong result for it): off by one in one of its digits, or by a little."""
    place = rng.randrange(len(chain))
    right = chain[place][3]
    off = rng.choice((1, 2, 10, 10, 20, 100)) * rng.choice((-1, 1))
    return place, right + off if right + off >= 0 else right + abs(off)


def _continued(before: list[Step], result: int, step: tuple[int, str, int], rest: list[Step]) -> list[Step]:
    """The chain with `result` for `step`, and what follows from it computed rightly."""
    chain = [*before, (*step, result)]
    for _, op, number, _ in rest:
        result_next = chain[-1][3] - number if op == "-" else chain[-1][3] + number
        chain.append((chain[-1][3], op, number, result_next))
    return chain
