"""Findings of many samples -> one result a check -> a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from llmrl.conformance.measure import Finding

# The worst error that passes. Two float64 routes to one number differ by rounding only, a central difference of width
# 1e-6 by about 1e-8 (more where the function bends more); the checks named with 0 are exact. Models compute positions
# in float32, whatever they are in.
TOLERANCE = {
    "finite difference": 2e-6,
    "packing": 2e-5,
    "direction": 0.0,
    "extreme": 0.0,
    "no row": 0.0,
    "garbage": 0.0,
}
ROUNDING = 1e-11


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One check of one function or algorithm, over all samples.

    `error` is the worst |got - expected| / (1 + |expected|), infinite if anything was NaN; for the check "direction" it
    is the share of tokens that would move the wrong way.
    """

    name: str
    check: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def summarise(findings: Iterable[Finding]) -> list[Result]:
    """The worst error of every (name, check), in order of first appearance."""
    worst: dict[tuple[str, str], float] = {}
    for finding in findings:
        key = (finding.name, finding.check)
        worst[key] = max(worst.get(key, 0.0), finding.error)
    return [
        Result(name=name, check=check, error=error, tolerance=TOLERANCE.get(check, ROUNDING))
        for (name, check), error in worst.items()
    ]


def table(results: Sequence[Result]) -> Table:
    """A row for each function or algorithm, a column for each check: the worst error, failures in red."""
    checks = list(dict.fromkeys(result.check for result in results))
    passed = sum(result.passed for result in results)
    view = Table(title=f"{passed} of {len(results)} checks pass")
    view.add_column("worst error")
    for check in checks:
        view.add_column(check, justify="right")
    cells = {(result.name, result.check): _cell(result) for result in results}
    for name in dict.fromkeys(result.name for result in results):
        view.add_row(name, *(cells.get((name, check), "") for check in checks))
    return view


def fitting_table(results: Sequence[Result], console: Console) -> Table:
    """`table`, or where the console is too narrow for it a row for each function with the worst of its checks."""
    whole = table(results)
    needed = Measurement.get(console, console.options.update(max_width=1000), whole).maximum
    if needed <= console.width:
        return whole
    view = Table(title=whole.title, caption=f"every check by itself: {needed} columns wide")
    view.add_column("")
    for title in ("pass", "worst error"):
        view.add_column(title, justify="right")
    view.add_column("in")
    for name in dict.fromkeys(result.name for result in results):
        own = [result for result in results if result.name == name]
        worst = max(own, key=lambda result: (not result.passed, result.error))
        view.add_row(name, f"{sum(result.passed for result in own)} of {len(own)}", _cell(worst), worst.check)
    return view


def _cell(result: Result) -> str:
    text = "0" if result.error == 0 else f"{result.error:.0e}"
    return text if result.passed else f"[bold red]{text}[/]"
