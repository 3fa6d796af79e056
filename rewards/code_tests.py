"""Code reward: the completion's program against its row's tests, in the sandbox. `CodeTests`, and what it is made of."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmrl.rewards.sandbox import Limits, ProgramResult, program_names, run_program
from llmrl.rewards.scoring import failed
from llmrl.rewards.validation import expect
from llmrl.types import Score, StatusKind, Trajectory

__all__ = ["CodeTests", "Limits", "ProgramResult", "extract_program", "run_program"]
MOST_FENCES = 20  # closing fences to try
TAMPERING = re.compile(
    r"os\._exit|sys\.exit|\b__eq__\b|\bsettrace\b|_getframe|gc\.get_|/proc/|\bctypes\b|\bsubprocess\b|__subclasses__"
    r"|\bconftest\b|sitecustomize|\bexcepthook\b|\batexit\b|builtins\.|\bunittest\b|\bpytest\b|f_back|f_globals"
)


_OPENING = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^`]*")


def extract_program(text: str, entry_point: str | None = None, tests: Sequence[Any] = ()) -> str | None:
    """The program of a completion: its last ```python block, else its last block, else all of it if it has no fence.

    Of several blocks, the last that defines what the tests call (`entry_point`, or the names in `tests`) comes first.
    Only what follows the last `</think>` counts. None if a fence is opened and not closed, or nothing is there.
    """
    if "<think>" in text and "</think>" not in text:
        return None
    text = text.rpartition("</think>")[2]
    blocks = _blocks(text)
    if not blocks:
        return None if "```" in text or not text.strip() else text
    programs = [code for language, code in blocks if language in ("python", "py", "python3")]
    programs = programs or [code for _, code in blocks]
    wanted = {entry_point} if entry_point else program_names(tests, None)
    return next((code for code in reversed(programs) if wanted & _defined(code)), programs[-1])


def _blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of the fenced blocks. A fence inside a docstring does not end a block: the code must parse there."""
    lines, blocks, at = text.splitlines(keepends=True), [], 0
    while at < len(lines):
        opening = _OPENING.fullmatch(lines[at].rstrip("\r\n"))
        if opening is None:
            at += 1
            continue
        closing = re.compile(rf"[ \t]*{opening[1][0]}{{{len(opening[1])},}}[ \t]*")
        ends = [i for i in range(at + 1, len(lines)) if closing.fullmatch(lines[i].rstrip("\r\n"))]
        if not ends:
            break
        end = next((i for i in ends[:MOST_FENCES] if _parsed("".join(lines[at + 1 : i])) is not None), ends[0])
        blocks.append((opening[2].lower(), "".join(lines[at + 1 : end])))
        at = end + 1
    return blocks


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(textwrap.dedent(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defined(code: str) -> set[str]:
    """Names of the functions, classes and variables at the top of a program."""
    tree = _parsed(code)
    if tree is None:
        return set(re.findall(r"^(?:async )?(?:def|class) (\w+)", code, re.MULTILINE))
    found = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    targets = [target for n in tree.body if isinstance(n, ast.Assign) for target in n.targets]
    return found | {target.id for target in targets if isinstance(target, ast.Name)}


def tampering(text: str) -> list[str]:
    """["test_tampering"] if a text names what tests are tampered with, else []."""
    return ["test_tampering"] if TAMPERING.search(text) else []


def run_for(reward: Any, program: str, tests: Sequence[Any], columns: Mapping[str, Any]) -> ProgramResult:
    """The program against a row's tests as `reward` (this one or `CodeOutcome`) runs them; a row's own `kind` comes first."""
    return run_program(
        program, list(tests), kind=columns.get("kind") or reward.kind, entry_point=columns.get("entry_point") or None,
        timeout_s=reward.timeout_s, limits=reward.limits, comparison=reward.comparison,
        setup=str(columns.get("setup") or ""),
    )  # fmt: skip


def expect_programs(reward: Any, *, best: float = 1.0, worst: float) -> None:
    """Raises ValueError unless an honest program passes and empty, wrong and cheating ones do not."""
    if reward.kind == "stdio":
        columns: dict[str, Any] = {reward.tests: [{"input": "2 3\n", "output": "5\n"}]}
        good = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    else:
        columns = {reward.tests: ["assert add(2, 3) == 5", "assert abs(add(0.1, 0.2) - 0.3) < 1e-9"]}
        good = "```python\ndef add(a, b):\n    return a + b\n```"
    none = ["", "```python\nimport os\nos._exit(0)\n```", "```python\ndef add(a, b): return 6\n```"]
    expect(reward, "", full=[good], none=none, columns=columns, best=best, worst=worst)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    """1.0 if the completion's program passes all tests of its row, else 0.0 (or the share passed, or CodeRL's levels).

    The tests are `prompt.columns["tests"]` (for kind "function" also entry_point and setup, where the row has them); a
    row's own column `kind` comes before `kind`.
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
        flags = ["truncated"] if trajectory.status.kind is StatusKind.TRUNCATED else []
        flags += tampering(trajectory.text)
        program = extract_program(trajectory.text, columns.get("entry_point"), tests)
        if program is None:
            worst = -1.0 if self.grade == "coderl" else 0.0
            return Score(value=worst, reason="no program in the completion", flags=(*flags, "no_program"))
        program = str(columns.get(self.prefix, "")) + program if self.prefix else program
        outcome = run_for(self, program, tests, columns)
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

    def validate(self) -> None:
        expect_programs(self, worst=-0.3 if self.grade == "coderl" else 0.0)
