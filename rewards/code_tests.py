"""Code reward: the completion's program against its row's tests, in the sandbox. `CodeTests`, and what it is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmrl.rewards.border import failed
from llmrl.rewards.sandbox import Limits, ProgramResult, run_program
from llmrl.rewards.validation import expect
from llmrl.types import Score, StatusKind, Trajectory

__all__ = ["CodeTests", "Limits", "ProgramResult", "extract_program", "run_program"]
TAMPERING = re.compile(
    r"os\._exit|sys\.exit|\b__eq__\b|\bsettrace\b|_getframe|gc\.get_|/proc/|\bctypes\b|\bsubprocess\b|__subclasses__"
    r"|\bconftest\b|sitecustomize|\bexcepthook\b|\batexit\b|builtins\.|\bunittest\b|\bpytest\b|f_back|f_globals"
)


_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)


def extract_program(text: str) -> str | None:
    """The program of a completion: its last ```python block, else its last block, else all of it if it has no fence.

    Only what follows the last `</think>` counts. None if a fence is opened and not closed, or nothing is there.
    """
    if "<think>" in text and "</think>" not in text:
        return None
    text = text.rpartition("</think>")[2]
    blocks = [(m.group(2).lower(), m.group(3)) for m in _FENCE.finditer(text)]
    named = [code for language, code in blocks if language in ("python", "py", "python3")]
    if named or blocks:
        return named[-1] if named else blocks[-1][1]
    if "```" in text or not text.strip():
        return None
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    """1.0 if the completion's program passes all tests of its row, else 0.0 (or the share passed, or CodeRL's levels).

    The tests are `prompt.columns["tests"]` (for kind "function" also entry_point and setup, where the row has them).
    grade: "all" | "share" | "coderl" (-1 compile error, -0.6 runtime error or time-out, -0.3 failed, 1 passed). prefix:
    column whose text is put before the program, as HumanEval's prompt. harness errors are errors, never a 0.
    Flags: the outcome's status, "no_program", "truncated", "test_tampering" (it names what tests are tampered with).
    """

    kind: Literal["function", "stdio"] = "function"
    grade: Literal["all", "share", "coderl"] = "all"
    comparison: Literal["strict", "apps"] = "strict"
    timeout_s: float = 4.0
    limits: Limits = field(default_factory=Limits)
    tests: str = "tests"
    prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.limits, Mapping):
            object.__setattr__(self, "limits", Limits(**self.limits))
        if self.grade not in ("all", "share", "coderl") or self.kind not in ("function", "stdio"):
            raise ValueError(f"kind={self.kind!r} with grade={self.grade!r} is not known")

    def __call__(self, trajectory: Trajectory) -> Score:
        columns = trajectory.prompt.columns
        tests = columns.get(self.tests)
        if not tests:
            return Score(value=None, reason=f"the row has no {self.tests!r}", flags=("no_tests",))
        flags = list(self._flags(trajectory))
        program = extract_program(trajectory.text)
        if program is None:
            worst = -1.0 if self.grade == "coderl" else 0.0
            return Score(value=worst, reason="no program in the completion", flags=(*flags, "no_program"))
        outcome = run_program(
            str(columns.get(self.prefix, "")) + program if self.prefix else program,
            list(tests),
            kind=self.kind,
            entry_point=columns.get("entry_point") or None,
            timeout_s=self.timeout_s,
            limits=self.limits,
            comparison=self.comparison,
            setup=str(columns.get("setup") or ""),
        )
        if outcome.status == "harness_error":
            return failed(outcome.detail)
        share = outcome.passed / outcome.total
        levels = {"compile_error": -1.0, "runtime_error": -0.6, "timeout": -0.6, "failed": -0.3, "passed": 1.0}
        value = {"all": float(outcome.status == "passed"), "share": share, "coderl": levels[outcome.status]}[self.grade]
        return Score(
            value=value,
            parts={"tests_passed": share},
            reason=f"{outcome.status} {outcome.passed}/{outcome.total} {outcome.detail}"[:300],
            flags=(*flags, outcome.status),
        )

    def _flags(self, trajectory: Trajectory) -> Iterator[str]:
        if trajectory.status.kind is StatusKind.TRUNCATED:
            yield "truncated"
        if TAMPERING.search(trajectory.text):
            yield "test_tampering"

    def validate(self) -> None:
        """Raises ValueError unless an honest program passes and empty and cheating ones do not."""
        if self.kind == "stdio":
            columns: dict[str, Any] = {self.tests: [{"input": "2 3\n", "output": "5\n"}]}
            good = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
        else:
            columns = {self.tests: ["assert add(2, 3) == 5", "assert abs(add(0.1, 0.2) - 0.3) < 1e-9"]}
            good = "```python\ndef add(a, b):\n    return a + b\n```"
        cheat = "```python\nimport os\nos._exit(0)\n```"
        worst = -0.3 if self.grade == "coderl" else 0.0
        expect(self, "", full=[good], none=["", cheat, "```python\ndef add(a, b): return 6\n```"], columns=columns,
               worst=worst)  # fmt: skip
