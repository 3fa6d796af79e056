"""CodeRL's reward: what became of the completion's program on the hidden tests, and beside it on the example tests.

The hidden tests alone decide the score. The example tests, which the problem's text shows, are what critic sampling and
filtering may look at; their result is reported in parts and never changes the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmrl.rewards.code_tests import expect_programs, extract_program, run_for, tampering
from llmrl.rewards.outcomes import Outcome, outcome_of, outcome_return
from llmrl.rewards.sandbox import Limits, ProgramResult
from llmrl.rewards.scoring import failed
from llmrl.types import Score, StatusKind, Trajectory

_CODES = {"passed": True, "failed": False, "runtime_error": -1, "timeout": -1, "compile_error": -2}


def codes_of(result: ProgramResult) -> list[bool | int]:
    """What `outcome_of` reads, up to the first test that was not run; empty for a harness error."""
    codes: list[bool | int] = []
    for status in result.per_test:
        if status not in _CODES:
            break
        codes.append(_CODES[status])
    return codes


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeOutcome:
    """The return of the program's outcome on the row's hidden tests.

    tests, examples: the columns of the hidden and of the example tests; rows may lack the latter. kind, comparison,
    timeout_s, limits: as in `run_program`; a row's own column `kind` comes first. partial: a program that failed a test
    is paid for the share it passed. compile_error, runtime_error, failed_test, passed_test: the returns; -1, -0.6, -0.3
    and 1 in the paper.

    parts: `outcome` (0 compile error, 1 runtime error or time-out, 2 failed a test, 3 passed), `tests_passed` (a share),
    and with example tests `example_outcome` and `examples_passed`. flags: the outcome's name in lower case, `timeout`,
    `no_program` (counted as a compile error), `truncated`, `test_tampering`, and `examples_disagree` for a program that
    passes the hidden tests and not the examples: one of them is wrong. Without a verdict (no tests, a harness error) the
    value is None.
    """

    kind: Literal["function", "stdio"] = "function"
    comparison: Literal["strict", "apps"] = "strict"
    timeout_s: float = 4.0
    limits: Limits = field(default_factory=Limits)
    tests: str = "tests"
    examples: str = "example_tests"
    partial: bool = False
    compile_error: float = -1.0
    runtime_error: float = -0.6
    failed_test: float = -0.3
    passed_test: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.limits, Mapping):
            object.__setattr__(self, "limits", Limits(**self.limits))
        if self.kind not in ("function", "stdio"):
            raise ValueError(f"kind={self.kind!r}; there are 'function' and 'stdio'")
        if self.tests == self.examples:
            raise ValueError(
                f"tests and examples are both the column {self.tests!r}; hidden tests need one of their own"
            )

    def __call__(self, trajectory: Trajectory) -> Score:
        columns = trajectory.prompt.columns
        hidden, shown = columns.get(self.tests), columns.get(self.examples)
        if not hidden:
            return Score(value=None, reason=f"the row has no {self.tests!r}", flags=("no_tests",))
        flags = ["truncated"] if trajectory.status.kind is StatusKind.TRUNCATED else []
        flags += tampering(trajectory.text)
        program = extract_program(trajectory.text, columns.get("entry_point"), hidden)
        if program is None:
            parts = {"outcome": float(Outcome.COMPILE_ERROR), "tests_passed": 0.0}
            flags += ["no_program", Outcome.COMPILE_ERROR.name.lower()]
            return Score(
                value=self.compile_error, parts=parts, reason="no program in the completion", flags=tuple(flags)
            )
        result = run_for(self, program, hidden, columns)
        outcome = outcome_of(codes_of(result))
        if outcome is None:
            return failed(result.detail)
        share = result.passed / result.total
        parts = {"outcome": float(outcome), "tests_passed": share}
        if shown:
            parts |= self._on_examples(run_for(self, program, shown, columns))
        if outcome is Outcome.PASSED_TEST and parts.get("examples_passed", 1.0) < 1.0:
            flags.append("examples_disagree")
        flags += ["timeout"] if result.status == "timeout" else []
        return Score(
            value=self._return(outcome, share),
            parts=parts,
            reason=f"{result.status} {result.passed}/{result.total} {result.detail}"[:300],
            flags=(*flags, outcome.name.lower()),
        )

    def _on_examples(self, result: ProgramResult) -> dict[str, float]:
        outcome = outcome_of(codes_of(result))
        if outcome is None:  # the examples could not be run; that says nothing about the program
            return {}
        return {"example_outcome": float(outcome), "examples_passed": result.passed / result.total}

    def _return(self, outcome: Outcome, share: float) -> float:
        return outcome_return(
            outcome, passed=share if self.partial else None, compile_error=self.compile_error,
            runtime_error=self.runtime_error, failed_test=self.failed_test, passed_test=self.passed_test,
        )  # fmt: skip

    def validate(self) -> None:
        expect_programs(self, best=self.passed_test, worst=self.failed_test)
