"""The slow definitions of functions of plain values: programs, critiques, actions, one environment's steps.

As in `definitions`, they share no code with what they judge.
"""

from __future__ import annotations

import itertools
import json
import math

from llmrl.conformance.definitions import Row, mean

Marks = list[bool]


def episode_gae(
    rewards: Row,
    values: Row,
    terminated: Marks,
    truncated: Marks,
    final_values: Row,
    gamma: float,
    lam: float,
    truncation: str,
) -> tuple[Row, Row]:
    """The double sum within each episode: A_n = sum over m >= n of (gamma lam)^(m - n) delta_m up to its end."""
    count = len(rewards)
    advantages = []
    for n in range(count):
        total, factor = 0.0, 1.0
        for m in range(n, count):
            dropped = truncation == "drop" and truncated[m] and not terminated[m]
            if dropped:
                break  # this step has no error of its own and nothing behind it
            if terminated[m] or (truncated[m] and truncation == "terminal"):
                follows = 0.0
            elif truncated[m] or m == count - 1:
                follows = final_values[m]
            else:
                follows = values[m + 1]
            total += factor * (rewards[m] + gamma * follows - values[m])
            factor *= gamma * lam
            if terminated[m] or truncated[m]:
                break
        advantages.append(total)
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def split_point(p_pass: Row, p_fail: Row | None) -> int:
    """The longest prefix that ends at its first best token and holds no token that fails more likely than it passes."""
    allowed = []
    for kept in range(len(p_pass) + 1):
        too_far = any(p_pass[t] >= p for t in range(kept - 1) for p in [max(p_pass)])
        bad = p_fail is not None and any(p_fail[t] > p_pass[t] for t in range(kept))
        if not too_far and not bad:
            allowed.append(kept)
    return max(allowed)


def copies(total: int, seeds: int) -> list[int]:
    """Hand out one at a time, round and round."""
    given = [0] * seeds
    for n in range(total):
        given[n % seeds] += 1
    return given


def best_failing(p_pass: Row, m: int) -> list[int]:
    left, chosen = list(range(len(p_pass))), list[int]()
    while left and len(chosen) < m:
        best = next(i for i in left if all(p_pass[i] >= p_pass[j] for j in left))
        chosen.append(best)
        left.remove(best)
    return chosen


def n_at_k(hidden: Marks, example: Marks, n: int) -> float:
    pool = [right for right, shown in zip(hidden, example, strict=True) if shown]
    submissions = list(itertools.combinations(pool, n)) if len(pool) >= n else [tuple(pool)]
    return mean([float(any(submission)) for submission in submissions])


def critique_metrics(rows: list[tuple[bool, bool, str | None]]) -> dict[str, float]:
    """Counted in the eight or twelve kinds of rows there are."""
    total = len(rows)

    def count(drafts: Marks, refinements: Marks, verdicts: list[str | None]) -> int:
        kinds = set(itertools.product(drafts, refinements, verdicts))
        return sum((bool(d), bool(r), v) in kinds for d, r, v in rows)

    either, said = [True, False], ["correct", "wrong", None]
    right, wrong = count([True], either, said), count([False], either, said)
    true_on_right, true_on_wrong = count([True], either, ["correct"]), count([False], either, ["wrong"])
    refined = count(either, [True], said)
    return {
        "acc_first": right / total,
        "acc_refined": refined / total,
        "delta": (refined - right) / total,
        "correct_to_wrong": count([True], [False], said) / total,
        "wrong_to_correct": count([False], [True], said) / total,
        "acc_dis": (true_on_right + true_on_wrong) / total,
        "acc_dis_on_correct": true_on_right / right if right else math.nan,
        "acc_dis_on_wrong": true_on_wrong / wrong if wrong else math.nan,
        "malformed": count(either, either, [None]) / total,
    }


def verdict(text: str) -> str | None:
    """Word by word, without a pattern: what stands behind each label decides, two different answers decide nothing."""
    plain = "".join(character if character.isalnum() or character in "|/," else " " for character in text.casefold())
    words = plain.replace("|", " | ").replace("/", " / ").replace(",", " , ").split()
    label = ["correctness", "of", "the", "final", "answer"]
    said = set()
    for at in range(len(words)):
        if words[at : at + 5] != label:
            continue
        first, length = _verdict_at(words[at + 5 :])
        said.add(first)
        behind = words[at + 5 + length :]
        if first and behind[:1] and behind[0] in ("|", "/", ",", "or"):
            said.add(_verdict_at(behind[1:])[0])
    said.discard(None)
    return said.pop() if len(said) == 1 else None


def _verdict_at(words: list[str]) -> tuple[str | None, int]:
    if words[:2] == ["not", "correct"]:
        return "wrong", 2
    return {"correct": "correct", "wrong": "wrong", "incorrect": "wrong"}.get(words[0] if words else ""), 1


def credited(text: str, origin_correct: bool, parser: str) -> bool:
    if parser == "strict":
        return verdict(text) == ("correct" if origin_correct else "wrong")
    label = "Correctness of the final answer: " + ("Correct" if origin_correct else "Wrong")
    return any(text[i : i + len(label)] == label for i in range(len(text)))


def discrimination_reward(credited: bool, scheme: str) -> float:
    return {("paper", True): 1.0, ("paper", False): 0.0, ("released", True): 1.0, ("released", False): -1.0}[
        scheme, credited
    ]


# (draft right, refinement right) -> help
HELP = {
    "r_refine": {(True, True): 1.0, (True, False): 0.0, (False, True): 1.0, (False, False): 0.0},
    "r_delta": {(True, True): 0.0, (True, False): -1.0, (False, True): 1.0, (False, False): 0.0},
    "r_correction": {(True, True): 0.2, (True, False): 0.0, (False, True): 1.0, (False, False): 0.0},
}


def refinement_reward(origin: bool, refined: bool, credited: bool, mode: str, scheme: str, beta: float) -> float:
    if scheme == "released" and not credited:
        return -1.0
    return HELP[mode][origin, refined] + beta * discrimination_reward(credited, "paper")


def graded_discrimination(critic: float, oracle: float, delta: float) -> float:
    distance = oracle - critic if oracle > critic else critic - oracle
    return (delta - distance) / delta if distance < delta else 0.0


def parse_action(text: str, n_actions: int) -> int | None:
    """Every substring in order of its start: the first one whose braces close, strings left out, is the object."""
    for start, end in itertools.combinations(range(len(text) + 1), 2):
        piece = text[start:end]
        if piece.startswith("{") and piece.endswith("}") and _depths(piece)[-1] == 0 and 0 not in _depths(piece)[:-1]:
            try:
                action = json.loads(piece).get("action")
            except ValueError:
                return None
            valid = [n for n in range(n_actions) if type(action) in (int, str) and str(action) == str(n)]
            return valid[0] if valid else None
    return None


def _depths(piece: str) -> list[int]:
    """The number of open braces after each character; -1 stands for a character inside a string."""
    depth, quoted, result = 0, False, []
    for i, character in enumerate(piece):
        backslashes = len(piece[:i]) - len(piece[:i].rstrip("\\"))
        if character == '"' and not (quoted and backslashes % 2):
            quoted = not quoted
        if not quoted and character in "{}":
            depth += {"{": 1, "}": -1}[character]
        result.append(-1 if quoted else depth)
    return result


def outcome_of(results: list[bool | int]) -> int | None:
    """The class of the first code that is no pass: -2, -1, False and True are the classes 0 to 3 in order."""
    classes = [code + 2 if code is False or code is True else int(code) + 2 for code in results]
    for found in classes:
        if found != 3:
            return found
    return 3 if classes else None


def outcome_return(outcome: int, passed: float | None) -> float:
    if outcome == 2 and passed is not None:
        return -0.3 * (1 - passed) + 1.0 * passed
    return {0: -1.0, 1: -0.6, 2: -0.3, 3: 1.0}[outcome]
