"""The slow definitions: every credit and loss function once more, one row and one token at a time, in Python floats.

They share no code with `llmrl.credit` and `llmrl.losses` and use no tensor arithmetic. Tensors come in as nested lists;
a masked slot is never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Row = list[float]
Grid = list[Row]
Mask = list[list[bool]]


def siblings(values: Row, group: list[int], i: int) -> Row:
    return [value for value, g in zip(values, group, strict=True) if g == group[i]]


def mean(values: Row) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Row, ddof: int) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in values) / max(len(values) - ddof, 1))


def group_center(score: Row, group: list[int]) -> Row:
    return [s - mean(siblings(score, group, i)) for i, s in enumerate(score)]


def group_zscore(score: Row, group: list[int], eps: float = 1e-4) -> Row:
    return [
        (s - mean(siblings(score, group, i))) / (deviation(siblings(score, group, i), 1) + eps)
        for i, s in enumerate(score)
    ]


def leave_one_out(score: Row, group: list[int]) -> Row:
    result = []
    for i, s in enumerate(score):
        others = [score[j] for j in range(len(score)) if group[j] == group[i] and j != i]
        result.append(s - mean(others) if others else 0.0)
    return result


def gae(rewards: Grid, values: Grid, mask: Mask, gamma: float, lam: float) -> tuple[Grid, Grid]:
    """The double sum: A_t = sum over k >= 0 of (gamma lam)^k delta_(t + k), over sampled tokens only."""
    advantages, returns = blank(mask), blank(mask)
    for i, row in enumerate(mask):
        at = [t for t, sampled in enumerate(row) if sampled]
        value = [values[i][t] for t in at] + [0.0]
        delta = [rewards[i][t] + gamma * value[k + 1] - value[k] for k, t in enumerate(at)]
        for k, t in enumerate(at):
            terms = [(gamma * lam) ** (m - k) * delta[m] for m in range(k, len(at))]
            advantages[i][t] = math.fsum(terms)
            returns[i][t] = advantages[i][t] + values[i][t]
    return advantages, returns


def step_gae(rewards: Grid, values: Grid, step: list[list[int]], gamma: float, lam: float) -> tuple[Grid, Grid]:
    """Write each step as one token, take the token definition, and give every token of the step the result."""
    mask = [[s >= 0 for s in row] for row in step]
    advantages, returns = blank(mask), blank(mask)
    for i, row in enumerate(step):
        numbers = sorted({s for s in row if s >= 0})
        tokens = {s: [t for t, other in enumerate(row) if other == s] for s in numbers}
        reward = [math.fsum(rewards[i][t] for t in tokens[s]) for s in numbers]
        value = [values[i][tokens[s][0]] for s in numbers]
        by_step = gae([reward], [value], [[True] * len(numbers)], gamma, lam)
        for k, s in enumerate(numbers):
            for t in tokens[s]:
                advantages[i][t], returns[i][t] = by_step[0][0][k], by_step[1][0][k]
    return advantages, returns


def discounted_returns(rewards: Grid, mask: Mask, gamma: float) -> Grid:
    result = blank(mask)
    for i, row in enumerate(mask):
        at = [t for t, sampled in enumerate(row) if sampled]
        for k, t in enumerate(at):
            result[i][t] = math.fsum(gamma ** (m - k) * rewards[i][at[m]] for m in range(k, len(at)))
    return result


def whiten(x: Grid, mask: Mask, floor: float) -> Grid:
    chosen = [x[i][t] for i, row in enumerate(mask) for t, sampled in enumerate(row) if sampled]
    centre, std = mean(chosen), max(deviation(chosen, 0), floor)
    return over(mask, lambda i, t: (x[i][t] - centre) / std)


def clipped_surrogate(
    new: float, old: float, advantage: float, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> float:
    return surrogate_of_ratio(math.exp(new - old), advantage, clip_low, clip_high, dual_clip)


def surrogate_of_ratio(ratio: float, advantage: float, low: float, high: float, dual: float | None = None) -> float:
    objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return -objective


def sequence_clipped_surrogate(
    new: Grid, old: Grid, advantages: Grid, mask: Mask, ratio: str, clip_low: float, clip_high: float
) -> Grid:
    ratios = []
    for i, row in enumerate(mask):
        differences = [new[i][t] - old[i][t] for t, sampled in enumerate(row) if sampled] or [0.0]
        ratios.append(math.exp(mean(differences) if ratio == "mean" else math.fsum(differences)))
    return over(mask, lambda i, t: surrogate_of_ratio(ratios[i], advantages[i][t], clip_low, clip_high))


def capped_reinforce(new: float, old: float, advantage: float, ratio_cap: float) -> float:
    return -min(math.exp(new - old), ratio_cap) * advantage * new


def truncated_importance(old: float, sampler: float, cap: float) -> float:
    return min(math.exp(old) / math.exp(sampler), cap)


def clipped_value(value: float, old: float, target: float, clip: float) -> float:
    clipped = min(max(value, old - clip), old + clip)
    return max((value - target) ** 2, (clipped - target) ** 2) / 2


def kl_estimate(new: float, ref: float, estimator: str) -> float:
    ratio = math.exp(ref) / math.exp(new)
    return {"k1": new - ref, "k2": (new - ref) ** 2 / 2, "k3": ratio - 1 - math.log(ratio)}[estimator]


def aggregate(
    x: Grid, mask: Mask, normalize: str, tokens_total: float, sequences_total: float, constant: float
) -> float:
    rows = [[x[i][t] for t, sampled in enumerate(row) if sampled] for i, row in enumerate(mask)]
    if normalize == "sequence":
        return math.fsum(mean(row) for row in rows if row) / sequences_total
    return math.fsum(map(math.fsum, rows)) / (tokens_total if normalize == "token" else sequences_total * constant)


def pacs_scores(new: Grid, ref: Grid, mask: Mask, group: list[int], beta: float, proxy: str, score: str) -> Row:
    proxies = []
    for i, row in enumerate(mask):
        at = [t for t, sampled in enumerate(row) if sampled]
        if proxy == "log_ratio":
            proxies.append(beta * math.fsum(new[i][t] - ref[i][t] for t in at))
        else:
            proxies.append(beta * math.fsum(new[i][t] for t in at) / max(len(at), 1))
    alive = [i for i, row in enumerate(mask) if any(row)]
    own, groups = [proxies[i] for i in alive], [group[i] for i in alive]
    centred = {
        "rloo": lambda: leave_one_out(own, groups),
        "drgrpo": lambda: group_center(own, groups),
        "grpo": lambda: group_zscore(own, groups, eps=1e-6),
        "naive": lambda: own,
    }[score]()
    scores = [0.0] * len(mask)
    for i, psi in zip(alive, centred, strict=True):
        scores[i] = psi
    return scores


def pacs_weights(labels: Row, group: list[int], mode: str) -> Row:
    if mode != "question":
        return [{"none": 1.0, "only_positive": label, "only_negative": 1 - label}[mode] for label in labels]
    weights = []
    for i, label in enumerate(labels):
        own = siblings(labels, group, i)
        weights.append(len(own) / (2 * own.count(label)) if 0 < own.count(1.0) < len(own) else 1.0)
    return weights


def pacs_loss(scores: Row, labels: Row, weights: Row) -> float:
    terms = []
    for psi, label, weight in zip(scores, labels, weights, strict=True):
        right = 1 / (1 + math.exp(-psi))
        terms.append(weight * -(label * math.log(right) + (1 - label) * math.log(1 - right)))
    return math.fsum(terms) / len(scores)


def pooled_logits(logits: list[Grid], mask: Mask, pool: str) -> Grid:
    result = []
    for i, row in enumerate(mask):
        seen = [logits[i][t] for t, sampled in enumerate(row) if sampled]
        classes = range(len(logits[i][0]))
        if not seen:
            result.append([0.0 for _ in classes])
        elif pool == "last":
            result.append(seen[-1])
        else:
            result.append([max(x[k] for x in seen) if pool == "max" else mean([x[k] for x in seen]) for k in classes])
    return result


def token_scores(logits: list[Grid], outcome: list[int], mask: Mask, alignment: str, scale: str) -> Grid:
    result = blank(mask)
    for i, row in enumerate(mask):
        at = [t for t, sampled in enumerate(row) if sampled]
        scores = []
        for t in at:
            weights = [math.exp(x) for x in logits[i][t]]
            scores.append(weights[outcome[i]] / math.fsum(weights))
        if alignment == "shifted":
            scores = [0.0, *scores][: len(at)]
        unit = {"none": 1.0, "mean_one": mean(scores or [1.0]), "max_one": max(scores or [1.0])}[scale]
        for t, score in zip(at, scores, strict=True):
            result[i][t] = score / unit if unit else 0.0
    return result


def weighted_nll(new: Grid, weights: Grid, mask: Mask, normalize: str) -> float:
    terms = [[-weights[i][t] * new[i][t] for t, sampled in enumerate(row) if sampled] for i, row in enumerate(mask)]
    rows = [row for row in terms if row]
    if normalize == "token":
        return mean([term for row in rows for term in row])
    return mean([mean(row) if normalize == "sequence" else math.fsum(row) for row in rows])


def blank(mask: Mask) -> Grid:
    return [[0.0] * len(row) for row in mask]


def over(mask: Mask, rule: Callable[[int, int], float]) -> Grid:
    """`rule(i, t)` at every sampled slot, 0 elsewhere."""
    return [[rule(i, t) if sampled else 0.0 for t, sampled in enumerate(row)] for i, row in enumerate(mask)]
