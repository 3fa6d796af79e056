"""Conformance: losses, credit and algorithms against slow definitions, finite differences and invariances.

    results = llmrl.conformance.run()
    rich.print(llmrl.conformance.table(results))

It judges the pure functions, those of privacy and control too, and the packed forward pass on the machine's own torch,
in about two minutes on one CPU core; the tests call the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from llmrl.conformance.algorithms import algorithms, check_algorithm
from llmrl.conformance.control import check_control
from llmrl.conformance.control_family import check_family
from llmrl.conformance.functions import check_function, subjects
from llmrl.conformance.packed import check_packed
from llmrl.conformance.plain import check_plain, plain_subjects
from llmrl.conformance.privacy import check_privacy
from llmrl.conformance.report import Result, fitting_table, summarise, table

__all__ = ["Result", "fitting_table", "run", "table"]


def run(seeds: Iterable[int] = range(5), *, outside: Mapping[str, Callable[..., object]] | None = None) -> list[Result]:
    """Run every check on every seed's random sample (float64, CPU); one result a check, with the worst error.

    `outside` holds functions of rewards/ and eval/ by name, which llmrl does not import itself (see `plain`).
    """
    seeds = list(seeds)
    by_function = (finding for subject in subjects() for seed in seeds for finding in check_function(subject, seed))
    by_value = (
        finding for subject in plain_subjects(outside or {}) for seed in seeds for finding in check_plain(subject, seed)
    )
    by_algorithm = (
        finding
        for name, algo in algorithms().items()
        for seed in seeds
        for finding in check_algorithm(name, algo, seed)
    )
    by_forward = (finding for seed in seeds for finding in check_packed(seed))
    by_privacy = (finding for seed in seeds for finding in check_privacy(seed))
    by_control = (finding for seed in seeds for check in (check_control, check_family) for finding in check(seed))
    kinds = (by_function, by_value, by_algorithm, by_forward, by_privacy, by_control)
    return [result for findings in kinds for result in summarise(findings)]
